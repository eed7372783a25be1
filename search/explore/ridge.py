"""The best learning rate of every batch size from few trials: each trial is where it tells most."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.search.sample import Categorical

from search.explore.plan import asked, drawn_from
from search.explore.stop import Forecast
from search.study.domains import is_log
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study, check_number
from trainable.config import TrialConfig

LEAST_LRS = 3


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """The best lr of every batch size, with at most `num_trials` trials.

    Knows that the score has one hump in log lr for each batch size, whose place moves smoothly with
    the batch size, and a cliff beyond it. Each trial is the one that is expected to raise the best
    score of the batch sizes most; where noise hides the best lr, that is a further seed of a cell.
    With `until=1.5` it ends as soon as the best lr of each batch size is known within a factor of
    1.5, with 95 % probability. Other fields that vary have a ridge for each of their values.
    """

    num_trials: int
    until: float | None = None
    sampling_seed: int = 0

    def __post_init__(self) -> None:
        """Check both numbers."""
        check_number("num_trials", self.num_trials, whole=True, low=1)
        if self.until is not None and not self.until > 1:
            raise ValueError(f"until is a factor above 1, such as 1.5, got {self.until!r}")

    def domains(self, vary: Mapping[str, object]) -> dict[str, Any]:
        """Choices, and a range of learning rates."""
        return drawn_from(vary)

    def check(self, study: Study) -> None:
        """Raises ValueError where there is no ridge to search, or something else repeats trials."""
        missing = [name for name in ("batch_size", "base_lr") if name not in study.vary]
        if missing:
            raise ValueError(f"Ridge needs {' and '.join(missing)} in `vary`")
        for name, domain in study.vary.items():
            is_range = name == "base_lr" and is_log_range(domain)
            if not is_range and not isinstance(domain, Categorical):
                raise ValueError(
                    f"{name}: Ridge takes tune.grid_search or tune.choice, and for base_lr also "
                    f"tune.loguniform"
                )
            if name == "base_lr" and len(getattr(domain, "categories", (1, 2, 3))) < LEAST_LRS:
                raise ValueError(f"base_lr: Ridge needs at least {LEAST_LRS} learning rates")
        if study.seeds > 1 or study.leaders:
            raise ValueError(
                "Ridge repeats a cell where that helps: leave out seeds and leaders, and raise "
                "num_trials"
            )
        if study.stop is not None and not isinstance(study.stop, Forecast):
            raise ValueError(
                "Ridge needs final scores, or forecasts of them: stop is Forecast() or None"
            )

    def configs(self, study: Study) -> list[TrialConfig]:
        """None: each depends on how the others ended."""
        return []

    def examples(self, study: Study, tables: Tables, num: int) -> list[TrialConfig]:
        """The middle of the learning rates at each batch size and setting in turn."""
        from search.explore.ridge_search import middles

        cells = middles(study)
        return [cells[i % len(cells)] for i in range(num)]

    def total(self, study: Study, tables: Tables) -> int:
        """As many as it may ask for; fewer once it knows enough."""
        search = tables.memory.get("ridge")
        num = len(asked(study, tables).own) + len(asked(study, tables).further)
        return num if search is not None and search.knows_enough else max(self.num_trials, num)

    def next(self, study: Study, tables: Tables, room: int) -> list[PlannedTrial]:
        """What an earlier command asked for; then as many as there is room for."""
        from search.explore.ridge_search import RidgeSearch

        if "ridge" not in tables.memory:
            tables.memory["ridge"] = RidgeSearch(
                study, self, tables.folder, data_fingerprint=tables.data_fingerprint
            )
        search: RidgeSearch = tables.memory["ridge"]
        return search.next(tables, room)


def is_log_range(domain: Any) -> bool:
    """Whether it is tune.loguniform or a quantized one."""
    return not isinstance(domain, Categorical) and is_log(domain)
