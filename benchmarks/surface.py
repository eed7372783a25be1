"""Records a whole surface with its learning curves, on which searches are replayed.

    uv run python -m benchmarks.surface --data DIR [--out results]

The flagship's preview network on real patches: 8 batch sizes x 13 lrs x 3 seeds, each with its
score after every epoch (about half an hour on two cores; the same command goes on after an
interruption). Writes benchmarks/recorded/preview_surface.parquet: a row an epoch. Last line: one
JSON object.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from ray import tune

from search.results import open_results, tables
from search.study import Study
from spaces.bases import SMALL, VGG16

RECORDED = Path(__file__).parent / "recorded" / "preview_surface.parquet"
FIELDS = ("batch_size", "seed", "status", "peak_lr")  # of a trial
study = Study(
    name="preview_surface",
    base=VGG16,
    vary={
        "batch_size": tune.grid_search([8, 16, 32, 64, 128, 256, 512, 1024]),
        "base_lr": tune.grid_search([float(f"{lr:.3g}") for lr in np.geomspace(0.02, 20, 13)]),
    },
    seeds=3,
    preview=SMALL,
)


def curves(trials: pd.DataFrame, epochs: pd.DataFrame) -> pd.DataFrame:
    """A row for each evaluation: batch_size, lr, seed, status of the trial, epoch, val_auroc.

    The last row of a trial that diverged has no score.
    """
    ended = trials[trials["status"].isin(("completed", "diverged"))].set_index("trial_key")
    scores = epochs[epochs["trial_key"].isin(ended.index)][["trial_key", "epoch", "val_auroc"]]
    lost = ended.index[ended["status"] == "diverged"]
    after = ended.loc[lost, "epochs_completed"] + 1
    last = pd.DataFrame({"trial_key": lost, "epoch": after.to_numpy(), "val_auroc": np.nan})
    rows = pd.concat([scores, last]).join(ended[list(FIELDS)], on="trial_key")
    table = rows.rename(columns={"peak_lr": "lr"}).drop(columns="trial_key")
    table = table.astype({"lr": "float32", "val_auroc": "float32", "epoch": "float32"})
    return table.sort_values(["batch_size", "lr", "seed", "epoch"], ignore_index=True)


def main() -> None:
    """Train what is missing, then write the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.surface", description=__doc__)
    parser.add_argument("--data", required=True, help="the folder of the real patches")
    parser.add_argument("--out", default="results", help="where the results are")
    asked = parser.parse_args()
    study_file = [str(Path(__file__)), "--preview", "--data", asked.data, "--out", asked.out]
    subprocess.run([sys.executable, "-m", "search.run", *study_file], check=True)
    results = open_results(asked.out, study.name)
    table = curves(tables.trials(results), tables.epochs(results))
    RECORDED.parent.mkdir(exist_ok=True)
    table.to_parquet(RECORDED, compression="zstd", index=False)
    figures = {"rows": len(table), "bytes": RECORDED.stat().st_size}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
