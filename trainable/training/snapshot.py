"""What a failed attempt at an update must leave as it was: buffers and random states."""

import torch
from torch import Tensor, nn


class Snapshot:
    """The buffers of a network and the random states of its device, at the last `take`."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """Nothing is copied yet."""
        self.device = device
        self.buffers: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            self.buffers.setdefault(buffer.dtype, []).append(buffer)
        self.copies: dict[torch.dtype, list[Tensor]] = {}
        self.generator = self.cuda_generator = torch.empty(0)

    @torch.no_grad()
    def take(self) -> None:
        """Remember buffers and random states; one copy for all buffers of a type."""
        if not self.copies:
            self.copies = {t: [b.clone() for b in own] for t, own in self.buffers.items()}
        for dtype, own in self.buffers.items():
            torch._foreach_copy_(self.copies[dtype], own)
        self.generator = torch.get_rng_state()
        if self.device.type == "cuda":
            self.cuda_generator = torch.cuda.get_rng_state(self.device)

    @torch.no_grad()
    def restore(self) -> None:
        """Bring back what `take` remembered."""
        for dtype, own in self.buffers.items():
            torch._foreach_copy_(own, self.copies[dtype])
        torch.set_rng_state(self.generator)
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self.cuda_generator, self.device)
