"""The processes that train one trial together, one a GPU: who has which part, and what they share.

Every rank runs the same code on its part of each batch. Where ranks need each other, all of them
call the same methods of `Ranks` in the same order. A rank alone shares nothing: each method then
returns at once what it was given.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")

GO, END, LEAVE = "go", "end", "leave"  # what the first rank tells the others before each interval


class RankLostError(RuntimeError):
    """Another rank of the trial has ended, or does not answer."""


class LeftError(Exception):
    """The first rank wants no more of this trial."""


class MemoryElsewhereError(torch.OutOfMemoryError):
    """Memory has run out in another rank, so that all of them try again."""


def bounds(total: int, size: int, unit: int = 1) -> list[int]:
    """Where the parts of `total` images begin, and where the last one ends; one part for each rank.

    Parts differ by one unit at most, and the last also has the rest. With fewer units than ranks a
    unit is one image.
    """
    unit = unit if total // unit >= size else 1
    return [total // unit * rank // size * unit for rank in range(size)] + [total]


class Ranks:
    """One process's place among those that train a trial together; alone by default.

    `tell` sends a word to the other ranks: the first rank has it. `hear` waits for the next one:
    the others have that.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        *,
        tell: Callable[[str], None] | None = None,
        hear: Callable[[], str] | None = None,
    ) -> None:
        """Nothing is exchanged yet."""
        self.rank, self.size = rank, size
        self._tell, self._hear = tell, hear
        self._shared = torch.zeros(1)  # how many ran out of memory, and then what is exchanged

    def __deepcopy__(self, memo: object) -> "Ranks":
        """The same ranks: a copy of a network exchanges with those of the network."""
        return self

    # --- parts ------------------------------------------------------------------------------------

    def lengths(self, total: int, unit: int = 1) -> list[int]:
        """How many of `total` images each rank has."""
        return [last - first for first, last in pairwise(bounds(total, self.size, unit))]

    def part(self, total: int, unit: int = 1) -> range:
        """This rank's images of `total`."""
        return range(*bounds(total, self.size, unit)[self.rank : self.rank + 2])

    # --- what all ranks know then -----------------------------------------------------------------

    def sum_(self, values: Tensor) -> Tensor:
        """Replace the values by their sums over all ranks, the same bits in each."""
        if self.size > 1:
            with _others_needed():
                dist.all_reduce(values)
        return values

    def largest(self, value: float) -> float:
        """The largest of the ranks' values."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, dtype=torch.float64)
        with _others_needed():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.item()

    def of_first(self, value: Result) -> Result:
        """What the first rank has."""
        if self.size == 1:
            return value
        values = [value]
        with _others_needed():
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    # --- where memory may run out -----------------------------------------------------------------

    def reserve(self, num_values: int, device: torch.device) -> None:
        """Make room for the most values that `exchange` shares at once."""
        self._shared = torch.zeros(1 + num_values, device=device)

    def exchange(self, values: Tensor) -> Tensor:
        """The sums of the values (N,) over all ranks, in an attempt that memory may end.

        Every exchange has one size. So a rank that ran out of memory ends the attempt of the others
        in whichever exchange they are.

        Raises:
            MemoryElsewhereError: another rank ran out of memory.
        """
        self._shared.zero_()
        self._shared[1 : 1 + len(values)] = values
        if self.sum_(self._shared)[0] > 0:
            raise MemoryElsewhereError("memory ran out in another rank")
        return self._shared[1 : 1 + len(values)].clone()

    def agree(self) -> None:
        """Go on if no rank ran out of memory.

        Raises:
            MemoryElsewhereError: one did.
        """
        if self.size > 1:
            self.exchange(self._shared[:0])

    def together(self, attempt: Callable[[int], Result]) -> Callable[[int], Result]:
        """The attempt, but memory that runs out in one rank runs out in all of them.

        The attempt ends with `agree`, or with an exchange.
        """
        if self.size == 1:
            return attempt

        def attempt_of_all(size: int) -> Result:
            try:
                return attempt(size)
            except MemoryElsewhereError:
                raise
            except torch.OutOfMemoryError:
                self._shared.zero_()
                self._shared[0] = 1
                self.sum_(self._shared)
                raise

        return attempt_of_all

    # --- from one interval to the next ------------------------------------------------------------

    def goes_on(self, wanted: bool) -> bool:
        """Whether the first rank wants another interval. It may think about it for any time.

        Raises:
            LeftError: it wants no more of this trial, not even its end.
        """
        if self._tell is not None:
            self._tell(GO if wanted else END)
        if self._hear is None:
            return wanted
        word = self._hear()
        if word == LEAVE:
            raise LeftError
        return word == GO

    def leave(self) -> None:
        """Tell the others, who wait in `goes_on`, to leave the trial as it is."""
        if self._tell is not None:
            self._tell(LEAVE)


ALONE = Ranks()


@contextmanager
def _others_needed() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(f"another rank has ended or does not answer: {error}") from error
