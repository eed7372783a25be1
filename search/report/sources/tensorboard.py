"""TensorBoard's event files: a folder per run, with hyperparameters and scalars.

Hyperparameters may be in the same folder as a run's scalars, in one inside it (`add_hparams` of
PyTorch) or in the one around it (Keras).
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from search.analysis.columns import TableError
from search.report.sources.source import NAME, RUN, VALUE, Source, joined, origin

FILES = "events.out.tfevents.*"
STARTED = "_hparams_/session_start_info"
EVENTS = "tensorboard.backend.event_processing.event_accumulator"
HPARAMS = "tensorboard.plugins.hparams.plugin_data_pb2"
NDARRAY = "tensorboard.util.tensor_util"
Scalars = list[tuple[str, float]]


def is_logs(folder: Path) -> bool:
    """Whether there are event files in it."""
    return next(folder.rglob(FILES), None) is not None


def read(folder: Path) -> Source:
    """The runs that logged hyperparameters; a scalar's tag is a column.

    Raises:
        TableError: TensorBoard is not installed, or no run has hyperparameters.
    """
    places = sorted({file.parent for file in folder.rglob(FILES)})
    settings, scalars = {}, {}
    for place in places:
        settings[place], scalars[place] = _read(place)
    of_runs = _runs(places, settings, folder)
    if not of_runs:
        raise TableError(
            f"{folder} has event files of TensorBoard without hyperparameters: log them with "
            f"SummaryWriter.add_hparams, or give a CSV file with a row per run"
        )
    three = [RUN, NAME, VALUE]
    names = {run: run.relative_to(folder).as_posix() for run in of_runs}
    set_once = [(names[run], *each) for run in of_runs for each in settings[run].items()]
    logged = [
        (names[run], _tag(tag, run, place), value)
        for run, its in of_runs.items()
        for place in its
        for tag, value in scalars[place]
    ]
    rows = joined(
        pd.DataFrame({RUN: [*names.values()]}),
        pd.DataFrame(set_once, columns=three),
        pd.DataFrame(logged, columns=three),
    )
    where = str(folder)
    return Source(
        rows=rows,
        name=folder.name or folder.resolve().name,
        where=where,
        origin=origin(len(of_runs), "TensorBoard", where),
        runs=(RUN,),
    )


def _runs(
    places: list[Path], settings: Mapping[Path, Mapping[str, Any]], root: Path
) -> dict[Path, list[Path]]:
    """The folders with hyperparameters, each with all folders of its run."""
    inside: dict[Path, list[Path]] = {}  # by the nearest folder around them that has event files
    for place in places:
        around = next((each for each in place.parents if each in settings), None)
        if around is not None and (around == root or root in around.parents):
            inside.setdefault(around, []).append(place)
    runs = {}
    for place in places:
        if not settings[place]:
            continue
        runs[place] = [place, *(each for each in inside.get(place, []) if not settings[each])]
        around = next((each for each, its in inside.items() if place in its), None)
        if around is None or settings[around]:
            continue
        siblings = inside[around]
        if [each for each in siblings if settings[each]] == [place]:
            runs[place] += [around, *(each for each in siblings if each != place)]
    return runs


def _tag(tag: str, run: Path, place: Path) -> str:
    """The tag, after the folder if that is inside its run: validation/epoch_accuracy."""
    return f"{place.relative_to(run).as_posix()}/{tag}" if run in place.parents else tag


def _read(place: Path) -> tuple[dict[str, Any], Scalars]:
    """The hyperparameters of one folder, if any, and its scalars in order of their steps."""
    events = _imported(EVENTS).EventAccumulator(
        str(place), size_guidance={"scalars": 0, "tensors": 0}
    )
    events.Reload()
    tags = events.Tags()
    scalars = [(tag, each.value) for tag in tags["scalars"] for each in events.Scalars(tag)]
    array = _imported(NDARRAY).make_ndarray
    for tag in tags["tensors"]:  # TensorFlow 2 writes scalars as tensors
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            scalars += [(tag, float(array(each.tensor_proto))) for each in events.Tensors(tag)]
    started = events.summary_metadata.get(STARTED)
    if started is None:
        return {}, scalars
    data = _imported(HPARAMS).HParamsPluginData.FromString(started.plugin_data.content)
    values = data.session_start_info.hparams
    return {name: _value(values[name]) for name in values}, scalars


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("kind") or "string_value")


def _imported(name: str) -> Any:
    """TensorBoard's module: the project runs without it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise TableError(
            "reading event files needs the package tensorboard: pip install tensorboard"
        ) from error
