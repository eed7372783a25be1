"""What the driver commits of what trials report: played by hand, without Ray."""

import errno
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from ray import tune
from rich.console import Console

from search.execution import hosts, recorder, runner
from search.execution.progress import Progress
from search.execution.recorder import MOST_LOST_WORKERS, Recorder, Setting
from search.execution.watchdog import HOST_MEMORY
from search.explore.ask import ask
from search.results import tables
from search.results.tables import Results
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.host import storage
from trainable.host.storage import NoSpaceError, StorageError

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none", epochs=3)
STUDY = Study(name="s", base=BASE, vary={"base_lr": tune.grid_search([0.1, 0.2])})


class Scheduler:
    """Why it stopped whom."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}


class Played:
    """A command's record, and one of its trials as Ray Tune hands it to callbacks."""

    def __init__(self, opened: Results, **attempts: int) -> None:
        self.known = Tables(data_fingerprint="d", folder=opened.folder)
        (self.planned, self.other) = ask(STUDY, self.known, room=1)
        self.key = self.planned.key
        setting = Setting(
            study=STUDY,
            results=opened,
            data_folder=None,
            dataset="moles",
            split="by_slide",
            data_fingerprint="d",
            train_images=96,
            tables=self.known,
            attempts={self.key: attempts.get("attempts", 0)},
            code_version="c0ffee",
        )
        self.scheduler = Scheduler()
        self.progress = Progress(Console(quiet=True), ["base_lr"], "val_auroc", 2, 0)
        scheduler: Any = self.scheduler
        self.record = Recorder(setting, self.progress, scheduler)
        self.record.expect(self.planned)
        self.trial = self._trial(self.planned)

    def _trial(self, planned: PlannedTrial) -> Any:
        metadata = SimpleNamespace(metric_analysis={"a": 1}, metric_n_steps={"a": 1})
        metadata.num_failures = 1
        config = {"key": planned.key, "batch_size": 32, "resources": {"CPU": 1.0}}
        kept_by_ray = {"storage": "here", "evaluated_params": dict(config)}
        return SimpleNamespace(
            trial_id="t0",
            config=config,
            run_metadata=metadata,
            error_file=None,
            max_failures=3,
            **kept_by_ray,
        )

    def again(self) -> None:
        """The trial is sent once more, as a trial of Ray's own."""
        self.record.expect(self.planned)
        self.trial = self._trial(self.planned)

    def epoch(self, number: int, **changes: Any) -> None:
        row = {
            "epoch": number,
            "updates": 3 * number,
            "examples_seen": 96 * number,
            "val_auroc": 0.5 + number / 10,
            "val_loss": 1.0 / number,
            "epoch_wall_s": 2.0,
            "images_per_s": 48.0,
        }
        self.record.on_trial_result(1, [], self.trial, {"epoch_row": row | changes})
        self.record.writer.close()  # which writes what waits

    def end(self, **row: Any) -> None:
        self.record.on_trial_result(1, [], self.trial, {"trial_row": {"reason": "", **row}})
        self.complete()

    def complete(self) -> None:
        self.record.on_trial_complete(1, [], self.trial)
        self.record.settle()

    def error(self) -> None:
        self.record.on_trial_error(1, [], self.trial)
        self.record.settle()


@pytest.fixture
def opened(tmp_path: Path) -> Results:
    return tables.open_results(str(tmp_path), "s")


def only_row(opened: Results) -> "pd.Series[Any]":
    table = tables.trials(opened)
    assert len(table) == 1
    return table.iloc[0]


def epochs_of(opened: Results) -> list[int]:
    found: list[int] = tables.epochs(opened)["epoch"].to_list()
    return found


def state_of(opened: Results, key: str) -> storage.Folder:
    folder = opened / "checkpoints" / key
    storage.write(folder, "even.pt", b"state")
    return folder


def test_a_row_names_what_was_read_and_how_validation_was_made(opened: Results) -> None:
    """A study that names no data set is one of `pcam`, whatever its folder has."""
    played = Played(opened)
    played.end(status="completed")
    row = only_row(opened)
    assert (row["dataset"], row["split"]) == ("moles", "by_slide")
    assert row["trial_key"] == played.planned.key


def test_a_stopped_trial_keeps_its_epochs_and_scores(opened: Results) -> None:
    played = Played(opened, attempts=4)
    folder = state_of(opened, played.key)
    played.epoch(1)
    assert epochs_of(opened) == [1]  # each is there soon after it came
    played.scheduler.reasons[played.key] = "asha at 192 images"
    played.epoch(2)
    played.complete()
    row = only_row(opened)
    assert (row["status"], row["reason"]) == ("stopped", "asha at 192 images")
    assert (row["epochs_completed"], row["updates_completed"], row["examples_seen"]) == (2, 6, 192)
    assert (row["val_auroc"], row["val_loss"]) == (0.7, 0.5)
    assert (row["train_wall_s"], row["images_per_s"]) == (4.0, 48.0)
    assert (row["study"], row["trial_key"], row["seed"]) == ("s", played.key, 0)
    assert (row["attempt"], row["base_lr"]) == (5, played.planned.config.base_lr)
    assert (row["data_fingerprint"], row["code_version"]) == ("d", "c0ffee")
    assert epochs_of(opened) == [1, 2]
    assert set(tables.epochs(opened)["attempt"]) == {5}
    assert tables.faults(opened) == []
    assert storage.names(folder, ".pt") == []  # nothing goes on from it
    # What explorers weigh of it.
    seen = {"status": "stopped", "val_auroc": 0.7, "examples_seen": 192, "train_wall_s": 4.0}
    assert played.known.ended == {
        played.key: seen
        | {"peak_memory_gib": None, "collapsed": None, "forecast": None, "forecast_std": None}
    }
    assert played.progress.ended == 1
    # A study of many trials keeps nothing of one that ended.
    record = played.record
    assert record.planned == record.rows == record.attempt == record.under_way == {}
    assert played.trial.config == played.trial.evaluated_params == {}
    assert played.trial.run_metadata.metric_analysis == {}
    assert played.trial.run_metadata.metric_n_steps == {}
    assert tables.make_sound(opened) == []


def test_epochs_beyond_a_divergence_are_those_of_another_attempt_and_go(opened: Results) -> None:
    first = Played(opened)
    for number in (1, 2, 3):
        first.epoch(number)
    first.record.commit_interrupted()
    again = Played(opened, attempts=1)
    again.epoch(1, val_auroc=0.25)
    assert epochs_of(opened) == [1, 2, 3]  # it may yet come to them
    again.end(status="diverged", reason="the loss is NaN", epochs_completed=1)
    assert epochs_of(opened) == [1]
    assert tables.epochs(opened)["val_auroc"].to_list() == [0.25]
    assert only_row(opened)["status"] == "diverged"
    # One that ends where the earlier attempt did keeps all that it has.
    whole = Played(opened, attempts=2)
    for number in (1, 2):
        whole.epoch(number)
    whole.end(status="completed", epochs_completed=2)
    assert epochs_of(opened) == [1, 2]


def test_a_later_command_goes_on_from_the_rows_that_are_there(opened: Results) -> None:
    first = Played(opened)
    for number in (1, 2):
        first.epoch(number)
    first.record.commit_interrupted()
    row = only_row(opened)
    assert (row["status"], row["epochs_completed"], row["train_wall_s"]) == ("interrupted", 2, 4.0)
    later = Played(opened, attempts=1)
    assert [each["epoch"] for each in later.record.rows_held(later.key)] == [1, 2]
    assert later.record.rows_held("unknown") == []
    later.epoch(3)
    assert epochs_of(opened) == [1, 2, 3]
    assert tables.epochs(opened)["attempt"].to_list() == [1, 1, 2]


def test_rows_from_before_a_column_came_are_gone_on_from(opened: Results) -> None:
    """A whole number that is not there is no NaN, which no column of whole numbers takes."""
    first = Played(opened)
    first.epoch(1, microbatch_size=32, noise_scale=float("nan"))
    first.epoch(2)
    later = Played(opened)
    later.epoch(3, microbatch_size=16)
    assert tables.epochs(opened)["microbatch_size"].to_list() == pytest.approx(
        [32, float("nan"), 16], nan_ok=True
    )
    assert "noise_scale" in later.record.rows_held(later.key)[0]


def test_a_trial_that_its_scheduler_stopped_before_any_epoch_is_still_to_run(
    opened: Results,
) -> None:
    played = Played(opened)
    played.scheduler.reasons[played.key] = "asha at 0 images"
    played.complete()
    assert tables.trials(opened).empty
    assert played.known.ended == {}


@pytest.mark.parametrize(
    ("status", "until_share", "kept"),
    [
        ("completed", 1.0, []),
        ("diverged", 1.0, []),
        ("stopped", 1.0, []),
        ("failed", 1.0, ["even.pt"]),
        ("stopped", 0.5, ["even.pt"]),  # a generation: the next one begins from it
    ],
)
def test_a_state_is_kept_where_a_trial_may_go_on(
    status: str, until_share: float, kept: list[str], opened: Results
) -> None:
    played = Played(opened)
    config = replace(played.planned.config, until_share=until_share)
    played.record.expect(PlannedTrial(played.key, config))
    folder = state_of(opened, played.key)
    played.end(status=status)
    assert storage.names(folder, ".pt") == kept


def test_a_traceback_is_a_file_that_the_reason_names(opened: Results, tmp_path: Path) -> None:
    played = Played(opened)
    played.end(status="failed", reason="KeyError: x", traceback="Traceback\nKeyError: x")
    where = tmp_path / "s" / "errors" / f"{played.key}.txt"
    assert where.read_text() == "Traceback\nKeyError: x"
    assert only_row(opened)["reason"] == f"KeyError: x (traceback: {where})"


def test_a_lost_worker_makes_another_attempt(
    opened: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "nodes_with_cores", lambda: ["here"])
    played = Played(opened)
    played.record.on_trial_recover(1, [], played.trial)
    assert played.trial.max_failures == 3
    said = tmp_path / "error.txt"
    said.write_text(f"Failure # 1\nold\nFailure # 2\nRayActorError\n{HOST_MEMORY}\n\n")
    played.trial.error_file = said
    played.trial.run_metadata.num_failures = 2
    played.record.on_trial_recover(1, [], played.trial)
    assert played.trial.max_failures == 2  # one more chance, and then no
    played.epoch(1)
    assert played.trial.max_failures == 2
    assert tables.epochs(opened)["attempt"].to_list() == [3]
    played.error()
    row = only_row(opened)
    assert row["status"] == "failed"
    assert row["reason"].startswith(f"{HOST_MEMORY}, 2 times (traceback: ")
    assert "old" not in (tmp_path / "s" / "errors" / f"{played.key}.txt").read_text()


class Losses:
    """A trial that loses its workers on nodes that may be gone by then, as Ray counts them."""

    def __init__(self, played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
        self.played, self.trial = played, played.trial
        self.trial.run_metadata.num_failures = 0
        self.trial.max_failures = MOST_LOST_WORKERS
        self.node = "here"
        monkeypatch.setattr(recorder, "nodes_with_cores", lambda: ["here", "there"])
        monkeypatch.setattr(played.record.stalls, "node_of", lambda _: self.node)

    def num_until_it_fails(self, *nodes: str) -> int:
        """How many workers may be lost on these nodes, one after the other, before it fails."""
        for count, node in enumerate(nodes, 1):
            self.node = node
            self.trial.run_metadata.num_failures += 1
            if self.trial.run_metadata.num_failures > self.trial.max_failures:
                return count
            self.played.record.on_trial_recover(1, [], self.trial)
        return 0


def test_a_worker_that_evaluated_has_started_until_it_is_lost(
    opened: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = Played(opened)
    played.epoch(1)
    assert played.record.stalls.heard["t0"].has_reported
    assert Losses(played, monkeypatch).num_until_it_fails("here") == 0
    assert "t0" not in played.record.stalls.heard


def test_a_worker_that_dies_by_itself_may_do_so_three_times(
    opened: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Losses(Played(opened), monkeypatch).num_until_it_fails(*["here"] * 9) == 4


def test_a_node_that_was_taken_back_does_not_count_as_the_trials_failure(
    opened: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = Losses(Played(opened), monkeypatch)
    assert losses.num_until_it_fails(*["gone"] * 9, "here", "here") == 0
    # A trial that takes its nodes with it, one after the other, ends some day.
    assert losses.num_until_it_fails("gone", "gone") == 2


def test_a_trial_that_gets_on_between_may_lose_any_number_of_workers(
    opened: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = Played(opened)
    losses = Losses(played, monkeypatch)
    for epoch in (1, 2, 3):
        assert losses.num_until_it_fails("here", "here", "here") == 0
        played.epoch(epoch)
    played.epoch(3)  # again, by another attempt: nothing new
    assert losses.num_until_it_fails("here", "here", "here", "here") == 4


def test_a_host_that_fails_everything_is_left_out_and_its_trials_go_on(
    opened: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = Played(opened)
    played.record.progress.console = Console(record=True, width=200)
    losses = Losses(played, monkeypatch)
    monkeypatch.setattr(hosts, "nodes_with_cores", lambda: ["here", "there"])
    error = {"kind": "OSError", "reason": "OSError: no disk", "node": "here", "host": "h1"}
    error["traceback"] = "Traceback: no disk"
    for planned in (played.planned, played.planned, played.other):
        played.record.expect(planned)
        played.trial.config["key"] = planned.key
        played.record.on_trial_result(1, [], played.trial, {"host_error": error})
        assert losses.num_until_it_fails("here") == 0
    assert played.record.hosts.left_out == {
        "here": "h1: 3 workers in a row failed there: OSError: no disk"
    }
    lines = played.progress.console.export_text().splitlines()
    assert [line for line in lines if "worker was lost" not in line] == [
        "h1 is left out from now on: 3 workers in a row failed there: OSError: no disk"
    ]
    assert lines[0] == (
        "base_lr=0.1 seed=0: its worker was lost and it starts again: OSError: no disk (on h1)"
    )
    assert played.trial.placement_group_factory._kwargs == {
        "bundle_label_selector": [{"ray.io/node-id": "!in(here)"}]
    }
    # The failures there do not count for the trial any more.
    assert losses.num_until_it_fails("there", "there", "there", "there") == 4
    assert tables.trials(opened).empty
    played.record.on_trial_result(1, [], played.trial, {"host_error": error})
    played.record.on_trial_error(1, [], played.trial)
    played.record.settle()
    reason = only_row(opened)["reason"]
    assert reason.startswith("its worker ended 7 times: OSError: no disk (on h1) (traceback: ")
    assert Path(reason.split("traceback: ")[1].rstrip(")")).read_text() == "Traceback: no disk"


def test_a_trial_whose_workers_are_lost_too_often_says_why(opened: Results, tmp_path: Path) -> None:
    played = Played(opened)
    played.error()
    assert only_row(opened)["reason"].startswith("its worker ended 1 times: nothing more is known")
    played.again()
    played.trial.error_file = tmp_path / "error.txt"
    played.trial.error_file.write_text("Failure # 1\nTraceback\nRayActorError: it died\n\n")
    played.error()
    assert only_row(opened)["reason"].startswith("its worker ended 1 times: RayActorError: it died")
    played.again()
    played.record.lost_because["t0"] = "it reported nothing for too long"
    played.error()
    assert "1 times: it reported nothing for too long (tr" in only_row(opened)["reason"]


def test_a_full_disk_ends_the_study_and_no_trial(
    opened: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = Played(opened)
    played.epoch(1)
    with pytest.raises(StorageError, match="no space left in /here"):
        played.end(status="interrupted", reason="no space left in /here")
    assert tables.trials(opened).empty

    def full(*_: object) -> None:
        raise NoSpaceError(errno.ENOSPC, "full")

    monkeypatch.setattr(tables, "commit_trial", full)
    played.record.commit_interrupted()  # says nothing more
    wrapped = RuntimeError("as Ray wraps it")
    wrapped.__cause__ = RuntimeError("twice")
    wrapped.__cause__.__context__ = error = NoSpaceError(errno.ENOSPC, "full")
    assert runner._stopping_in(wrapped) is error
    assert runner._stopping_in(ValueError()) is None


def test_the_end_of_a_traceback_is_one_line() -> None:
    assert recorder.one_line("Traceback\n  at x\nKeyError: 'y'  \n\n") == "KeyError: 'y'"
    assert recorder.one_line("\n ") == "\n "
    assert recorder.one_line("a" * 300) == "a" * 200
