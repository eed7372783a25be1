"""The device of a trial: which one, its name, its clock, its memory and its threads."""

import ctypes
import gc
import math
import os
import platform
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

Result = TypeVar("Result")

GIB = 2**30
# An estimate of the memory that CUDA itself takes in each process. PyTorch neither counts nor
# limits it, and it differs by GPU and driver.
CONTEXT_GIB = 0.5
FREE_PART = 0.8  # of a trial's share: CUDA contexts and other programs take some of it
POLL_S = 0.5
MEMORY_WAIT_S = 30.0  # less than what makes a silent worker count as hung
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


def device_time_s(device: torch.device) -> float:
    """A clock in seconds. On a GPU it waits until all queued kernels have finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def set_threads(num_threads: int) -> None:
    """Set the number of threads of PyTorch, and of the BLAS that NumPy and SciPy use.

    Workers inherit `OMP_NUM_THREADS` from the process that started Ray, and PyTorch does not set
    the threads of BLAS.
    """
    torch.set_num_threads(num_threads)
    threadpool_limits(limits=num_threads)


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU, keep freed memory in the process for the next tensors.

    By default the C library returns large blocks to the system at once. It then asks for new ones,
    with zeroed pages, for every activation: this takes a tenth of a small network's time or more.
    Memory that an earlier trial left is returned to the system here.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    # Older versions accept at most 32 MiB. The second setting alone would make training slower.
    if any(libc.mallopt(M_MMAP_THRESHOLD, size) for size in (2**30, 2**25)):
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.malloc_trim(0)


def limit_memory(device: torch.device, share: float) -> None:
    """Limit this process to its share of the GPU's memory; no limit for a whole GPU.

    The limit belongs to the process, so each trial sets it: a reused worker may get another share.
    """
    if device.type != "cuda":
        return
    fraction = 1.0
    if 0 < share < 1:
        _, total_bytes = torch.cuda.mem_get_info(device)
        fraction = max(share / 2, share - CONTEXT_GIB * GIB / total_bytes)
    torch.cuda.set_per_process_memory_fraction(fraction, device.index)  # it rejects a bare `cuda`


def wait_for_memory(device: torch.device, share: float, timeout_s: float) -> None:
    """Wait until most of the trial's share of the GPU is free.

    The process of the previous trial may still be exiting. Memory that this process has reserved,
    for the data that it keeps too, counts as free.

    Raises:
        RuntimeError: too little is free after `timeout_s`; the message says how much.
    """
    if device.type != "cuda":
        return
    deadline = time.monotonic() + timeout_s
    while True:
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        free_gib = (free_bytes + torch.cuda.memory_reserved(device)) / GIB
        wanted_gib = FREE_PART * share * total_bytes / GIB
        if free_gib >= wanted_gib:
            return
        if time.monotonic() >= deadline:
            raise RuntimeError(
                f"only {free_gib:.1f} of the GPU's {total_bytes / GIB:.1f} GiB are free after "
                f"{timeout_s:g} s, and this trial needs {wanted_gib:.1f}: stop other programs on "
                f"the GPU, or set a smaller gpus_per_trial"
            )
        time.sleep(POLL_S)


def claim_device(num_threads: int, share: float = 1.0, timeout_s: float = MEMORY_WAIT_S) -> None:
    """Limit this process to its threads and its share of a GPU, once the GPU's memory is free.

    Raises:
        RuntimeError: the memory is not free after `timeout_s`.
    """
    set_threads(num_threads)
    device = pick_device()
    if device.type == "cuda":
        gc.collect()  # in a process that is used again: a CUDA graph goes with its cycle alone
        torch.cuda.empty_cache()
    wait_for_memory(device, share, timeout_s)
    limit_memory(device, share)


def room_bytes(device: torch.device) -> int:
    """How much memory the data may take: half of the GPU memory that this process can still get.

    The trial's peak so far counts as used. On a CPU: a quarter of `host_free_bytes`.
    """
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        used = torch.cuda.max_memory_allocated(device)
        free_bytes += torch.cuda.memory_reserved(device) - used
        limit = torch.cuda.get_per_process_memory_fraction(device.index) * total_bytes
        return int(max(0, min(free_bytes, limit - used)) * DATA_PART)
    return int(host_free_bytes() / 4)


def host_free_bytes() -> float:
    """This process's share of the host's available memory: that of its cores among all; 0 unknown.

    Other trials run on the other cores.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return 0.0
    available = kib * 1024
    try:  # a container's own limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        available = min(available, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):  # there is no limit, or it is "max"
        pass
    share = torch.get_num_threads() / max(os.cpu_count() or 1, torch.get_num_threads())
    return max(0, available) * share


def set_precision(precision: str, device: torch.device, *, deterministic: bool = True) -> None:
    """Allow or forbid TF32; on a GPU, make the same seed give the same numbers, or be faster.

    The settings belong to the process, so each trial sets them. Operations that have no
    deterministic form on a GPU run all the same.

    Raises:
        ValueError: fp16 on a CPU, which does not support it.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision=fp16 needs a GPU; on a CPU use bf16 or fp32")
    if device.type != "cuda":
        return
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    # cuBLAS reads it once, at the first product of matrices.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # It would write all memory twice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")


def reset_peak_memory(device: torch.device) -> None:
    """Reset the memory peak: a reused worker still has the peak of earlier trials."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not permitted: the peak is then the whole process's
        return


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory since the reset: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    try:
        status = Path("/proc/self/status").read_text().splitlines()
        kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib * 1024 / GIB


def memory_held_gib(device: torch.device) -> tuple[float, float]:
    """Peak GPU memory of this process since the reset, CUDA's own included; and the GPU's total.

    Memory that other processes hold at the same time counts as CUDA's own.
    """
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    outside_gib = (total_bytes - free_bytes - torch.cuda.memory_reserved(device)) / GIB
    held_gib = torch.cuda.max_memory_reserved(device) / GIB + max(outside_gib, CONTEXT_GIB)
    return held_gib, total_bytes / GIB


def halve_until_it_fits(
    compute: Callable[[int], Result],
    size: int,
    *,
    before_retry: Callable[[int], None],
    multiple_of: int = 1,
) -> Result:
    """`compute(size)`; while memory runs out, halve the size, call `before_retry` and try again.

    The half is rounded up to a multiple of `multiple_of` as long as the size is larger than that.

    Raises:
        torch.OutOfMemoryError: not even a size of 1 fits.
    """
    while True:
        try:
            return compute(size)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = half_of(size, multiple_of=multiple_of)
        # After the except block: the error would keep its tensors alive.
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        before_retry(size)


def half_of(size: int, *, multiple_of: int) -> int:
    """Half of a size > 1, rounded up; to a multiple where the size is larger than one."""
    half = math.ceil(size / 2)
    return half if size <= multiple_of else math.ceil(half / multiple_of) * multiple_of
