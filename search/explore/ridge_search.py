"""A search for the ridge: what it asked for, how that ended, and what to ask for next."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from ray.tune.search.sample import Categorical

from search.analysis.humps.gain import first_cells, next_cells
from search.analysis.humps.posterior import Posterior, best_lrs, fit, frame_of, intervals
from search.analysis.humps.scored import scored_trials
from search.explore import choices
from search.explore.ridge import Ridge
from search.study.domains import ends_of
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study
from trainable.config import TrialConfig, trial_key, with_seed
from trainable.host.storage import Folder
from trainable.training.schedule import peak_lr

MOST_LRS = 25  # of a range, at each batch size
LEAST_STEP = 1 / 3  # octaves between two of them
DIGITS = 3  # of an lr
HOPELESS = 2  # failures of a batch size that has no other trial

Array = NDArray[np.float64]


@dataclass
class Setting:
    """One value of each field beside batch size and lr: a surface of its own.

    `cells` are its configurations without seeds, at `b` and `x` (log2 of batch size and peak lr);
    `asked` has the cell of each trial, in the order of asking.
    """

    cells: list[TrialConfig]
    asked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Where the cells are."""
        self.b = np.log2([float(config.batch_size) for config in self.cells])
        self.x = np.log2([peak_lr(config) for config in self.cells])
        self.frame = frame_of(self.b, self.x)
        self.first = first_cells(self.frame, self.b, self.x)
        self.known: tuple[int, Posterior] | None = None  # after how many trials had ended

    @property
    def batch_sizes(self) -> list[int]:
        """From small to large."""
        return sorted({config.batch_size for config in self.cells})


def lrs_of(domain: Any) -> list[float]:
    """The lrs of a choice, or those that stand for a range: evenly spaced in their logarithm."""
    if isinstance(domain, Categorical):
        return sorted(map(float, domain.categories))
    low, high = map(float, ends_of(domain))
    octaves = math.log2(high / low)
    num = min(MOST_LRS, int(octaves / LEAST_STEP) + 2)
    return [float(f"{lr:.{DIGITS}g}") for lr in np.geomspace(low, high, num)]


def settings_of(study: Study) -> list[Setting]:
    """The surfaces of a study. A combination that cannot work is no cell.

    Raises:
        ValueError: none of a setting's combinations can work; the message has a reason.
    """
    others = [name for name in study.vary if name not in ("batch_size", "base_lr")]
    values = [study.vary[name].categories for name in others]
    settings = []
    for combination in itertools.product(*values):
        changes = dict(zip(others, combination, strict=True))
        settings.append(Setting(_cells(study, changes)))
    return settings


def _cells(study: Study, changes: Mapping[str, Any]) -> list[TrialConfig]:
    cells, reason = [], ""
    for batch_size in sorted(study.vary["batch_size"].categories):
        for lr in lrs_of(study.vary["base_lr"]):
            more: dict[str, Any] = {**changes, "batch_size": batch_size, "base_lr": lr}
            try:
                cells.append(replace(study.base, **more))
            except ValueError as error:
                reason = str(error)
    if not cells:
        raise ValueError(reason)
    return cells


def middles(study: Study) -> list[TrialConfig]:
    """Of each setting and batch size the configuration with the middle lr."""
    of_sizes = [
        [config for config in setting.cells if config.batch_size == size]
        for setting in settings_of(study)
        for size in setting.batch_sizes
    ]
    return [cells[len(cells) // 2] for cells in of_sizes]


class RidgeSearch:
    """What was asked for, in files beside the tables, and how it ended.

    The same files and the same tables lead to the same next trial.
    """

    def __init__(
        self, study: Study, explore: Ridge, results: Folder, *, data_fingerprint: str
    ) -> None:
        """Go on with what earlier commands asked for."""
        self.study, self.explore = study, explore
        self.data_fingerprint = data_fingerprint
        self.settings = settings_of(study)
        self.places = {
            config: (setting, cell)
            for setting in self.settings
            for cell, config in enumerate(setting.cells)
        }
        space = {name: str(sorted(map(str, _values(study, name)))) for name in study.vary}
        self.folder = choices.folder_of(
            results, study, space=space, objectives=[], data_fingerprint=data_fingerprint
        )
        self.choices = choices.read(self.folder)
        self.knows_enough = False
        self.trials: list[tuple[Setting, int, PlannedTrial]] = []
        for choice in list(self.choices.values())[: explore.num_trials]:
            config = replace(study.base, **choice.changes)
            place = self.places.get(replace(config, seed=study.base.seed))
            if place is not None:  # else the file was changed
                self._note(*place, config)
        self.before = [trial for *_, trial in self.trials]

    def next(self, tables: Tables, room: int) -> list[PlannedTrial]:
        """What an earlier command asked for; then new trials, until there is no more room."""
        new, self.before = self.before, []
        room -= sum(trial.key not in tables.ended for trial in new)
        if room <= 0 or len(self.trials) >= self.explore.num_trials:
            return new
        self.knows_enough = self._knows_enough(tables)
        while room > 0 and len(self.trials) < self.explore.num_trials and not self.knows_enough:
            place = self._best_cell(tables)
            if place is None:
                self.knows_enough = True  # there is nothing else that could be trained
                break
            trial = self._ask(*place)
            new.append(trial)
            room -= trial.key not in tables.ended
        return new

    def _note(self, setting: Setting, cell: int, config: TrialConfig) -> PlannedTrial:
        trial = PlannedTrial(trial_key(config, self.data_fingerprint), config)
        setting.asked.append(cell)
        self.trials.append((setting, cell, trial))
        return trial

    def _ask(self, setting: Setting, cell: int) -> PlannedTrial:
        """A trial of this cell, with its next seed; noted in a file before it starts."""
        config = with_seed(setting.cells[cell], self.study.base.seed + setting.asked.count(cell))
        names = [*self.study.vary, "seed"]
        changes = {name: getattr(config, name) for name in names}
        number = max(self.choices, default=-1) + 1
        choice = choices.Choice(changes=changes, params={}, distributions={})
        choices.add(self.folder, number, choice)
        self.choices[number] = choice
        return self._note(setting, cell, config)

    def _best_cell(self, tables: Tables) -> tuple[Setting, int] | None:
        """The cell that tells most, of all settings; None where all cells failed."""
        for setting in self.settings:  # each begins with the same few cells
            if left := [cell for cell in setting.first if cell not in setting.asked]:
                return setting, left[0]
        best = [
            (gain, number, cell)
            for number, setting in enumerate(self.settings)
            for cell, gain in next_cells(
                self._posterior(setting, tables),
                setting.b,
                setting.x,
                pending=self._pending(setting, tables),
                refused=self._failed(setting, tables),
                num=1,
            )
        ]
        if not best:
            return None
        _, number, cell = max(best)
        return self.settings[number], cell

    def _pending(self, setting: Setting, tables: Tables) -> list[int]:
        return [
            cell
            for of, cell, trial in self.trials
            if of is setting and trial.key not in tables.ended
        ]

    def _failed(self, setting: Setting, tables: Tables) -> list[int]:
        """Cells of which a trial failed, for example for memory: another seed would fail too.

        All cells of a batch size of which two trials failed and none ended otherwise.
        """
        ended = [
            (cell, tables.ended[trial.key]["status"])
            for of, cell, trial in self.trials
            if of is setting and trial.key in tables.ended
        ]
        failed = {cell for cell, status in ended if status == "failed"}
        for b in np.unique(setting.b):
            statuses = [status for cell, status in ended if setting.b[cell] == b]
            if statuses.count("failed") == len(statuses) >= HOPELESS:
                failed |= set(np.flatnonzero(setting.b == b).tolist())
        return sorted(failed)

    def _posterior(self, setting: Setting, tables: Tables) -> Posterior:
        rows = [
            {
                **tables.ended[trial.key],
                "batch_size": 2 ** setting.b[cell],
                "peak_lr": 2 ** setting.x[cell],
            }
            for of, cell, trial in self.trials
            if of is setting and trial.key in tables.ended
        ]
        if setting.known is None or setting.known[0] != len(rows):
            names = ["batch_size", "peak_lr", "status", "forecast", self.study.metric]
            table = pd.DataFrame(rows) if rows else pd.DataFrame(columns=names)
            trials = scored_trials(table, metric=self.study.metric, mode=self.study.mode)
            posterior = fit(trials, setting.frame, seed=self.explore.sampling_seed)
            setting.known = (len(rows), posterior)
        return setting.known[1]

    def _knows_enough(self, tables: Tables) -> bool:
        """Whether each best lr is known as precisely as was asked for."""
        factor = self.explore.until
        if factor is None or any(set(s.first) - set(s.asked) for s in self.settings):
            return False
        return all(
            intervals_within(self._posterior(setting, tables), setting, factor)
            for setting in self.settings
        )


def intervals_within(posterior: Posterior, setting: Setting, factor: float) -> bool:
    """Whether the 95 % interval of each best lr is within a factor of its middle.

    One that reaches the smallest or largest lr is open: the best lr may lie outside.
    """
    sizes = setting.batch_sizes
    lrs = [2 ** setting.x[setting.b == np.log2(float(size))] for size in sizes]
    low, _, high = intervals(best_lrs(posterior, sizes, lrs))
    closed = (low > [x[0] for x in lrs]) & (high < [x[-1] for x in lrs])
    return bool((closed & (high / low <= factor**2)).all())


def _values(study: Study, name: str) -> Sequence[object]:
    domain = study.vary[name]
    return lrs_of(domain) if name == "base_lr" else list(domain.categories)
