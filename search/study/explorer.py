"""The one interface by which a study's trials are chosen, and what an explorer knows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from trainable.config import TrialConfig
from trainable.host.storage import Folder

if TYPE_CHECKING:
    from search.study.study import Study


@dataclass(frozen=True)
class PlannedTrial:
    """One trial that the study asks for.

    `step` names the step of an ablation and `variant` the variant that it belongs to. A trial with
    `whole` is trained to its end: the study's stopper does not see it.
    """

    key: str
    config: TrialConfig
    step: str = ""
    variant: str = ""
    whole: bool = False


@dataclass
class Tables:
    """What is known of a study's trials: which were asked for so far, and how they ended.

    `ended` maps a trial's key to what matters of its row: status, the study's metric, and what an
    explorer may weigh against it (`train_wall_s`, `peak_memory_gib`, `examples_seen`). `asked`
    grows as explorers ask; the same study and the same rows lead to the same list again. `memory`
    is an explorer's own: what it would otherwise work out anew at each question.
    """

    data_fingerprint: str
    folder: Folder
    ended: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    asked: list[PlannedTrial] = field(default_factory=list)
    memory: dict[Any, Any] = field(default_factory=dict)


class Chooser(Protocol):
    """What asks for trials: an explorer, or `Leaders` after it."""

    def check(self, study: "Study") -> None:
        """Raises ValueError where the study does not fit."""

    def total(self, study: "Study", tables: Tables) -> int:
        """How many trials it will have asked for, as far as the tables tell; repeats are one.

        Leaders wait until an explorer has asked for so many of the study's own seeds.
        """

    def next(self, study: "Study", tables: Tables, room: int) -> list[PlannedTrial]:
        """Trials that were not asked for before, and that the tables call for now.

        `room` is how many more could start now. An explorer that learns from results chooses no
        more than these; with room 0 it returns only what it chose in an earlier command. A trial
        that ended already may be returned: it counts as asked for and is not run again.
        """


class Explorer(Chooser, Protocol):
    """A way to choose trials: a frozen dataclass that a space file writes."""

    def domains(self, vary: Mapping[str, object]) -> dict[str, Any]:
        """What varies, as this explorer reads it: values to go through, or domains to draw from.

        Raises:
            ValueError: an entry is no domain, or not one that this explorer can use.
        """

    def configs(self, study: "Study") -> list[TrialConfig]:
        """The configurations that are known before any trial has run, without seeds.

        Raises:
            ValueError: a combination of values cannot work.
        """

    def examples(self, study: "Study", tables: Tables, num: int) -> list[TrialConfig]:
        """`num` configurations such as it may still choose: a dry run estimates their cost.

        Raises:
            ValueError: a configuration that it may choose cannot work.
        """


class Stopper(Protocol):
    """A rule by which trials are stopped before their budget is spent."""

    @property
    def grace_share(self) -> float:
        """The share of the budget before which no trial is stopped."""

    @property
    def by_batch_size(self) -> bool:
        """Whether a trial competes only with those of its own batch size."""

    def check(self, study: "Study") -> None:
        """Raises ValueError where the study's budget is not one that it can count."""
