#!/bin/bash
# What needs a GPU, from a clean copy of the repository: no network, no Ray.
#
#     benchmarks/on_gpu.sh [tests|table|packs|study|trial]
#
# Without a part, all of them in this order, in 25 minutes at most. Each part ends by itself before
# its limit, and keeps what it has if it does not:
#     tests   4:00   pytest -m gpu
#     table   7:20   benchmarks.gpu: an epoch by batch size, graphs and packs, beside plain loops
#     packs   3:00   benchmarks.packs: trials an hour, packed and one by one
#     study   7:10   benchmarks.gpu_study: MobileNet-V2 at batch 16 to 1,024 by seven rates
#     trial   3:30   benchmarks.trial, which measures on the CPU alone: so it is last
# Python needs torch, torchvision, timm, pandas, pyarrow, h5py, rich, scikit-learn, statsmodels,
# psutil, threadpoolctl, pytest, pytest-timeout and pytest-xdist.
#
# PYTHON   default python3
# DATA     folder of PatchCamelyon patches, default ../shared/data/pcam_small
# WEIGHTS  state_dict of torchvision's mobilenet_v2,
#          default ../shared/data/weights/mobilenet_v2_imagenet_from_keras_int8.pth
# OUT      folder for a log of each part, gpu.json and gpu_study.parquet, default out_gpu
# Relative folders are those of the repository.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
data=${DATA:-../shared/data/pcam_small}
weights=${WEIGHTS:-../shared/data/weights/mobilenet_v2_imagenet_from_keras_int8.pth}
out=${OUT:-out_gpu}
mkdir -p "$out"
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 DATA_CACHE_DIR=$cache
status=0

part() {  # name, seconds, words for Python
    local name=$1 limit_s=$2
    shift 2
    echo "== $name"
    timeout --kill-after=10 "$limit_s" "$python" "$@" 2>&1 | tee "$out/$name.log" || status=$?
}

tests() {
    # In this process, and with other versions than ours, whose warnings are no errors.
    # shellcheck disable=SC2046  # a word for each file
    part tests 240 -m pytest -q -n 0 -m gpu -W default --no-showlocals --durations=10 \
        -p no:cacheprovider $(grep -l "mark.gpu" tests/test_*.py)
}
table() { part table 440 -m benchmarks.gpu --seconds 370 --out "$out/gpu.json"; }
packs() { part packs 180 -m benchmarks.packs --repeats 1; }
study() {
    part study 430 -m benchmarks.gpu_study --data "$data" --weights "$weights" \
        --seconds 390 --out "$out/gpu_study.parquet"
}
trial() { part trial 210 -m benchmarks.trial --data "$data" --repeats 1 --seeds 2; }

case ${1:-all} in
    all) tests; table; packs; study; trial ;;
    tests | table | packs | study | trial) "$1" ;;
    *) echo "on_gpu.sh: no part $1: take tests, table, packs, study or trial" >&2; exit 2 ;;
esac
exit "$status"
