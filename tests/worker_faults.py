"""What a worker's start-up hook does to its process, for tests/test_faults.py."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any


def out_of_memory() -> None:
    """Let the third step of the trial find no memory, as CUDA says it."""
    import torch

    from trainable.training.step import Step

    accumulate, calls = Step._accumulate, []

    def short_of_memory(self: Any, *batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            Path(os.environ["FAULT_SEEN"]).touch()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return accumulate(self, *batch)

    Step._accumulate = short_of_memory  # type: ignore[method-assign]


def slow_disk() -> None:
    """Let each file take a second to be written."""
    import time

    from trainable.host import storage

    write_once = storage.write_once

    def slowly(*file: Any, **more: Any) -> None:
        time.sleep(1)
        write_once(*file, **more)

    storage.write_once = slowly


def no_data() -> None:
    """Let one node, the first that opens the data, not have it."""
    import ray

    from trainable.data import cache
    from trainable.data.sources import DataError

    seen, open_data = Path(os.environ["FAULT_SEEN"]), cache.open_data

    def missing(name: str, *place: Any, **more: Any) -> Any:
        context = ray.get_runtime_context()
        if context.get_actor_id() is None:  # the check of nodes before the first trial
            return open_data(name, *place, **more)
        with suppress(FileExistsError), open(seen, "x") as file:
            file.write(context.get_node_id())
        if seen.read_text() == context.get_node_id():
            raise DataError(f"no {name} data in /data: it was unmounted")
        return open_data(name, *place, **more)

    cache.open_data = missing


def poisoned_host() -> None:
    """Let every trial on one node, the first that trains, end in an error of CUDA's."""
    import ray
    import torch

    from trainable.training.step import Step

    seen = Path(os.environ["FAULT_SEEN"])
    update = Step.update

    def poisoned(self: Any, *batch: Any) -> Any:
        node = ray.get_runtime_context().get_node_id()
        with suppress(FileExistsError), open(seen, "x") as file:
            file.write(node)
        if seen.read_text() in (node, "all"):
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return update(self, *batch)

    Step.update = poisoned  # type: ignore[method-assign]
