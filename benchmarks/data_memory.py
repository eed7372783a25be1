"""How many copies of the data are in memory when two trials use it: one copy is 1.0.

    python -m benchmarks.data_memory FOLDER CACHE    (one of the two, for benchmarks.trial)

Two processes open one cached data set and read every byte, as a trial on a CPU does. The ratio
counts the mapped pages of its files, each divided by the processes that share it (PSS), and the
growth of each process's own memory; divided by the size of the files.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.plain_training import write_patches
from trainable.data.batches import DeviceSplit, to_device
from trainable.data.cache import Dataset, Split, open_data

PROCESSES = 2
IMAGES = 12_000  # 332 MB: a process's own ups and downs are small beside it
READ_IMAGES = 256


def data_memory_ratio(data: Dataset, folder: Path) -> float:
    """Memory of the data over its size, with two processes that use it. Writes into `folder`."""
    write_patches(data, folder, train_images=IMAGES, val_images=256)
    cache = folder / "cache"
    command = [sys.executable, "-m", "benchmarks.data_memory", str(folder), str(cache)]
    # The first process decodes the data, which is not measured.
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    files = list(cache.rglob("*.npy"))
    processes: list[subprocess.Popen[str]] = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    try:
        grown = [json.loads(answer(process))["grown_bytes"] for process in processes]
        mapped = sum(mapped_bytes(process.pid, cache) for process in processes)
    finally:
        for process in processes:
            process.communicate("")
    return float(mapped + sum(grown)) / sum(file.stat().st_size for file in files)


def answer(process: "subprocess.Popen[str]") -> str:
    """The next line that a process prints.

    Raises:
        RuntimeError: it ended instead; standard error has the reason.
    """
    assert process.stdout is not None  # noqa: S101
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"process {process.pid} ended with status {process.wait()}")
    return line


def mapped_bytes(pid: int, folder: Path) -> int:
    """A process's share of the pages of files in a folder that it maps."""
    total, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = str(folder) in line
        elif inside and line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    return total


def own_bytes() -> int:
    """This process's anonymous memory, which no file backs."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024


def read_all(split: DeviceSplit) -> int:
    """Read every byte."""
    parts = split.images_NHWC.split(READ_IMAGES)
    return sum(int(part.sum(dtype=torch.int64)) for part in parts)


def split_on_cpu(split: Split) -> DeviceSplit:
    """The split as a trial uses it."""
    return to_device(split, num_images=None, image_size=None, device=torch.device("cpu"))


def main() -> None:
    """Use the data, print how much this process grew, and wait until standard input ends."""
    folder, cache = (Path(argument) for argument in sys.argv[1:])
    torch.set_num_threads(1)
    warm_up = torch.zeros(READ_IMAGES, 96, 96, 3, dtype=torch.uint8)
    read_all(DeviceSplit(images_NHWC=warm_up, labels_N=torch.zeros(READ_IMAGES)))
    before = own_bytes()
    data = open_data("pcam", folder, cache_dir=cache)
    splits: list[Any] = [split_on_cpu(split) for split in (data.train, data.val)]
    read = sum(read_all(split) for split in splits)
    growth = {"grown_bytes": own_bytes() - before, "read": read, "pid": os.getpid()}
    print(json.dumps(growth), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
