#!/bin/bash
# A study on SLURM. From the repository's root, in a home that all nodes share:
#   sbatch --nodes=4 --gpus-per-node=4 cluster/slurm.sh spaces/pcam_grid.py --out DIR --data DIR
# The words after the script are those of search.run; docs/cluster.md has the steps.
#SBATCH --job-name=study --output=%x-%j.log --open-mode=append
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=8
# Before its time is over, and where another job takes its nodes, the study is told to save and end;
# the job then goes back into the queue and continues.
#SBATCH --requeue --signal=B:TERM@120
export PATH="$PWD/.venv/bin:$PATH" RAY_AUTH_MODE=token SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
more_nodes=$((SLURM_JOB_NUM_NODES - 1))
port=$((20000 + SLURM_JOB_ID % 5000 * 4))  # not another job's, which may run on the same node
ray_log="$PWD/$SLURM_JOB_NAME-$SLURM_JOB_ID.ray.log"

# The address by which the other nodes reach this one. Its name may be 127.0.1.1 to itself.
host=127.0.0.1
if ((more_nodes)); then
    host=$(srun --nodes=1 --ntasks=1 --relative=1 printenv SLURM_LAUNCH_NODE_IPADDR)
fi

node() {  # as this process, which signals then reach
    exec ray start --block --disable-usage-stats --num-cpus="$SLURM_CPUS_ON_NODE" \
        --dashboard-agent-listen-port=$((port + 1)) "$@"
}
node_of_study() {  # until its input ends, as it does when this script ends
    (
        trap 'kill "$ray"; wait "$ray"; exit' TERM
        while :; do  # again, if it does not start in time: a shared home may be slow
            node --address="$host:$port" &
            ray=$!
            wait "$ray"
            sleep 1
        done
    ) &
    cat
    kill $!
    wait
}
all_nodes_joined() {
    timeout 300 python - "$host:$port" "$SLURM_JOB_NUM_NODES" <<'END' 2>>"$ray_log" && return
import sys, time
import ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    time.sleep(1)
END
    echo "not all nodes have started Ray within five minutes: see $ray_log"
    return 1
}
export host port
export -f node node_of_study

start_head() {
    node --head --node-ip-address="$host" --port="$port" --dashboard-port=$((port + 2)) \
        --ray-client-server-port=$((port + 3)) --temp-dir="/tmp/ray-$SLURM_JOB_ID" &>"$ray_log" &
    head=$!
}
start_head
until grep --quiet "Ray runtime started" "$ray_log"; do
    if ((SECONDS > 300)); then echo "Ray does not start: see $ray_log" && exit 1; fi
    kill -0 "$head" 2>/dev/null || start_head
    sleep 1
done
if ((more_nodes)); then
    exec 3> >(exec srun --nodes="$more_nodes" --ntasks="$more_nodes" --relative=1 \
        bash -c node_of_study &>>"$ray_log")
    others=$!
fi

trap 'told_to_end=yes; kill -TERM "$study"' TERM
{ all_nodes_joined && exec python -u -m search.run "$@" --address "$host:$port"; } 3>&- &
study=$!
while kill -0 "$study" 2>/dev/null; do wait "$study"; done  # a signal ends `wait`, not the study
wait "$study"
status=$?

# First the other nodes: one whose head has gone ends in alarm.
exec 3>&-
if ((more_nodes)); then wait "$others"; fi
kill "$head"
wait "$head"
# A job that SLURM itself ends (cancelled, or requeued at once) is no longer running. 143: the study
# had not begun.
if [[ $told_to_end && $status =~ ^(75|143)$ ]] &&
    [[ $(scontrol show job "$SLURM_JOB_ID") == *JobState=RUNNING* ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
