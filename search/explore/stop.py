"""Which trials are stopped before their budget is spent: declarations."""

from dataclasses import dataclass, field

from search.study.study import Study, check_number


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

    def check(self, study: Study) -> None:
        """Raises ValueError where the budget is in seconds."""
        check_budget(study, "stop")


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
        check_number("min_trials", self.min_trials, whole=True, low=1)

    def check(self, study: Study) -> None:
        """Raises ValueError where the budget is in seconds."""
        check_budget(study, "stop")


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

    def check(self, study: Study) -> None:
        """Raises ValueError where the budget is in seconds."""
        check_budget(study, "stop")


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Stop a trial whose curve shows that it will not be the best of its batch size.

    Its final score is forecast from what similar trials of the study have gained after the same
    share of their budget. It is stopped where even the upper end of the 95 % interval is below the
    best final score of its batch size. Not before `grace_share` of the budget, the end of warmup,
    and `min_trials` that ran to their end. A stopped trial's row has its `forecast` and
    `forecast_std`, by which `Ridge` still learns from it.
    """

    grace_share: float = 1 / 9
    min_trials: int = 6
    by_batch_size: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        """Check the share and the count."""
        check_grace(self.grace_share)
        check_number("min_trials", self.min_trials, whole=True, low=2)

    def check(self, study: Study) -> None:
        """Raises ValueError where the budget is in seconds."""
        check_budget(study, "stop")


def check_budget(study: Study, counting: str) -> None:
    """Raises ValueError where a budget is in seconds, in which images are not known beforehand."""
    if any(config.seconds is not None for config in study.configs):
        raise ValueError(
            f"{counting} counts training images: give a budget in epochs, updates or examples, "
            f"not in seconds"
        )


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
