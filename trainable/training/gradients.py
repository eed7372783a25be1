"""The gradients of several ranks: one buffer, one exchange an update."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainable.host.ranks import Ranks

NUM_SUMS = 2  # beside the gradients: of the loss, and of correct predictions


class SharedGradients:
    """A buffer for the gradients of the trained parameters, which is there from the start.

    So memory does not run out in the middle of an exchange, where the other ranks wait.
    """

    def __init__(self, parameters: Sequence[Tensor], ranks: Ranks) -> None:
        """Make room for all gradients."""
        self.parameters, self.ranks = parameters, ranks
        num_values = sum(parameter.numel() for parameter in parameters)
        self.buffer = torch.zeros(num_values + NUM_SUMS, device=parameters[0].device)
        self.parts: list[Tensor] = []  # of the buffer, laid out as the parameters are
        first = 0
        for parameter in parameters:
            part = self.buffer[first : first + parameter.numel()]
            self.parts.append(part.as_strided(parameter.shape, parameter.stride()))
            first += parameter.numel()

    @torch.no_grad()
    def add_up(self, sums: Tensor) -> Tensor:
        """Replace all gradients by their sums over the ranks; returns those of `sums` (2,)."""
        pairs = [
            (part, parameter.grad)
            for part, parameter in zip(self.parts, self.parameters, strict=True)
            if parameter.grad is not None
        ]
        parts, gradients = [part for part, _ in pairs], [gradient for _, gradient in pairs]
        torch._foreach_copy_(parts, gradients)
        self.buffer[-NUM_SUMS:] = sums
        self.ranks.sum_(self.buffer)
        torch._foreach_copy_(gradients, parts)
        return self.buffer[-NUM_SUMS:].clone()
