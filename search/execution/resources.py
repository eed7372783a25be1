"""What a trial takes of the cluster: cores, and a GPU or a share of one."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from rich.console import Console

from cluster.connect import TOKEN_HINT, Cluster, ConnectError
from search.execution.cost_estimate import MOST_KINDS, NO_MATTER, Share, kinds_of
from search.execution.packs import pack_size
from search.study.domains import probes
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.ray_adaptor import measure_trial

if TYPE_CHECKING:  # it imports torch
    from trainable.probe import MemoryUse

HEADROOM = 0.1  # of what was measured: memory is cut up, and some kernels are loaded late
GROWTH_AT_LEAST = 4  # trials that wait where a cluster has no node yet
RAY_STEP = 1e-4  # Ray counts a resource in such parts


def share_of(study: Study, config: TrialConfig) -> float:
    """The share of a GPU that a trial takes where there are GPUs, as a number that Ray can count.

    Under `auto` that is a whole one, until `with_measured_shares` says better.
    """
    shares = study.gpus_per_trial
    if isinstance(shares, str):
        return 1.0
    if isinstance(shares, Mapping):
        sizes = [size for size in sorted(shares) if size <= config.batch_size]
        shares = shares[sizes[-1] if sizes else min(shares)]
    if shares > 1:
        return float(shares)
    return round(math.floor(shares / RAY_STEP + 1e-6) * RAY_STEP, 4)  # a third: three fit


def resources_of(study: Study, cluster: Cluster, config: TrialConfig) -> dict[str, float]:
    """What a trial takes: a share of a GPU where the cluster has any, else cores alone.

    A cluster without a single core so far is one whose workers are still to come: with GPUs.
    """
    resources: dict[str, float] = {"CPU": study.cpus_per_trial}
    share = share_of(study, config)
    if share and (cluster.num_gpus or not cluster.num_cpus):
        resources["GPU"] = share
    return resources


def possible_resources(study: Study, cluster: Cluster) -> list[dict[str, float]]:
    """What the study's trials may take, the least first."""
    shares = study.gpus_per_trial
    sizes = sorted(shares) if isinstance(shares, Mapping) else [study.base.batch_size]
    needs = [resources_of(study, cluster, replace(study.base, batch_size=size)) for size in sizes]
    unique = [need for i, need in enumerate(needs) if need not in needs[:i]]
    return sorted(unique, key=lambda need: need.get("GPU", 0.0))


def slots(cluster: Cluster, resources: Mapping[str, float]) -> int:
    """How many trials that each take this run side by side; a share is a part of one GPU.

    Several GPUs of a trial are those of one node.
    """
    places = [int(cluster.num_cpus / resources["CPU"])]
    share = resources.get("GPU", 0.0)
    if share > 1:
        places.append(sum(math.floor(n / share) for n in cluster.gpus_of_nodes))
    elif share:
        places.append(cluster.num_gpus * math.floor(1 / share + 1e-9))
    return max(1, min(places))


def places(study: Study, cluster: Cluster) -> int:
    """How many trials to have under way: as many as fit; more where that makes a cluster grow.

    Ray starts nodes for trials that wait. So as many wait as run, and a few at the beginning.
    """
    fit = max(slots(cluster, need) for need in possible_resources(study, cluster))
    return max(2 * fit, GROWTH_AT_LEAST) if cluster.grows else fit


def mean_slots(study: Study, cluster: Cluster, shares: Sequence[Share]) -> int:
    """How many run side by side on average, where some take more than others.

    The harmonic mean over trials: a trial takes the n-th part of a cluster that has n places for
    its like.
    """
    parts = sum(s.count / slots(cluster, resources_of(study, cluster, s.config)) for s in shares)
    count = sum(s.count for s in shares)
    return max(1, math.floor(count / parts + 1e-9)) if parts else 1


def mean_gpu_share(study: Study, cluster: Cluster, shares: Sequence[Share]) -> float:
    """The share of a GPU that a trial takes on average; 0 where trials run on cores."""
    taken = sum(s.count * resources_of(study, cluster, s.config).get("GPU", 0.0) for s in shares)
    count = sum(s.count for s in shares)
    return taken / count if count else 0.0


def check_cluster(study: Study, cluster: Cluster, console: Console) -> None:
    """Print what there is to run on.

    Raises:
        ConnectError: a trial cannot run on it; the message says what to lower.
    """
    needs = possible_resources(study, cluster)
    least, most = needs[0], needs[-1]
    needed = ", ".join(
        f"{n:g} {kind}" if n == least[kind] else f"{least[kind]:g} to {n:g} {kind}"
        for kind, n in most.items()
    )
    console.print(
        f"Ray {version('ray')}, {cluster.num_nodes} node(s), {cluster.num_cpus} cores, "
        f"{cluster.num_gpus} GPUs; a trial takes {needed}"
        + ("" if "GPU" in most else " (no GPU here: trials run on cores)"),
        highlight=False,
    )
    if cluster.dashboard:
        console.print(
            f"dashboard: http://{cluster.dashboard}  (token: {TOKEN_HINT})", highlight=False
        )
    available = {"CPU": cluster.num_cpus, "GPU": cluster.num_gpus}
    for kind, n in most.items():
        field = "cpus_per_trial" if kind == "CPU" else "gpus_per_trial"
        if cluster.address == "local" and n > available[kind]:
            raise ConnectError(
                f"a trial takes {n:g} {kind} and this machine has {available[kind]}: lower {field}"
            )
        largest = max(cluster.cpus_of_nodes if kind == "CPU" else cluster.gpus_of_nodes, default=n)
        if n <= largest:
            continue
        if not cluster.grows:
            raise ConnectError(
                f"a trial takes {n:g} {kind} and no node has more than {largest:g}: lower {field}, "
                f"or start such a node"
            )
        console.print(
            f"no node has {n:g} {kind} yet: trials wait until the cluster starts one"
            + ("; --set gpus_per_trial=0 trains on cores" if kind == "GPU" else ""),
            style="yellow",
            highlight=False,
        )
    _check_parts(study, cluster)
    if "GPU" not in most and any(config.precision == "fp16" for config in study.configs):
        raise ConnectError("precision=fp16 needs a GPU, and there is none: take bf16 or fp32")


def _check_parts(study: Study, cluster: Cluster) -> None:
    """Raises ConnectError where a batch has fewer images than its trial has GPUs."""
    for config in study.configs:
        num_gpus = resources_of(study, cluster, config).get("GPU", 0.0)
        if num_gpus > config.batch_size:
            raise ConnectError(
                f"a batch of {config.batch_size} has less than one image for each of "
                f"{num_gpus:g} GPUs: lower gpus_per_trial, or give it by batch size, such as "
                f"gpus_per_trial={{1: 1, {math.ceil(num_gpus)}: {num_gpus:g}}}"
            )


def share_that_fits(need_gib: float, total_gib: float, *, most: int) -> float:
    """The share of a GPU, 1/n, that holds what a trial needs and headroom; n is at most `most`.

    1 where not even two fit: a trial that is too large for a GPU halves its microbatch.
    """
    fits = int(total_gib / (need_gib * (1 + HEADROOM)))
    return 1 / max(1, min(fits, most))


def with_measured_shares(
    study: Study, cluster: Cluster, data_folder: Path | None, console: Console
) -> Study:
    """The study with `auto` replaced by shares of a GPU, measured where its trials will run.

    A few updates and an evaluation of each kind of trial, each in a process of its own with a
    whole GPU. Another study, and any on a cluster without GPUs, is given back as it is.

    Raises:
        ConnectError: a configuration cannot be measured; the message says why.
    """
    if study.gpus_per_trial != "auto" or "GPU" not in resources_of(study, cluster, study.base):
        return study
    # Two of a kind take the same memory, and of numbers that vary the ends of the range are known.
    kinds = list(kinds_of(Share(config) for config in _corners(study)).values())[:MOST_KINDS]
    console.print(
        f"gpus_per_trial=auto: measuring the memory of {len(kinds)} kinds of trial",
        highlight=False,
    )
    measured = _measured(study, kinds, data_folder)
    total_gib = min(memory.total_gib for memory in measured)
    needs_gib: dict[int, float] = {}
    for config, memory in zip(kinds, measured, strict=True):
        size = config.batch_size
        need_gib = memory.need_gib * pack_size(study, config)  # less: a pack shares its images
        needs_gib[size] = max(need_gib, needs_gib.get(size, 0.0))
    have = ray.cluster_resources()  # of now: a cluster may have grown for the measurement
    most = int(have["CPU"] / have["GPU"] / study.cpus_per_trial)  # more have no cores
    shares = shares_by_batch_size(needs_gib, total_gib, most=most)
    for size, share in zip(sorted(needs_gib), shares.values(), strict=True):
        n = round(1 / share)
        who = "1 trial takes a whole GPU" if n == 1 else f"{n} trials share a GPU"
        console.print(
            f"  batch {size}: {who}: {needs_gib[size]:.1f} of {total_gib:.0f} GiB each",
            highlight=False,
        )
    return replace(study, gpus_per_trial=shares)


def shares_by_batch_size(
    needs_gib: Mapping[int, float], total_gib: float, *, most: int
) -> dict[int, float]:
    """Shares by the smallest batch size that each applies from.

    A batch size between two measured ones takes what the larger one needs, and none takes less
    than a smaller one.
    """
    shares, begins, need_gib = {}, 1, 0.0
    for size in sorted(needs_gib):
        need_gib = max(need_gib, needs_gib[size])
        shares[begins] = share_that_fits(need_gib, total_gib, most=most)
        begins = size + 1
    return shares


def _corners(study: Study) -> list[TrialConfig]:
    """Every configuration of a grid; of a search, those at the ends of what decides memory."""
    if all(isinstance(domain, dict) for domain in study.vary.values()):
        return study.configs
    names = [name for name in study.vary if name not in NO_MATTER]
    corners = itertools.product(*(probes(study.vary[name]) for name in names))
    changes: list[dict[str, Any]] = [dict(zip(names, corner, strict=True)) for corner in corners]
    return [replace(study.base, **change) for change in changes]


def _measured(
    study: Study, configs: Sequence[TrialConfig], data_folder: Path | None
) -> "list[MemoryUse]":
    task = ray.remote(num_cpus=study.cpus_per_trial, num_gpus=1)(measure_trial)
    asked = [
        {
            "config": asdict(replace(config, begins_from=None, until_share=1.0)),
            "data_folder": str(data_folder) if data_folder else None,
            "num_cpus": study.cpus_per_trial,
        }
        for config in configs
    ]
    try:
        measured: list[MemoryUse] = ray.get([task.remote(question) for question in asked])
    except RayError as error:
        why = " ".join(str(getattr(error, "cause", error)).split())
        raise ConnectError(
            f"gpus_per_trial=auto cannot be measured: {why}; say it as a number, such as "
            f"--set gpus_per_trial=1"
        ) from error
    return measured
