"""Ray Tune's results: a folder per experiment, in it one per trial with params.json and results."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from search.analysis.columns import TableError
from search.report.sources.source import Source, chosen, origin

SETTINGS, JSON, CSV, ERROR = "params.json", "result.json", "progress.csv", "error.txt"
# Of each result; they differ from machine to machine and from hour to hour.
BOOKKEEPING = (
    *("config", "done", "trial_id", "timestamp", "date", "pid", "hostname", "node_ip"),
    *("checkpoint_dir_name", "experiment_id", "experiment_tag"),
    *("time_since_restore", "iterations_since_restore"),
)
DEPTH = "training_iteration"


def is_results(folder: Path) -> bool:
    """Whether the folder is one of experiments, or of one."""
    return any(True for _ in _trials(folder, "*")) or any(True for _ in _trials(folder, "*/*"))


def read(folder: Path, study: str | None) -> Source:
    """The results of one experiment; config's names are columns, nested ones are `a/b`.

    Raises:
        TableError: there are several experiments, or a file cannot be read.
    """
    trials = sorted(_trials(folder, "*"))
    if not trials or study is not None:
        experiments = {trial.parent.name: trial.parent for trial in _trials(folder, "*/*")}
        experiments |= {folder.name: folder} if trials else {}
        kind = "experiments of Ray Tune"
        folder = experiments[chosen(sorted(experiments), study, kind=kind, where=str(folder))]
        trials = sorted(_trials(folder, "*"))
    known = _statuses(folder)
    rows = pd.concat([_rows_of(trial, known) for trial in trials], ignore_index=True)
    deepest = rows[DEPTH].max() if DEPTH in rows else None
    # A scheduler's last word is `done`; a training that ends by itself does not say so.
    ended = rows["status"].isin(("completed", "terminated"))
    short = rows.pop("done").eq(True) & ended
    rows["status"] = rows["status"].mask(short & (rows.get(DEPTH) != deepest), "stopped")
    return Source(
        rows=rows,
        name=folder.name or folder.resolve().name,
        where=str(folder),
        origin=origin(len(trials), "Ray Tune", str(folder)),
        runs=("trial_id",),
    )


def _trials(folder: Path, pattern: str) -> Iterator[Path]:
    """The folders of trials that have started."""
    for settings in folder.glob(f"{pattern}/{SETTINGS}"):
        if any((settings.parent / name).is_file() for name in (JSON, CSV, ERROR)):
            yield settings.parent


def _rows_of(trial: Path, known: Mapping[str, str]) -> pd.DataFrame:
    """A row for each result of a trial, or one without results."""
    config = _flat(_json(trial / SETTINGS, (trial / SETTINGS).read_text()))
    results = list(_results(trial)) or [{}]
    identity = str(results[-1].get("trial_id", trial.name))
    state = next((known[name] for name in known if name == identity or f"_{name}_" in identity), "")
    ended = "failed" if (trial / ERROR).is_file() else "completed" if results[0] else "running"
    rows = []
    for result in results:
        kept = {name: value for name, value in _flat(result).items() if name not in BOOKKEEPING}
        logged = {f"{k} (logged)" if k in config else k: value for k, value in kept.items()}
        rows.append({"trial_id": identity, **config, **logged, "done": results[-1].get("done")})
    return pd.DataFrame(rows).assign(status=state or ended)


def _results(trial: Path) -> Iterator[dict[str, Any]]:
    """What a trial reported, in order; a last line that was not finished is left out."""
    file = trial / JSON
    if file.is_file():
        lines = file.read_text(errors="replace").splitlines(keepends=True)
        for at, line in enumerate(lines, 1):
            if line.endswith("\n") or at < len(lines):
                result = _json(file, line)
                yield {name: value for name, value in result.items() if name != "config"}
        return
    try:
        table = pd.read_csv(trial / CSV)
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return
    except ValueError as error:
        raise TableError(f"{trial / CSV} cannot be read ({error}): move it away") from error
    yield from ({str(k): v for k, v in row.items()} for row in table.to_dict("records"))


def _json(file: Path, text: str) -> dict[str, Any]:
    try:
        read = json.loads(text)
    except ValueError as error:
        raise TableError(f"{file} is damaged ({error}): move its folder away") from error
    if not isinstance(read, dict):
        raise TableError(f"{file} must contain a JSON object per line: move its folder away")
    return read


def _flat(nested: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested names joined by /, as Ray does; lists as text."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{name}/")
        else:
            flat[before + name] = json.dumps(value) if isinstance(value, list) else value
    return flat


def _statuses(experiment: Path) -> dict[str, str]:
    """Each trial's status as Ray last wrote it, by trial; empty if that cannot be read."""
    files = sorted(experiment.glob("experiment_state-*.json"))
    try:
        trials = [json.loads(entry[0]) for entry in json.loads(files[-1].read_text())["trial_data"]]
        return {str(trial["trial_id"]): str(trial["status"]).lower() for trial in trials}
    except (IndexError, KeyError, TypeError, ValueError):
        return {}
