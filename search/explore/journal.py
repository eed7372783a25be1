"""A search by an Optuna sampler: what to try next, and how what was tried ended.

Ray's own OptunaSearch leaves a trial whose score is NaN running for ever, and tells one that a
scheduler stopped as if it had ended. Here a score is always finite, and how a trial ended is told.
"""

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState
from ray.tune.search.sample import Categorical, Integer

from search.analysis.chance import collapsed
from search.explore import choices
from search.explore.optuna import JOURNAL, Optuna
from search.explore.plan import MOST_REFUSED, asked
from search.study.domains import ends_of, is_log, step_of
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study
from trainable.config import WORST, trial_key
from trainable.host import credentials
from trainable.host.storage import Folder
from trainable.record import finite_score

optuna.logging.set_verbosity(optuna.logging.WARNING)
logger = logging.getLogger(__name__)
MOST_FOR_GP = 200  # configurations


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
    """Optuna's distributions of what varies, by parameter.

    A choice among numbers, such as batch sizes, is the index of one: samplers then know that 32
    lies between 16 and 64. Among categories no one is nearer than another.
    """
    return {
        _parameter(name, domain): IntDistribution(0, len(domain.categories) - 1)
        if _is_among_numbers(domain)
        else distribution_of(domain)
        for name, domain in vary.items()
    }


def params_of(vary: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields' values as the parameters of `distributions_of`."""
    return {
        _parameter(name, vary.get(name)): sorted(vary[name].categories).index(value)
        if _is_among_numbers(vary.get(name))
        else value
        for name, value in values.items()
    }


def values_of(vary: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of `distributions_of` as fields' values."""
    return {
        name: sorted(domain.categories)[params[_parameter(name, domain)]]
        if _is_among_numbers(domain)
        else params[name]
        for name, domain in vary.items()
    }


def _parameter(name: str, domain: Any) -> str:
    return f"{name}_index" if _is_among_numbers(domain) else name


def _is_among_numbers(domain: Any) -> bool:
    return isinstance(domain, Categorical) and all(
        isinstance(value, int | float) and not isinstance(value, bool)
        for value in domain.categories
    )


def chosen_sampler(study: Study, explore: Optuna) -> str:
    """The name of the sampler, where that is `auto` the one that fits the study.

    A Gaussian process needs the same numbers in every configuration, and final scores: it learns
    nothing from trials that were stopped. Its time grows with their cube.
    """
    if explore.sampler != "auto":
        return explore.sampler
    has_categories = any(
        isinstance(domain, CategoricalDistribution)
        for domain in distributions_of(study.vary).values()
    )
    is_simple = explore.space is None and not explore.objectives and not has_categories
    is_small = explore.num_configs <= MOST_FOR_GP
    return "gp" if is_simple and is_small and study.stop is None else "tpe"


def sampler_of(explore: Optuna, name: str, *, asked: int) -> optuna.samplers.BaseSampler:
    """The sampler of this name; after `asked` trials it does not draw the first ones again.

    TPE's first third is random, as much as BOHB draws at random (Falkner et al. 2018,
    arXiv:1807.01774): with Optuna's ten it ended worse than random draws on one of the two
    recordings of benchmarks.efficiency.
    """
    seed = explore.sampling_seed + asked
    startup = max(10, explore.num_configs // 3)
    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        # Their defaults differ between Optuna 4 and 5. Batch size and lr belong together.
        "tpe": lambda: optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=startup,
            multivariate=True,
            group=explore.space is not None,  # a parameter may be missing there
            constant_liar=True,
        ),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed),
        "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=seed),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # group
        return samplers[name]()


class Journal:
    """A search: what it chose, and the Optuna study made of it and of the tables.

    Its choices are files beside the tables, and how they ended is in the tables: the Optuna study
    is made anew from both by each command. On a disk it is then kept in a journal file too, for
    Optuna's dashboard.
    """

    def __init__(
        self, study: Study, explore: Optuna, results: Folder, *, data_fingerprint: str
    ) -> None:
        """Read what earlier commands chose.

        Raises:
            ValueError: a point or the warm start does not fit the space.
        """
        self.study, self.explore, self.results = study, explore, results
        self.data_fingerprint = data_fingerprint
        self.space = distributions_of(study.vary)
        self.folder = choices.folder_of(
            results,
            study,
            space=explore.space or {n: distribution_to_json(d) for n, d in self.space.items()},
            objectives=list(explore.objectives),
            data_fingerprint=data_fingerprint,
        )
        self.choices = choices.read(self.folder)
        self.optuna = self._new_study(None)
        self.optuna.sampler = sampler_of(
            explore, chosen_sampler(study, explore), asked=self.num_chosen
        )
        self.is_kept = False
        self.num_refused = 0
        for params, values in self._past_scores():
            params = params_of(study.vary, params)
            self._add(params, self.space, values=values, warm_start=explore.warm_start)
        self.open: dict[int, list[PlannedTrial]] = {}
        for choice in list(self.choices.values())[: explore.num_configs]:
            number = len(self.optuna.get_trials(deepcopy=False))
            space = {n: json_to_distribution(text) for n, text in choice.distributions.items()}
            self._add(choice.params, space)
            self.open[number] = self._planned(choice.changes)
        self.before = [trial for trials in self.open.values() for trial in trials]
        for point in explore.points:
            self.optuna.enqueue_trial(
                params_of(study.vary, point), skip_if_exists=bool(self.choices)
            )

    @property
    def num_chosen(self) -> int:
        """How many configurations were chosen, by this command and by earlier ones."""
        return len(self.choices)  # more than asked for now where `num_configs` was larger

    def _new_study(self, journal: JournalStorage | None) -> optuna.Study:
        return optuna.create_study(
            study_name=self.study.name,
            storage=journal,
            directions=[StudyDirection.MAXIMIZE]
            + [StudyDirection.MINIMIZE for _ in self.explore.objectives],
        )

    def _past_scores(self) -> list[tuple[dict[str, Any], list[float]]]:
        if not self.explore.warm_start:
            return []
        folder = Path(self.explore.warm_start)
        return past_scores(folder, self.study, objectives=self.explore.objectives)

    def _add(
        self,
        params: Mapping[str, Any],
        space: Mapping[str, BaseDistribution],
        *,
        values: Sequence[float] | None = None,
        **attributes: Any,
    ) -> None:
        """Add a trial to the Optuna study: one that ended with these values, or is under way."""
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING if values is None else TrialState.COMPLETE,
            params=dict(params),
            distributions=dict(space),
            values=values,
            user_attrs=attributes,
        )
        self.optuna.add_trial(trial)

    def _keep(self) -> None:
        """From now on keep the Optuna study in a journal file, where there is a disk for it."""
        self.is_kept = True
        choices.pack(self.folder, self.choices)
        if not self.results.is_local:
            return
        path = Path(self.results.uri) / JOURNAL
        for old in (path, path.with_name(f"{path.name}.lock")):  # a killed command leaves its lock
            old.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        in_memory = self.optuna
        self.optuna = self._new_study(JournalStorage(JournalFileBackend(str(path))))
        self.optuna.sampler = in_memory.sampler
        self.optuna.add_trials(in_memory.get_trials(deepcopy=False))

    def next(self, tables: Tables, room: int) -> list[PlannedTrial]:
        """What an earlier command chose; then new configurations, until there is no more room."""
        if room > 0 and not self.is_kept:
            self._keep()
        new, self.before = self.before, []
        self._tell_those_that_ended(tables)
        room -= len({trial.key for trial in new if trial.key not in tables.ended})
        before = asked(self.study, tables)
        known = {trial.key for trial in new}
        while room > 0 and self.num_chosen < self.explore.num_configs:
            _, trials = self.choose()
            new += trials
            keys = {trial.key for trial in trials} - known
            others = (before.own, before.further, tables.ended)
            room -= sum(not any(key in of for of in others) for key in keys)
            known |= keys
            self._tell_those_that_ended(tables)
        return new

    def _planned(self, changes: Mapping[str, Any]) -> list[PlannedTrial]:
        config = replace(self.study.base, **changes)
        seeded = [replace(config, seed=seed) for seed in range(self.study.seeds)]
        return [PlannedTrial(trial_key(c, self.data_fingerprint), c) for c in seeded]

    def choose(self) -> tuple[int, list[PlannedTrial]]:
        """The next configuration with its seeds, and its number in the Optuna study.

        One that cannot work is told as the worst, and another one is asked for.

        Raises:
            ValueError: `MOST_REFUSED` in a row cannot work, or one names a secret.
        """
        for _ in range(MOST_REFUSED):
            trial = self.optuna.ask(self.space)  # empty where `explore.space` asks by itself
            if self.explore.space:
                changes = dict(self.explore.space(trial))
            else:
                changes = values_of(self.study.vary, trial.params)
            for name in [*trial.params, *changes]:
                if credentials.is_secret_name(name):
                    raise ValueError(f"{name} {credentials.REFUSED}")
            try:
                planned = self._planned(changes)
            except ValueError as error:
                reason = f"the search chose {changes}, which cannot work: {error}"
                self._refuse(trial, reason)
                continue
            self._write(trial, changes)
            self.open[trial.number] = planned
            return trial.number, planned
        raise ValueError(f"{MOST_REFUSED} configurations in a row cannot work; the last: {reason}")

    def _refuse(self, trial: optuna.Trial, reason: str) -> None:
        self.num_refused += 1
        if math.log10(self.num_refused).is_integer():  # a space may have thousands of them
            logger.warning("%s; another one is asked for (%d so far)", reason, self.num_refused)
        trial.set_user_attr("refused", reason)
        if self.explore.objectives:  # there is no worst time or memory
            self.optuna.tell(trial, state=TrialState.FAIL)
        else:
            self.optuna.tell(trial, WORST[self.study.metric])

    def _write(self, trial: optuna.Trial, changes: Mapping[str, Any]) -> None:
        """Note the choice in a file: before it trains, so that a killed command forgets none."""
        space = {name: distribution_to_json(d) for name, d in trial.distributions.items()}
        choice = choices.Choice(changes=changes, params=trial.params, distributions=space)
        number = max(self.choices, default=-1) + 1
        choices.add(self.folder, number, choice)
        self.choices[number] = choice

    def _tell_those_that_ended(self, tables: Tables) -> None:
        for number, trials in list(self.open.items()):
            if all(trial.key in tables.ended for trial in trials):
                self.tell(number, [tables.ended[trial.key] for trial in trials])
                del self.open[number]

    def tell(self, number: int, endings: Sequence[Mapping[str, Any]]) -> None:
        """How a configuration ended, from the rows of its seeds.

        The mean score where all ended; PRUNED where one was stopped; a seed that diverged, or
        predicts the same for every image, counts with the worst score there is, so that the sampler
        learns that the region is bad; FAIL where there is nothing to learn. What was told stays
        told.
        """
        if self.optuna.get_trials(deepcopy=False)[number].state.is_finished():
            return
        statuses = {row["status"] for row in endings}
        if "failed" in statuses:
            self.optuna.tell(number, state=TrialState.FAIL)
            return
        scores = [self._score(row) for row in endings]
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

    def _score(self, row: Mapping[str, Any]) -> float:
        if row["status"] == "completed" and collapsed(pd.DataFrame([row])).all():
            return WORST[self.study.metric]
        return finite_score(self.study.metric, dict(row))


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
