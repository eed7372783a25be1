"""Trials that train together in one process: one after the other, each batch.

Images, augmentation and the output of frozen blocks are made once for all of them. Each trial has
its own network and random states: its numbers are those of the trial alone, bit for bit on a CPU.
"""

import copy
import gc
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainable.config import TrialConfig
from trainable.data.cache import Dataset
from trainable.feed import Feed
from trainable.host.device import device_time_s, host_free_bytes
from trainable.host.ranks import ALONE, Ranks
from trainable.host.storage import Folder
from trainable.record import EpochResult, TrialResult
from trainable.trial import Trial, new_network

# What a trial has besides its network, in copies of what it trains: gradients, the optimizer's two
# moments, an average, and the weights of the best evaluation.
STATES = 5
MEMORY_PART = 0.8  # of this process's share of the free memory: activations take some of it
Outcome = EpochResult | TrialResult | Exception


@dataclass(frozen=True, kw_only=True)
class Member:
    """A trial of a pack. Its folders are those of `finetune`."""

    config: TrialConfig
    checkpoint_folder: Folder | None = None
    start_folder: Folder | None = None


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the trials of a pack have in common besides their images; see `finetune`."""

    data: Dataset
    device: torch.device
    keep_weights: bool = False
    checkpoint_every_s: float = 0.0
    ranks: Ranks = ALONE


def train_pack(
    members: Sequence[Member], terms: Terms, *, is_stopped: Callable[[int], bool] = lambda _: False
) -> Generator[tuple[int, Outcome], None, None]:
    """Train the members; yield (index of the member, what it reports), as it comes.

    Each reports its evaluations and then its TrialResult. An error of one member is what that
    member reports, and the others go on. After an evaluation, `is_stopped(index)` says whether the
    member leaves without a result. If memory runs out, one half of the pack is trained after the
    other, each member from its last checkpoint; a member alone halves its microbatch.
    """
    groups = [list(range(len(members)))]
    num_reported = [0] * len(members)
    while groups:
        group = groups.pop(0)
        pack = _Pack({index: members[index] for index in group}, terms, is_stopped)
        try:
            for index, outcome in pack.outcomes():
                if isinstance(outcome, EpochResult):
                    if outcome.epoch <= num_reported[index]:
                        continue  # trained again after memory ran out
                    num_reported[index] = outcome.epoch
                try:
                    yield index, outcome
                except GeneratorExit:
                    if isinstance(outcome, EpochResult):  # who asked for it wants no more
                        terms.ranks.leave()
                    raise
            continue
        except torch.OutOfMemoryError:
            if len(group) == 1:
                raise
            rest = [index for index in group if index not in pack.left]
        finally:
            pack.close()
        del pack  # after the except block: the error would keep its tensors alive
        gc.collect()  # networks and their hooks refer to each other
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        middle = (len(rest) + 1) // 2
        groups = [half for half in (rest[:middle], rest[middle:]) if half] + groups


class _Seat:
    """A member's trial, its random states between its turns, and its share of the time."""

    def __init__(self, index: int, device: torch.device) -> None:
        """Without a trial yet, which needs this clock."""
        self.index, self.device = index, device
        self.states: list[Tensor] = []
        self.seconds = 0.0
        self.alone_since: float | None = None
        self.trial: Trial

    def clock(self) -> float:
        """The member's share of the rounds that all take part in, and all of its own turns."""
        if self.alone_since is None:
            return self.seconds
        return self.seconds + device_time_s(self.device) - self.alone_since

    @contextmanager
    def turn(self) -> Iterator[None]:
        """In this context the random states are the member's."""
        if self.states:
            torch.set_rng_state(self.states[0])
            for state in self.states[1:]:
                torch.cuda.set_rng_state(state, self.device)
        yield
        on_gpu = self.device.type == "cuda"
        gpu_states = [torch.cuda.get_rng_state(self.device)] if on_gpu else []
        self.states = [torch.get_rng_state(), *gpu_states]

    @contextmanager
    def own_turn(self) -> Iterator[None]:
        """In this context the time is all the member's too."""
        self.alone_since = device_time_s(self.device)
        with self.turn():
            yield
        self.seconds, self.alone_since = self.clock(), None


class _Pack:
    """The trials that are under way, which have one feed."""

    def __init__(
        self, members: Mapping[int, Member], terms: Terms, is_stopped: Callable[[int], bool]
    ) -> None:
        """Nothing is built yet."""
        self.members, self.terms, self.is_stopped = members, terms, is_stopped
        self.size = len(members)
        self.seats: list[_Seat] = []
        self.left: list[int] = []  # the members that have ended
        self.feed: Feed | None = None
        self.network: nn.Module | None = None  # of all members, before its first update

    def outcomes(self) -> Iterator[tuple[int, Outcome]]:
        """Each member's index and what it reports.

        Raises:
            torch.OutOfMemoryError: the members do not fit together.
        """
        for index, member in self.members.items():
            seat = _Seat(index, self.terms.device)
            try:
                self._seat(seat, member)
            except Exception as error:
                self._fail(index, error)
                yield index, error
        self.network = None
        for seat in list(self.seats):
            yield from self._again(seat)
        while self.seats:
            for seat, failure in self._round():
                yield from self._news(seat, failure)

    def _seat(self, seat: _Seat, member: Member) -> None:
        """Build the member's trial."""
        if self.network is None:
            classes = len(self.terms.data.classes)
            self.network = new_network(member.config, num_classes=classes)
        is_last = len(self.left) + len(self.seats) == self.size - 1
        network = self.network if is_last else copy.deepcopy(self.network)
        seat.trial = Trial(
            member.config,
            self.terms.data,
            self.terms.device,
            member.checkpoint_folder,
            member.start_folder,
            self.terms.checkpoint_every_s,
            self.terms.ranks,
            feed=self.feed,
            network=network,
            clock=seat.clock if self.size > 1 else None,
        )
        seat.trial.pack_size = self.size
        seat.trial.step.may_halve = self.size == 1
        self.feed = seat.trial.feed
        self.feed.is_shared = self.size > 1
        self.seats.append(seat)
        self._check_room(seat.trial)

    def _check_room(self, trial: Trial) -> None:
        """Of a CPU's memory too much would not be refused: the system would end the process.

        Raises:
            torch.OutOfMemoryError: so many networks, with what trains them, do not fit.
        """
        if self.size == 1 or self.terms.device.type != "cpu":
            return
        network_bytes = sum(p.numel() * p.element_size() for p in trial.model.parameters())
        trained_bytes = sum(p.numel() * p.element_size() for p in trial.step.trained)
        needed_bytes = network_bytes + STATES * trained_bytes
        free_bytes = host_free_bytes()
        if free_bytes and needed_bytes * (self.size - len(self.seats)) > MEMORY_PART * free_bytes:
            raise torch.OutOfMemoryError("the trials of this pack do not fit together")

    def _again(self, seat: _Seat) -> Iterator[tuple[int, Outcome]]:
        """What a member that goes on has reported before, and its end if that was all."""
        for result in list(seat.trial.results):
            yield seat.index, result
            if self.is_stopped(seat.index):
                self._leave(seat.index)
                return
        yield from self._end_if_over(seat)

    def _round(self) -> list[tuple[_Seat, Exception | None]]:
        """One update each of those that are furthest behind; returns those to evaluate or failed.

        So members that go on from different places come together, and have the same batch.
        """
        started_s = time.perf_counter()
        behind = min(seat.trial.examples_seen for seat in self.seats)
        seats = [seat for seat in self.seats if seat.trial.examples_seen == behind]
        due: list[tuple[_Seat, Exception | None]] = []
        for seat in seats:
            try:
                with seat.turn():
                    is_due = seat.trial.update()
            except Exception as error:
                due.append((seat, error))
            else:
                due += [(seat, None)] if is_due else []
        # The clock waits for a GPU: so only before an evaluation, which does that anyway.
        now_s = device_time_s(self.terms.device) if due else time.perf_counter()
        for seat in seats:
            seat.seconds += (now_s - started_s) / len(seats)
        return due

    def _news(self, seat: _Seat, error: Exception | None) -> Iterator[tuple[int, Outcome]]:
        """An evaluation, and the end if it is the last one; or what went wrong."""
        result, reason = None, ""
        if error is None:
            try:
                with seat.own_turn():
                    result, reason = seat.trial.evaluate()
            except Exception as caught:
                error = caught
        if error is not None:
            self._fail(seat.index, error)
            yield seat.index, error
            return
        if result is not None:
            yield seat.index, result
        if self.is_stopped(seat.index):
            self._leave(seat.index)
        else:
            yield from self._end_if_over(seat, reason)

    def _end_if_over(self, seat: _Seat, reason: str = "") -> Iterator[tuple[int, Outcome]]:
        """The summary of a member that diverged, for this reason, or has used its budget up."""
        if self.terms.ranks.goes_on(not seat.trial.is_over and not reason):
            return
        outcome: Outcome
        try:
            with seat.own_turn():
                outcome = seat.trial.finish(reason, keep=self.terms.keep_weights)
        except Exception as error:
            self._fail(seat.index, error)
            outcome = error
        else:
            self._leave(seat.index)
        yield seat.index, outcome

    def _fail(self, index: int, error: Exception) -> None:
        """Let go of a member with an error of its own.

        Raises:
            torch.OutOfMemoryError: others took its memory.
            Exception: of several ranks the error may be another's.
        """
        taken_by_others = self.size > 1 and isinstance(error, torch.OutOfMemoryError)
        if taken_by_others or self.terms.ranks.size > 1:
            raise error
        self._leave(index)

    def _leave(self, index: int) -> None:
        """Let go of a member that has ended, and of its memory."""
        for seat in [seat for seat in self.seats if seat.index == index]:
            seat.trial.close()
            self.seats.remove(seat)
            del seat.trial  # its clock is the seat's, so that each would keep the other
        self.left.append(index)

    def close(self) -> None:
        """Wait for states that are being written; let go of all trials."""
        for seat in self.seats:
            seat.trial.close()
            del seat.trial
        self.seats.clear()
