"""What a study will cost, from a few timed updates: trials, time, GPU-hours, disk."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from search.plan import PlannedTrial
from search.progress import clock, show
from search.study import Study
from trainable.data.cache import open_data
from trainable.schedule import timetable

ROW_BYTES = 25_000  # of one trial's two Parquet files, measured with 5 and with 50 epochs


def print_cost(
    console: Console,
    study: Study,
    planned: Sequence[PlannedTrial],
    todo: Sequence[PlannedTrial],
    data_folder: Path | None,
) -> None:
    """Print the trials, which are done, and an estimate; a few updates are timed, none is kept."""
    left = {trial.key for trial in todo}
    table = Table(box=None, pad_edge=False, title=f"{study.name}: {len(planned)} trials")
    for name in ("trial_key", *study.vary, "seed", "state"):
        table.add_column(name, justify="right")
    for trial in planned:
        values = (show(getattr(trial.config, name)) for name in (*study.vary, "seed"))
        table.add_row(trial.key, *values, "to run" if trial.key in left else "done")
    console.print(table)
    console.print(f"\n{len(planned) - len(todo)} done, {len(todo)} to run; nothing is trained now")
    if not todo:
        return
    from trainable.probe import probe

    data = open_data(study.base.dataset, data_folder)
    speeds: dict[tuple[str, int], float] = {}
    total_s = checkpoint_bytes = 0.0
    for trial in todo:
        kind = (trial.config.model, trial.config.batch_size)
        n = min(len(data.train.labels_N), trial.config.train_images or len(data.train.labels_N))
        if kind not in speeds:
            measured = probe(trial.config, data, num_threads=study.cpus_per_trial)
            speeds[kind] = measured.images_per_s
            checkpoint_bytes = max(checkpoint_bytes, measured.checkpoint_bytes)
        table_of = timetable(trial.config, train_images=n)
        is_time = table_of.unit == "seconds"
        total_s += table_of.total if is_time else table_of.total / speeds[kind]
    import os

    import torch

    gpus = torch.cuda.device_count()
    per_trial = study.gpus_per_trial if gpus else study.cpus_per_trial
    side_by_side = max(1, int((gpus or os.cpu_count() or 1) / per_trial)) if per_trial else 1
    for (model, batch_size), speed in sorted(speeds.items()):
        console.print(f"  {model} at batch {batch_size}: {speed:,.0f} images/s", highlight=False)
    console.print(
        f"estimate on this machine: {clock(total_s)} of training, {clock(total_s / side_by_side)} "
        f"with {side_by_side} trials side by side; "
        f"{total_s * study.gpus_per_trial / 3600 if gpus else 0:.1f} GPU-hours; disk "
        f"{(len(todo) * ROW_BYTES + 2 * side_by_side * checkpoint_bytes) / 1e6:,.1f} MB",
        highlight=False,
    )
