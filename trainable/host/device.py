"""The device of a trial: which one, its name, its memory and its threads."""

import ctypes
import os
import platform
import resource
import time
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

GIB = 2**30
# What CUDA itself holds in each process, which torch neither counts nor limits. An estimate: it
# differs by GPU and driver.
CONTEXT_GIB = 0.5
FREE_PART = 0.8  # of a trial's share: contexts, and what else uses the GPU, take some
POLL_S = 0.5
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
DATA_PART = 0.5  # of the free memory: the rest is for the network and its activations


def pick_device() -> torch.device:
    """CUDA where this process has a GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """The hardware's own name, as the results state it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def set_threads(num_threads: int) -> None:
    """Let torch and the BLAS of NumPy and SciPy use so many threads, whatever the environment says.

    `OMP_NUM_THREADS` of whoever started Ray reaches its workers, and BLAS is no matter of torch's.
    """
    torch.set_num_threads(num_threads)
    threadpool_limits(limits=num_threads)


def keep_freed_memory(device: torch.device) -> None:
    """Let a process that trains on a CPU keep the memory that it frees, for its next tensors.

    The C library gives large blocks back to the system at once and takes new ones, whose pages are
    zeroed, for every activation: a tenth of a small network's time or more. What an earlier trial
    left is given back here.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    # Older ones take no more than 32 MiB. The second setting alone would make it slower.
    if any(libc.mallopt(M_MMAP_THRESHOLD, size) for size in (2**30, 2**25)):
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.malloc_trim(0)


def limit_memory(device: torch.device, share: float) -> None:
    """Let this process take its share of the GPU's memory and no more; all of it for a whole GPU.

    The limit is the process's, so each trial sets it: a worker may be used again with another.
    """
    if device.type != "cuda":
        return
    fraction = 1.0
    if 0 < share < 1:
        _, total_bytes = torch.cuda.mem_get_info(device)
        fraction = max(share / 2, share - CONTEXT_GIB * GIB / total_bytes)
    torch.cuda.set_per_process_memory_fraction(fraction, device.index)  # refuses a bare `cuda`


def wait_for_memory(device: torch.device, share: float, timeout_s: float) -> None:
    """Wait until most of the trial's share of the GPU is free.

    The process of the trial before may be dying and hold it still. What this process has reserved
    and does not use counts as free.

    Raises:
        RuntimeError: it is not free in time; the message has how much is, and how much was wanted.
    """
    if device.type != "cuda":
        return
    deadline = time.monotonic() + timeout_s
    while True:
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        free_gib = (free_bytes + torch.cuda.memory_reserved(device)) / GIB
        free_gib -= torch.cuda.memory_allocated(device) / GIB
        wanted_gib = FREE_PART * share * total_bytes / GIB
        if free_gib >= wanted_gib:
            return
        if time.monotonic() >= deadline:
            raise RuntimeError(
                f"{free_gib:.1f} of the GPU's {total_bytes / GIB:.1f} GiB are free after "
                f"{timeout_s:g} s and this trial wants {wanted_gib:.1f}: end what else runs on the "
                f"GPU, or give a smaller gpus_per_trial"
            )
        time.sleep(POLL_S)


def room_bytes(device: torch.device) -> int:
    """What data may take: half of the GPU's memory that this process may still have.

    What a trial has needed at its most so far is not free. On a CPU a quarter of the memory that
    is available to this process's cores: other trials run on the others.
    """
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        used = torch.cuda.max_memory_allocated(device)
        free_bytes += torch.cuda.memory_reserved(device) - used
        limit = torch.cuda.get_per_process_memory_fraction(device.index) * total_bytes
        return int(max(0, min(free_bytes, limit - used)) * DATA_PART)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return 0
    available = kib * 1024
    try:  # a container's own limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        available = min(available, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):  # none, or "max"
        pass
    share = torch.get_num_threads() / max(os.cpu_count() or 1, torch.get_num_threads())
    return int(max(0, available) * share / 4)


def set_precision(precision: str, device: torch.device) -> None:
    """Let matrix units round to TF32 or not, and make the same seed give the same numbers.

    The settings are the process's, so each trial sets them.

    Raises:
        ValueError: fp16 on a CPU, which has no units for it.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision=fp16 needs a GPU: on a CPU take bf16 or fp32")
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True


def reset_peak_memory(device: torch.device) -> None:
    """Start counting anew: a worker that is reused has earlier trials' peak on record."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: the peak is then that of the whole process
        return


def peak_memory_gib(device: torch.device) -> float:
    """The most that was held since the reset: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    try:
        status = Path("/proc/self/status").read_text().splitlines()
        kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib * 1024 / GIB


def memory_held_gib(device: torch.device) -> tuple[float, float]:
    """The most that this process held of the GPU since the reset, with CUDA itself; and all it has.

    What other processes hold at the same time is counted as CUDA's own.
    """
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    outside_gib = (total_bytes - free_bytes - torch.cuda.memory_reserved(device)) / GIB
    held_gib = torch.cuda.max_memory_reserved(device) / GIB + max(outside_gib, CONTEXT_GIB)
    return held_gib, total_bytes / GIB
