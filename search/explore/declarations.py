"""How a study's configurations are chosen, and which trials are stopped early: declarations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SAMPLERS = ("tpe", "gp", "cmaes", "random", "nsga2")
OBJECTIVES = {"train_wall_s": "min", "peak_memory_gib": "min", "examples_seen": "min"}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every combination of the values, once a seed.

    With `widen`, a batch size whose best lr lies on the edge of the grid gets the next value beyond
    it (by the grid's own ratio), until the best is interior or `widen` values were added.
    `refine` adds so many values on either side of each batch size's best, between it and its
    neighbours.
    """

    widen: int = 0
    refine: int = 0

    def __post_init__(self) -> None:
        """Check both counts."""
        check_whole("widen", self.widen, low=0)
        check_whole("refine", self.refine, low=0)


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Steps that are added one after the other, each on top of those before it.

    `steps` maps what a step is called to the fields that it changes; the first may change none.
    Where fields vary too, the steps are taken at every combination of their values.
    """

    steps: Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class Variants:
    """The same grid under several settings side by side, such as budgets.

    `each` maps what a variant is called to the fields that it changes:
    `{"equal epochs": {"epochs": 10}, "equal updates": {"epochs": None, "updates": 5000}}`.
    """

    each: Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class Random:
    """So many configurations drawn from the domains, the same ones in every run.

    `points` are tried first; each gives all fields that vary.
    """

    num_configs: int
    points: Sequence[Mapping[str, object]] = ()
    sampling_seed: int = 0

    def __post_init__(self) -> None:
        """Check the count."""
        check_whole("num_configs", self.num_configs, low=1)


@dataclass(frozen=True, kw_only=True)
class Optuna:
    """So many configurations suggested by an Optuna sampler, which learns from those that ended.

    `points` are tried first; `warm_start` is another study's results folder whose trials the
    sampler knows from the start. `space` is Optuna's define-by-run function, for spaces in which
    one choice decides which others there are: it takes an Optuna trial and returns fields; `vary`
    is then empty. With `objectives` beside the study's metric (`train_wall_s`, `peak_memory_gib`,
    `examples_seen`) the sampler seeks the trade-off; take `sampler="nsga2"`.
    """

    num_configs: int
    sampler: str = "tpe"
    points: Sequence[Mapping[str, object]] = ()
    warm_start: str | None = None
    space: Callable[[Any], Mapping[str, object]] | None = None
    objectives: Sequence[str] = ()
    sampling_seed: int = 0

    def __post_init__(self) -> None:
        """Check the names."""
        check_whole("num_configs", self.num_configs, low=1)
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {self.sampler!r}")
        for name in self.objectives:
            if name not in OBJECTIVES:
                raise ValueError(
                    f"objectives must be of {', '.join(OBJECTIVES)}, beside the study's metric, "
                    f"got {name!r}"
                )


@dataclass(frozen=True, kw_only=True)
class Asha:
    """Stop the worse trials early, without waiting for the others (Li 2020, arXiv:1810.05934).

    Of the trials that reach a rung about one in `reduction_factor` goes on. The first rung is at
    `grace_share` of the budget, and never before warmup ends; each next one is `reduction_factor`
    times later. Rungs are counted in training images, so that batch sizes compare; with
    `by_batch_size` a trial competes only with those of its own batch size.
    """

    reduction_factor: float = 3.0
    grace_share: float = 1 / 9
    by_batch_size: bool = False

    def __post_init__(self) -> None:
        """Check the factor and the share."""
        check_factor(self.reduction_factor)
        check_grace(self.grace_share)


@dataclass(frozen=True, kw_only=True)
class Median:
    """Stop a trial whose best score is below the median of the others' means at its age.

    Golovin et al. 2017 (Vizier). Not before `grace_share` of the budget, the end of warmup, and
    `min_trials` others.
    """

    grace_share: float = 1 / 9
    min_trials: int = 3
    by_batch_size: bool = False

    def __post_init__(self) -> None:
        """Check the share and the count."""
        check_grace(self.grace_share)
        check_whole("min_trials", self.min_trials, low=1)


@dataclass(frozen=True, kw_only=True)
class HyperBand:
    """ASHA in several brackets, whose first rungs lie ever later (Li 2018, arXiv:1603.06560).

    For where early scores may mislead: some trials are let run long before they are compared. All
    brackets that fit between `grace_share` and the whole budget; asynchronous, as in Li 2020. With
    `Optuna(sampler="tpe")` this is what BOHB does (Falkner 2018, arXiv:1807.01774): a model of
    where good trials lie, fed by trials of several lengths.
    """

    reduction_factor: float = 3.0
    grace_share: float = 1 / 9
    by_batch_size: bool = False

    def __post_init__(self) -> None:
        """Check the factor and the share."""
        check_factor(self.reduction_factor)
        check_grace(self.grace_share)


@dataclass(frozen=True, kw_only=True)
class Pbt:
    """Population based training (Jaderberg 2017, arXiv:1711.09846): a schedule is searched.

    `size` configurations drawn from the domains train side by side, an equal part of the budget a
    generation. After each, the worst `quantile` of them go on from the state of one of the best
    `quantile`, with its values changed: a number times 0.8 or 1.2, a choice to its neighbour, or,
    with probability `resample`, drawn anew. A member's generations are trials of their own, so that
    each row says what it was trained with and from which trial it went on (`begins_from`).
    """

    size: int = 8
    generations: int = 5
    quantile: float = 0.25
    resample: float = 0.25
    sampling_seed: int = 0

    def __post_init__(self) -> None:
        """Check the counts and the shares."""
        check_whole("size", self.size, low=2)
        check_whole("generations", self.generations, low=2)
        if not 0 < self.quantile <= 0.5:
            raise ValueError(f"quantile must be above 0 and at most 0.5, got {self.quantile!r}")
        if not 0 <= self.resample <= 1:
            raise ValueError(f"resample must be from 0 to 1, got {self.resample!r}")


Explorer = Grid | Ablation | Variants | Random | Optuna | Pbt
Stopper = Asha | HyperBand | Median


@dataclass(frozen=True, kw_only=True)
class Leaders:
    """More seeds for the best configurations only: `seeds` in all for the best `top`."""

    top: int = 5
    seeds: int = 5

    def __post_init__(self) -> None:
        """Check both counts."""
        check_whole("top", self.top, low=1)
        check_whole("seeds", self.seeds, low=2)


def check_whole(name: str, value: object, *, low: int) -> None:
    """Raises ValueError for what is not a whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be a whole number >= {low}, got {value!r}")


def check_factor(factor: float) -> None:
    """Raises ValueError for a reduction factor that reduces nothing."""
    if not factor > 1:
        raise ValueError(f"reduction_factor must be > 1, got {factor!r}")


def check_grace(share: float) -> None:
    """Raises ValueError for a first rung before a tenth of the budget, or after its end."""
    if not 0.1 <= share < 1:
        raise ValueError(
            f"grace_share must be from 0.1 to below 1: earlier scores say little of the end "
            f"where a schedule warms up and decays; got {share!r}"
        )
