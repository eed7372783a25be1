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

from search.explore.optuna import Optuna
from search.study.domains import ends_of, is_log, step_of
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study
from trainable.config import TrialConfig, trial_key
from trainable.host import credentials
from trainable.record import finite_score

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


def distributions_of(vary: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Optuna's distribution of each field that varies."""
    return {name: distribution_of(domain) for name, domain in vary.items()}


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


class Journal:
    """An Optuna study kept in a journal file: asks for configurations, is told how they ended."""

    def __init__(self, study: Study, explore: Optuna, path: Path, *, data_fingerprint: str) -> None:
        """Open the journal, or begin it with the points and the warm start.

        Raises:
            ValueError: a point or the warm start does not fit the space.
        """
        self.study, self.explore = study, explore
        self.data_fingerprint = data_fingerprint
        self.space = distributions_of(study.vary)
        self.optuna = optuna.create_study(
            study_name=study.name,
            storage=JournalStorage(JournalFileBackend(str(path))),
            directions=[StudyDirection.MAXIMIZE]
            + [StudyDirection.MINIMIZE for _ in explore.objectives],
            load_if_exists=True,
        )
        if not self.optuna.get_trials(deepcopy=False):
            self._begin()
        self.chosen = [
            trial
            for trial in self.optuna.get_trials(deepcopy=False)
            if "configs" in trial.user_attrs
        ]
        self.num_chosen = len(self.chosen)
        self.open: dict[int, list[PlannedTrial]] = {}
        self.optuna.sampler = sampler_of(explore, asked=self.num_chosen)

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

    def next(self, tables: Tables, room: int) -> list[PlannedTrial]:
        """What an earlier command chose; then new configurations, until there is no more room."""
        new = self._chosen_before()
        self._tell_those_that_ended(tables)
        room -= len({trial.key for trial in new} - set(tables.ended))
        known = {trial.key for trial in (*tables.asked, *new)} if room > 0 else set()
        while room > 0 and self.num_chosen < self.explore.num_configs:
            _, trials = self.choose()
            new += trials
            room -= len({trial.key for trial in trials} - known - set(tables.ended))
            known |= {trial.key for trial in trials}
            self._tell_those_that_ended(tables)
        return new

    def _chosen_before(self) -> list[PlannedTrial]:
        """The trials of earlier commands, once; those that were never told of are open."""
        before, self.chosen = self.chosen, []
        trials = {trial.number: self._planned(trial.user_attrs["configs"]) for trial in before}
        for trial in before:
            if trial.state == TrialState.RUNNING:
                self.open[trial.number] = trials[trial.number]
        return [planned for number in trials for planned in trials[number]]

    def _planned(self, configs: Sequence[Mapping[str, Any]]) -> list[PlannedTrial]:
        made = [TrialConfig(**config) for config in configs]
        return [PlannedTrial(trial_key(c, self.data_fingerprint), c) for c in made]

    def choose(self) -> tuple[int, list[PlannedTrial]]:
        """The next configuration with its seeds, and its number in the Optuna study."""
        trial = self.optuna.ask(self.space)  # empty where `explore.space` asks by itself
        changes = dict(self.explore.space(trial) if self.explore.space else trial.params)
        for name in [*trial.params, *changes]:
            if credentials.is_secret_name(name):
                raise ValueError(f"{name} {credentials.REFUSED}")
        config = replace(self.study.base, **changes)
        configs = [asdict(replace(config, seed=seed)) for seed in range(self.study.seeds)]
        trial.set_user_attr("configs", configs)
        self.open[trial.number] = self._planned(configs)
        self.num_chosen += 1
        return trial.number, self.open[trial.number]

    def _tell_those_that_ended(self, tables: Tables) -> None:
        for number, trials in list(self.open.items()):
            if all(trial.key in tables.ended for trial in trials):
                self.tell(number, [tables.ended[trial.key] for trial in trials])
                del self.open[number]

    def tell(self, number: int, endings: Sequence[Mapping[str, Any]]) -> None:
        """How a configuration ended, from the rows of its seeds.

        The mean score where all ended; PRUNED where one was stopped; a diverged seed counts with
        the worst score there is, so that the sampler learns that the region is bad; FAIL where
        there is nothing to learn. What was told stays told: a dry run may have been here meanwhile.
        """
        if self.optuna.get_trials(deepcopy=False)[number].state.is_finished():
            return
        statuses = {row["status"] for row in endings}
        if "failed" in statuses:
            self.optuna.tell(number, state=TrialState.FAIL)
            return
        scores = [finite_score(self.study.metric, dict(row)) for row in endings]
        mean = sum(scores) / len(scores)
        if "stopped" in statuses:
            storage = self.optuna._storage
            trial_id = storage.get_trial_id_from_study_id_trial_number(
                self.optuna._study_id, number
            )
            step = int(endings[0].get("examples_seen") or 0)
            storage.set_trial_intermediate_value(trial_id, step, mean)
            self.optuna.tell(number, state=TrialState.PRUNED)
            return
        others = [float(endings[0][name]) for name in self.explore.objectives]
        self.optuna.tell(number, [mean, *others])


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
