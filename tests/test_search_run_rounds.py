"""The command's answer to results, exit status and packing, without Ray.

What Ray does is in tests/test_search_run.py. Here trainings that end at once stand in for it.
"""

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from trainings import TUNER, Cell, Trainings, without_ray

from cluster.connect import ConnectError
from search import run, session
from search.execution.schedulers import EarlyStopping
from search.results import lock, tables
from trainable.host.storage import NoSpaceError, folder_at

SPACE = """
from ray import tune
from search.explore import Asha, Grid, Leaders, Optuna
from search.study.study import Study
from trainable.config import TrialConfig

study = Study(
    name="made",
    base=TrialConfig(
        dataset="digits", model="plain", pretrained="none", width=4, precision="fp32", epochs=9
    ),
    vary={
        "batch_size": tune.grid_search([16, 64]),
        "base_lr": tune.grid_search([0.1, 0.2, 0.4]),
    },
    MORE
)
"""
DECLARED: set[Cell] = {(b, lr, 0) for b in (16, 64) for lr in (0.1, 0.2, 0.4)}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_ray: None) -> Callable[..., int]:
    """Runs the command on a study of six trials, in this process."""
    without_ray(monkeypatch)

    def command(trainings: Trainings, *arguments: str, more: str = "") -> int:
        space = tmp_path / "made.py"
        space.write_text(SPACE.replace("MORE", more))
        words = [str(space), "--out", str(tmp_path), *arguments]
        monkeypatch.setattr("sys.argv", ["run.py", *words])
        monkeypatch.setattr(TUNER, trainings)
        return run.main(words)

    return command


def rows_in(tmp_path: Path) -> pd.DataFrame:
    return pd.read_parquet(tmp_path / "made" / "trials")


def cells_in(tmp_path: Path) -> set[Cell]:
    rows = rows_in(tmp_path)
    assert not rows.duplicated("trial_key").any()
    columns = (rows["batch_size"], rows["base_lr"].round(4), rows["seed"])
    return set(zip(*columns, strict=True))


def files_in(tmp_path: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}


def known_to_schedulers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the trials that schedulers are told of, of earlier commands."""
    keys: list[str] = []
    learn = EarlyStopping.learn

    def noted(self: EarlyStopping, key: str, *known: Any, **ended: Any) -> None:
        keys.append(key)
        learn(self, key, *known, **ended)

    monkeypatch.setattr(EarlyStopping, "learn", noted)
    return keys


ROUNDS = "explore=Grid(widen=3, refine=1), leaders=Leaders(top=1, seeds=3), stop=Asha()"
# By hand: batch 16 has its best at 0.2, inside of the grid, so it is refined at once; batch 64 has
# it at 1.6, two values beyond. The best of all is then given two more seeds.
ASKED: list[set[Cell]] = [
    DECLARED,
    {(16, 0.1414, 0), (16, 0.2828, 0), (64, 0.8, 0)},
    {(64, 1.6, 0)},
    {(64, 3.2, 0)},
    {(64, 1.1314, 0), (64, 2.2627, 0)},
    {(16, 0.2, 1), (16, 0.2, 2)},
]


def test_a_study_widens_refines_and_gives_its_leaders_seeds_in_one_command(
    made: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings = Trainings()
    assert made(trainings, more=ROUNDS) == 0
    said = capsys.readouterr().out
    assert trainings.asked == ASKED
    assert cells_in(tmp_path) == set[Cell]().union(*ASKED)
    assert "made: 6 trials on dataset=digits, 0 done before, 6 to run" in said
    counts = re.findall(r"^\[(\d+)/(\d+)\]", said, re.MULTILINE)
    assert [int(num) for num, _ in counts] == list(range(1, 16))
    assert [int(of) for _, of in counts] == [6] * 6 + [9] * 3 + [10] + [11] + [13] * 2 + [15] * 2
    assert "15 completed of 15 trials" in said
    # The results ask for the later trials: none of these may be stopped.
    assert trainings.whole == set[Cell]().union(*ASKED[1:])
    assert trainings.commands == ["made"]  # one Tuner for all of them

    files = files_in(tmp_path)
    again = Trainings()
    assert made(again, more=ROUNDS) == 0
    repeated = capsys.readouterr().out
    assert again.asked == []
    assert files_in(tmp_path) == files
    assert "made: 15 trials on dataset=digits, 15 done before, 0 to run" in repeated
    assert again.commands == []
    answer = said[said.index("\nmade  dataset=digits") :]
    assert repeated.endswith(answer)


def test_a_batch_size_that_widens_does_not_wait_for_the_others(made: Callable[..., int]) -> None:
    """Trials of batch 64 are sent first, one at a time beside the next; batch 16 goes on."""
    trainings = Trainings(num_slots=4)
    assert made(trainings, more=ROUNDS) == 0
    assert set[Cell]().union(*trainings.asked) == set[Cell]().union(*ASKED)
    begun = trainings.order.index(("begins", (64, 0.8, 0)))
    ended_before = {cell for what, cell in trainings.order[:begun] if what == "ends"}
    assert ended_before == {(64, lr, 0) for lr in (0.1, 0.2, 0.4)}
    # The leaders, which are chosen among all, wait for all.
    begun = trainings.order.index(("begins", (16, 0.2, 1)))
    ended_before = {cell for what, cell in trainings.order[:begun] if what == "ends"}
    assert ended_before == set[Cell]().union(*ASKED[:-1])


@pytest.mark.parametrize("at", [2, 5], ids=["while it widens", "while leaders get seeds"])
def test_a_round_that_was_interrupted_is_75_and_the_same_command_ends_it(
    at: int,
    made: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    left = min(ASKED[at])
    known = known_to_schedulers(monkeypatch)
    assert made(Trainings({left: "interrupted"}), more=ROUNDS) == 75
    assert known == []
    total = len(set[Cell]().union(*ASKED[: at + 1]))
    said = capsys.readouterr().out
    assert f"interrupted: 1 of {total} trials are left" in said
    assert f"go on with\n  python -m search.run {tmp_path}/made.py --out {tmp_path}" in said
    rest = Trainings()
    assert made(rest, more=ROUNDS) == 0
    assert rest.asked == [{left}, *ASKED[at + 1 :]]
    # The scheduler of the second command compares with all that ended in the first.
    ended = rows_in(tmp_path).query("attempt == 1")["trial_key"]
    later = len(set[Cell]().union(*ASKED[at + 1 :]))
    assert len(known) == len(ended) - later == total - 1
    assert set(known) <= set(ended)
    assert cells_in(tmp_path) == set[Cell]().union(*ASKED)
    attempts = rows_in(tmp_path).set_index(["batch_size", "seed"])["attempt"]
    assert sorted(attempts) == [1] * 14 + [2]


ENDINGS: dict[Cell, str] = {(16, 0.1, 0): "failed", (16, 0.4, 0): "diverged"}


@pytest.mark.parametrize(
    ("ending", "status"),
    [("completed", 0), ("stopped", 0), ("diverged", 0), ("failed", 1), ("interrupted", 75)],
)
def test_the_exit_status_is_that_of_the_worst_ending(
    ending: str, status: int, made: Callable[..., int], tmp_path: Path
) -> None:
    trainings = Trainings({(64, 0.1, 0): ending})
    assert made(trainings) == status
    assert sorted(rows_in(tmp_path)["status"]) == sorted([ending] + ["completed"] * 5)
    # Once it has ended the same command says the same of it; an interrupted one is trained again.
    again = Trainings()
    assert made(again) == (0 if ending == "interrupted" else status)
    assert again.asked == ([{(64, 0.1, 0)}] if ending == "interrupted" else [])


@pytest.mark.parametrize(
    ("retry", "trained", "status"),
    [
        ("failed", {(16, 0.1, 0)}, 0),
        ("diverged", {(16, 0.4, 0)}, 1),
        ("all", {(16, 0.1, 0), (16, 0.4, 0)}, 0),
    ],
)
def test_retry_trains_such_trials_again_and_no_other(
    retry: str, trained: set[Cell], status: int, made: Callable[..., int], tmp_path: Path
) -> None:
    assert made(Trainings(ENDINGS)) == 1
    retried = Trainings()
    assert made(retried, "--retry", retry) == status
    assert retried.asked == [trained]
    assert cells_in(tmp_path) == DECLARED
    rows = rows_in(tmp_path)
    attempts = {2 if cell in trained else 1 for cell in DECLARED}
    assert set(rows["attempt"]) == attempts
    assert (rows["status"] == "completed").sum() == 4 + len(trained)


def test_a_trial_that_fails_again_is_retried_once_a_command(made: Callable[..., int]) -> None:
    failing = {(64, 0.1, 0): "failed"}
    assert made(Trainings(failing), more=ROUNDS) == 1
    retried = Trainings(failing)
    assert made(retried, "--retry", "failed", more=ROUNDS) == 1
    assert retried.asked == [{(64, 0.1, 0)}]  # not in the later rounds, too


@pytest.mark.parametrize(
    ("error", "status", "stdout", "stderr"),
    [
        (KeyboardInterrupt(), 75, "go on with\n  python -m search.run ", ""),
        (
            NoSpaceError(errno.ENOSPC, "the disk of results is full: free some"),
            75,
            "the disk of results is full: free some\ngo on with\n  python -m search.run ",
            "",
        ),
        (ConnectError("no Ray cluster there"), 2, "", "search.run: no Ray cluster there\n"),
    ],
    ids=["Ctrl-C", "disk full", "no cluster"],
)
def test_what_ends_a_study_on_the_way_has_its_exit_status_and_no_traceback(
    error: BaseException,
    status: int,
    stdout: str,
    stderr: str,
    made: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert made(Trainings(raises=error)) == status
    said = capsys.readouterr()
    assert stdout in said.out
    assert said.err == stderr


def test_a_study_that_another_process_runs_is_refused_with_2(
    made: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings = Trainings()
    (tmp_path / "made").mkdir()
    with lock.held(folder_at(str(tmp_path / "made"))):
        assert made(trainings) == 2
    said = capsys.readouterr().err
    assert said.startswith("search.run: ")
    assert said.count("\n") == 1
    assert trainings.asked == []
    assert made(trainings) == 0


def test_a_report_that_cannot_be_written_changes_no_exit_status(
    made: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(results: object) -> None:
        raise KeyError("surface")

    monkeypatch.setattr("search.report.report.write_report", broken)
    assert made(Trainings()) == 0
    said = capsys.readouterr().out
    assert "the report could not be written (KeyError: 'surface'): try python -m " in said
    assert f"search.report {tmp_path}/made\n" in said
    assert made(Trainings(ENDINGS), "--set", "seeds=2") == 0  # of the second seed none ends so


def test_a_study_above_the_number_of_files_packs_itself(
    made: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def names(table: str) -> list[str]:
        return sorted(path.name.split("-")[0] for path in (tmp_path / "made" / table).iterdir())

    monkeypatch.setattr(session, "COMPACT_FROM", 12)  # six trials are twelve files
    assert made(Trainings(ENDINGS)) == 1
    assert len(names("trials")) == len(names("epochs")) == 6
    separate = {table: pd.read_parquet(tmp_path / "made" / table) for table in tables.TABLES}

    monkeypatch.setattr(session, "COMPACT_FROM", 11)
    assert made(Trainings()) == 1
    assert names("trials") == names("epochs") == ["packed"]
    for table, by in (("trials", ["trial_key"]), ("epochs", ["trial_key", "epoch"])):
        packed = pd.read_parquet(tmp_path / "made" / table)
        pd.testing.assert_frame_equal(
            packed.sort_values(by, ignore_index=True),
            separate[table].sort_values(by, ignore_index=True),
        )

    # Packed trials are known as done; one that runs again leaves the pack, or it were there twice.
    monkeypatch.setattr(session, "COMPACT_FROM", 100)
    again = Trainings()
    assert made(again, "--retry", "failed", "--set", "seeds=2") == 0
    everything = DECLARED | {(b, lr, 1) for b, lr, _ in DECLARED}
    assert again.asked == [{(16, 0.1, 0)} | everything - DECLARED]
    assert len(names("trials")) == len(names("epochs")) == 1 + 7
    assert cells_in(tmp_path) == everything
    monkeypatch.setattr(session, "COMPACT_FROM", 15)
    assert made(Trainings(), "--set", "seeds=2") == 0
    assert names("trials") == names("epochs") == ["packed"]
    assert cells_in(tmp_path) == everything
    epochs = pd.read_parquet(tmp_path / "made" / "epochs")
    assert sorted(
        epochs.groupby("trial_key")["epoch"].agg(["min", "max", "size"]).to_numpy().tolist()
    ) == [
        [1, 2, 2],  # the one that diverged
        *[[1, 9, 9]] * 11,
    ]
    assert tables.faults(tables.open_folder(str(tmp_path / "made"))) == []


def test_a_study_packs_itself_above_as_many_files_as_its_page_says() -> None:
    page = (Path(__file__).parent.parent / "docs" / "reliability.md").read_text()
    (said,) = re.findall(r"Above ([\d,]+) files, a study packs its tables by itself", page)
    assert int(said.replace(",", "")) == session.COMPACT_FROM
