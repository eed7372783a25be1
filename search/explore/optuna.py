"""An Optuna study in a journal file: what to try next, and how what was tried ended.

Ray's own OptunaSearch leaves a trial whose score is NaN running for ever, and tells one that a
scheduler stopped as if it had ended. Here a score is always finite, and how a trial ended is told.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState
from ray.tune.search.sample import Categorical, Integer

from search.explore.declarations import Optuna
from search.explore.plan import PlannedTrial
from search.study.domains import ends_of, is_log, step_of
from search.study.study import Study
from trainable.config import TrialConfig, trial_key
from trainable.host import credentials
from trainable.record import finite_score

JOURNAL = "optuna.journal"

optuna.logging.set_verbosity(optuna.logging.WARNING)


def distribution_of(domain: Any) -> BaseDistribution:
    """A Ray Tune domain as Optuna's."""
    if isinstance(domain, Categorical):
        return CategoricalDistribution(list(domain.categories))
    low, high = ends_of(domain)
    if isinstance(domain, Integer):
        step = int(step_of(domain) or 1)
        return IntDistribution(low, high, log=is_log(domain), step=step)
    return FloatDistribution(low, high, log=is_log(domain), step=step_of(domain))


def sampler_of(explore: Optuna, *, asked: int) -> optuna.samplers.BaseSampler:
    """The sampler by its name; after `asked` trials it does not draw the first ones again.

    TPE's first third is random, as much as BOHB draws at random (Falkner et al. 2018,
    arXiv:1807.01774): with Optuna's ten it ended worse than random draws on one of the two
    recordings of benchmarks.efficiency.
    """
    seed = explore.sampling_seed + asked
    startup = max(10, explore.num_configs // 3)
    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed),
        "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=seed),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed),
    }
    return samplers[explore.sampler]()


class Suggestions:
    """An Optuna study kept in a journal file: asks for configurations, is told how they ended."""

    def __init__(self, study: Study, journal: Path, *, data_fingerprint: str) -> None:
        """Open the journal, or begin it with the points and the warm start.

        Raises:
            ValueError: a point or the warm start does not fit the space.
        """
        if not isinstance(study.explore, Optuna):
            raise TypeError("only an Optuna study has suggestions")
        self.study, self.explore = study, study.explore
        self.data_fingerprint = data_fingerprint
        self.space = {name: distribution_of(domain) for name, domain in study.vary.items()}
        self.optuna = optuna.create_study(
            study_name=study.name,
            storage=JournalStorage(JournalFileBackend(str(journal))),
            directions=[StudyDirection.MAXIMIZE]
            + [StudyDirection.MINIMIZE for _ in self.explore.objectives],
            load_if_exists=True,
        )
        if not self.optuna.get_trials(deepcopy=False):
            self._begin()
        self.optuna.sampler = sampler_of(self.explore, asked=len(self.asked()))

    def _begin(self) -> None:
        for point in self.explore.points:
            self.optuna.enqueue_trial(dict(point))
        if self.explore.warm_start:
            objectives = self.explore.objectives
            for params, values in past_scores(
                Path(self.explore.warm_start), self.study, objectives=objectives
            ):
                known = optuna.trial.create_trial(
                    params=params,
                    distributions=self.space,
                    values=values,
                    user_attrs={"warm_start": self.explore.warm_start},
                )
                self.optuna.add_trial(known)

    def asked(self) -> list[optuna.trial.FrozenTrial]:
        """The trials of this study's own that were asked for, oldest first."""
        every = self.optuna.get_trials(deepcopy=False)
        return [t for t in every if "configs" in t.user_attrs]

    def planned(self) -> list[PlannedTrial]:
        """What has been asked for so far, each with its seeds."""
        return [p for trial in self.asked() for p in self._planned_of(trial.user_attrs["configs"])]

    def _planned_of(self, configs: Sequence[Mapping[str, Any]]) -> list[PlannedTrial]:
        made = [TrialConfig(**config) for config in configs]
        return [PlannedTrial(trial_key(c, self.data_fingerprint), c) for c in made]

    def ask(self) -> tuple[int, list[PlannedTrial]] | None:
        """The next configuration with its seeds, by its Optuna number; None when all were asked."""
        if len(self.asked()) >= self.explore.num_configs:
            return None
        trial = self.optuna.ask(self.space)  # empty where `explore.space` asks by itself
        changes = dict(self.explore.space(trial) if self.explore.space else trial.params)
        for name in [*trial.params, *changes]:
            if credentials.is_secret_name(name):
                raise ValueError(f"{name} {credentials.REFUSED}")
        config = replace(self.study.base, **changes)
        seeds = [replace(config, seed=seed) for seed in range(self.study.seeds)]
        trial.set_user_attr("configs", [asdict(each) for each in seeds])
        return trial.number, self._planned_of([asdict(each) for each in seeds])

    def report(self, number: int, score: float, step: int) -> None:
        """A score on the way, for one seed and one objective."""
        if self.study.seeds == 1 and not self.explore.objectives:
            self._live(number).report(score, step)

    def tell(self, number: int, endings: Sequence[Mapping[str, Any]]) -> None:
        """How a configuration ended, from the rows of its seeds.

        The mean score where all ended; PRUNED where one was stopped; a diverged seed counts with
        the worst score there is, so that the sampler learns that the region is bad; FAIL where
        there is nothing to learn.
        """
        if self._live(number).storage.get_trial(self._live(number)._trial_id).state.is_finished():
            return
        statuses = {row["status"] for row in endings}
        if "failed" in statuses or not endings:
            self.optuna.tell(number, state=TrialState.FAIL)
            return
        scores = [finite_score(self.study.metric, dict(row)) for row in endings]
        mean = sum(scores) / len(scores)
        if "stopped" in statuses:
            if not self.optuna.trials[number].intermediate_values:
                self._live(number).report(mean, int(endings[0].get("examples_seen") or 0))
            self.optuna.tell(number, state=TrialState.PRUNED)
            return
        others = [float(endings[0][name]) for name in self.explore.objectives]
        self.optuna.tell(number, [mean, *others])

    def _live(self, number: int) -> optuna.Trial:
        frozen = self.optuna.trials[number]
        return optuna.Trial(self.optuna, frozen._trial_id)

    def unfinished(self) -> list[tuple[int, list[PlannedTrial]]]:
        """Configurations that were asked for and never told: a killed command leaves them."""
        return [
            (trial.number, self._planned_of(trial.user_attrs["configs"]))
            for trial in self.asked()
            if trial.state == TrialState.RUNNING
        ]


def past_scores(
    results: Path, study: Study, *, objectives: Sequence[str] = ()
) -> list[tuple[dict[str, Any], list[float]]]:
    """Completed configurations of another study that lie in this one's space, with mean scores.

    After each score the means of the objectives.

    Raises:
        ValueError: there are no tables, or nothing of them fits.
    """
    if not (results / "trials").is_dir():
        raise ValueError(f"warm_start: {results} is not a study's results folder: no trials/")
    rows = pd.read_parquet(results / "trials")
    rows = rows[rows["status"] == "completed"]
    names = list(study.vary)
    sign = 1 if study.mode == "max" else -1
    known = []
    for values, group in rows.groupby(names):
        params = dict(zip(names, map(_plain, values), strict=True))
        if all(_lies_in(study.vary[name], value) for name, value in params.items()):
            others = [float(group[name].mean()) for name in objectives]
            known.append((params, [sign * float(group[study.metric].mean()), *others]))
    if not known:
        raise ValueError(f"warm_start: no completed trial in {results} lies in this study's space")
    return known


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _lies_in(domain: Any, value: Any) -> bool:
    if isinstance(domain, Categorical):
        return value in domain.categories
    low, high = ends_of(domain)
    return bool(low <= value <= high)
