import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import no_tables, ready_of
from made_tables import CONFIG, row

from search.explore.ask import ask
from search.results import tables
from search.results.tables import EPOCHS, TRIALS, Results, ResultsError
from search.session import known_trials
from search.study.explorer import PlannedTrial
from search.study.study import Study
from trainable.config import trial_key

# Design 4.2: users and scripts rely on these names.
TRIAL_COLUMNS = set(
    """
    study trial_key seed attempt status reason dataset model pretrained train_blocks batch_size
    base_lr lr_scaling reference_batch_size optimizer momentum weight_decay no_bias_decay
    warmup_epochs decay epochs dropout width depth norm augment precision peak_lr epochs_completed
    updates_completed examples_seen best_epoch val_auroc val_accuracy val_loss test_auroc
    test_accuracy test_balanced_accuracy test_loss train_wall_s images_per_s peak_memory_gib
    microbatch_size accumulation_steps oom_retries noise_scale num_gpus device host started_at
    ended_at gpu_shared
    """.split()  # noqa: SIM905
)
EPOCH_COLUMNS = set(
    """
    study trial_key seed attempt epoch updates examples_seen lr train_loss train_accuracy val_loss
    val_accuracy val_auroc grad_norm noise_scale epoch_wall_s images_per_s microbatch_size
    """.split()  # noqa: SIM905
)


@pytest.fixture
def opened(tmp_path: Path) -> Results:
    return tables.open_results(str(tmp_path), "s")


def test_columns_are_the_contracts() -> None:
    assert set(TRIALS.names) >= TRIAL_COLUMNS
    assert set(EPOCHS.names) >= EPOCH_COLUMNS
    assert len(TRIALS.names) == len(set(TRIALS.names))


def test_pandas_reads_what_was_committed(opened: Results, tmp_path: Path) -> None:
    for i, key in enumerate(("k1", "k2")):
        tables.commit_trial(opened, row(key, seed=i, train_blocks=None if i else 2))
        epochs = [{"study": "s", "trial_key": key, "epoch": e, "val_auroc": 0.5} for e in (1, 2)]
        tables.commit_epochs(opened, key, epochs)
    trials = pd.read_parquet(tmp_path / "s" / "trials")
    assert list(trials["trial_key"]) == ["k1", "k2"]
    assert list(trials.columns) == TRIALS.names
    assert str(trials["started_at"].dt.tz) == "UTC"
    pd.testing.assert_frame_equal(trials, tables.trials(opened))
    epochs_frame = pd.read_parquet(tmp_path / "s" / "epochs")
    assert len(epochs_frame) == 4
    assert math.isnan(epochs_frame["train_loss"][0])


def test_committing_again_replaces(opened: Results) -> None:
    tables.commit_trial(opened, row("k", status="interrupted"))
    tables.commit_trial(opened, row("k", attempt=2))
    table = tables.trials(opened)
    assert list(zip(table["status"], table["attempt"], strict=True)) == [("completed", 2)]


def test_a_part_from_before_a_column_came_is_read_with_nulls(
    opened: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        older = TRIALS.remove(TRIALS.get_field_index("momentum"))
        older = older.remove(older.get_field_index("split"))
        patch.setattr(tables, "TRIALS", older)
        tables.commit_trial(opened, row("old"))
    tables.commit_trial(opened, row("new", split="by_image"))
    table = tables.trials(opened).set_index("trial_key")
    assert pd.isna(table.loc["old", "split"])
    assert table.loc["new", "split"] == "by_image"
    assert math.isnan(table.loc["old", "momentum"])
    assert table.loc["new", "momentum"] == 0.9


def test_a_data_set_has_one_name_the_last_it_was_read_by(opened: Results) -> None:
    """Its folder was renamed, or the row is of a version that wrote the study's name for it."""
    earlier, later = (pd.Timestamp(f"2026-11-{day}", tz="UTC") for day in (20, 21))
    for key, dataset, fingerprint, ended_at in (
        ("a", "pcam", "f1", earlier),
        ("b", "moles", "f1", later),
        ("c", "pcam", "f2", later),
        ("d", "pcam", None, earlier),
    ):
        more = {"data_fingerprint": fingerprint, "ended_at": ended_at}
        tables.commit_trial(opened, row(key, dataset=dataset, **more))
    table = tables.trials(opened).set_index("trial_key")
    assert table["dataset"].to_dict() == {"a": "moles", "b": "moles", "c": "pcam", "d": "pcam"}


def test_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResultsError, match="cannot write to --out"):
        tables.open_results(str(tmp_path / "file"), "s")


def planned_study(**changes: Any) -> Study:
    from ray import tune

    vary = {"batch_size": tune.grid_search([16, 32]), "base_lr": tune.grid_search([0.1, 0.2])}
    return Study(**({"name": "s", "base": CONFIG, "vary": vary} | changes))


def planned(data_fingerprint: str = "d", **changes: Any) -> list[PlannedTrial]:
    known = replace(no_tables(), data_fingerprint=data_fingerprint)
    return ask(planned_study(**changes), known, 1)


def test_plan_is_cells_times_seeds_and_more_seeds_keep_the_keys() -> None:
    one = planned()
    two = planned(seeds=2)
    assert (len(one), len(two)) == (4, 8)
    assert [t.key for t in one] == [t.key for t in two[:4]]
    assert len({t.key for t in two}) == 8
    assert {t.config.seed for t in two} == {0, 1}


def test_what_is_missing_runs_and_what_failed_on_request(opened: Results) -> None:
    trials = planned()
    statuses = ["completed", "failed", "diverged", "interrupted"]
    for trial, status in zip(trials, statuses, strict=True):
        tables.commit_trial(opened, row(trial.key, status=status))
    tables.commit_trial(opened, row("of another plan"))
    table = tables.trials(opened)
    ready = ready_of(planned_study(), opened)
    keys = [t.key for t in trials]

    def left(retry: str | None, rows: pd.DataFrame = table) -> list[str]:
        known = known_trials(ready, rows, retry=retry)
        return [t.key for t in ask(ready.study, known, 1) if t.key not in known.ended]

    assert left(None) == keys[3:]
    assert left("failed") == [keys[1], keys[3]]
    assert left("diverged") == keys[2:]
    assert left("all") == keys[1:]
    assert left(None, table.iloc[:0]) == keys
    assert set(tables.of_trials(table, keys[:2])["trial_key"]) == set(keys[:2])


def test_other_data_is_another_trial() -> None:
    first, second = (planned(fingerprint, seeds=2) for fingerprint in "ab")
    assert not {t.key for t in first} & {t.key for t in second}
    sent = [(t.config.seed, t.config.batch_size, t.config.base_lr) for t in first]
    # Seed by seed, large batches first.
    assert sent == [(s, b, lr) for s in (0, 1) for b in (32, 16) for lr in (0.1, 0.2)]
    assert [t.config for t in second] == [t.config for t in first]
    assert [t.key for t in second] == [trial_key(t.config, "b") for t in second]
