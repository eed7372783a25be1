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
