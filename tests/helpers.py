"""What several test files use."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from search.execution.preflight import Ready
from search.explore.ask import ask, total
from search.results.tables import Results, ending_of
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study
from trainable.config import TrialConfig, trial_key
from trainable.host.storage import Folder

# --- a study without Ray: its trials end as a test says -------------------------------------------

Score = Callable[[TrialConfig], float]
Status = Callable[[TrialConfig], str]


def no_tables(folder: Path | str = "no folder") -> Tables:
    """What is known of a study that has not begun; the folder is for an explorer's own files."""
    return Tables(data_fingerprint="d", folder=Folder(str(folder)))


def ready_of(study: Study, results: Results) -> Ready:
    """A study whose data is there; `no_tables` has the same fingerprint."""
    no_data: Any = SimpleNamespace(name="synthetic", split="given")  # of which nothing is trained
    return Ready(
        study=study,
        data=no_data,
        data_folder=None,
        data_fingerprint="d",
        train_images=896,
        results=results,
    )


def status_at_end(config: TrialConfig) -> str:
    """A part of the budget ends as stopped."""
    return "completed" if config.until_share == 1 else "stopped"


def end(
    tables: Tables,
    trials: Sequence[PlannedTrial],
    study: Study,
    score: Score,
    status: Status = status_at_end,
    **weighed: Any,
) -> None:
    """Note how trials ended, as the recorder does."""
    for trial in trials:
        row = {"status": status(trial.config), study.metric: score(trial.config), **weighed}
        tables.ended[trial.key] = ending_of(row, metric=study.metric)


def batches_of(
    study: Study,
    score: Score,
    status: Status = status_at_end,
    *,
    tables: Tables | None = None,
    room: int = 4,
) -> list[list[PlannedTrial]]:
    """What the study asks for until there is no more; each batch ends before the next is asked."""
    tables = no_tables() if tables is None else tables
    batches: list[list[PlannedTrial]] = []
    while batch := ask(study, tables, room):
        batches.append(batch)
        end(tables, [t for t in batch if t.key not in tables.ended], study, score, status)
        assert len(batches) < 50, "trials without end"
    assert all(t.key == trial_key(t.config, "d") for batch in batches for t in batch)
    assert total(study, tables) == len({t.key for batch in batches for t in batch})
    return batches
