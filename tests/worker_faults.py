"""What a worker's start-up hook does to its process, for tests/test_faults.py."""

import os
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
