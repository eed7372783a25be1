"""The device of a trial: which one, its name, and the most memory a trial held."""

import platform
import resource
from pathlib import Path

import torch

GIB = 2**30


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
