"""A study driven from Python: what the command does, from a script, a notebook and a thread.

Trainings that end at once stand in for Ray; tests/test_search_run.py has the whole.
"""

import errno
import json
import re
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from ray import tune
from trainings import TUNER, Cell, Trainings, without_ray

from search import run
from search.explore import Ablation, Asha, Grid, Leaders, Optuna
from search.report.findings import numbers, of_study
from search.results import tables
from search.results.tables import Results
from search.session import run_study
from search.study import Reported, Trend
from search.study.space_file import SpaceFileError
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.host.signals import stop_on_sigterm
from trainable.host.storage import NoSpaceError

BASE = TrialConfig(
    dataset="digits", model="plain", pretrained="none", width=4, precision="fp32", epochs=9
)
GRID: dict[str, Any] = {
    "batch_size": tune.grid_search([16, 64]),
    "base_lr": tune.grid_search([0.1, 0.2, 0.4]),
}
SEARCHED: dict[str, Any] = {
    "batch_size": tune.choice([16, 64]),
    "base_lr": tune.loguniform(0.1, 1.0),
}
SPACE = """
from ray import tune
from search.study.study import Study
from trainable.host.signals import stop_on_sigterm
from trainable.config import TrialConfig

study = Study(
    name="made",
    base=TrialConfig(dataset="digits", model="plain", pretrained="none", width=4, epochs=9),
    vary={"base_lr": tune.grid_search([0.1, 0.2, 0.4])},
)
"""
FAILING: Cell = (64, 0.1, 0)


def study(**changes: Any) -> Study:
    return Study(**({"name": "made", "base": BASE, "vary": GRID} | changes))


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, no_ray: None) -> Callable[..., Trainings]:
    """Lets trainings that end at once take the place of Ray's."""
    without_ray(monkeypatch)

    def put(**how: Any) -> Trainings:
        trainings = Trainings(**how)
        monkeypatch.setattr(TUNER, trainings)
        return trainings

    return put


def rows_of(results: Results) -> pd.DataFrame:
    """The trials as users read them."""
    assert tables.faults(results) == []
    rows = pd.read_parquet(f"{results.folder.uri}/trials")
    assert not rows.duplicated("trial_key").any()
    return rows


def about(results: Results) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(results.folder.uri) / "study.json").read_text())
    return content


# --- from Python ----------------------------------------------------------------------------------


def test_a_study_is_run_from_python_and_gone_on_with(
    train: Callable[..., Trainings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings = train()
    results = run_study(study(), out=tmp_path)
    assert results == tables.open_results(str(tmp_path), "made")
    assert list(rows_of(results)["status"]) == ["completed"] * 6
    said = capsys.readouterr().out
    assert "made: 6 trials on dataset=digits, 0 done before, 6 to run" in said
    assert "[6/6] " in said
    assert "6 completed of 6 trials" in said
    assert "report: report.html" in said
    assert about(results)["space_file"] is about(results)["space_sha256"] is None
    # The same call goes on: with nothing to do, then with another seed.
    again = run_study(study(), out=str(tmp_path))
    assert again == results
    assert len(trainings.asked) == 1
    more = run_study(study(), out=str(tmp_path), settings=["seeds=2"])
    assert len(trainings.asked[1]) == 6
    assert len(rows_of(more)) == 12
    assert about(more)["settings"] == ["seeds=2"]


def test_a_space_file_is_run_from_python_as_the_command_runs_it(
    train: Callable[..., Trainings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = tmp_path / "made.py"
    space.write_text(SPACE)
    trainings = train()
    by_path, by_text = (run_study(p, out=tmp_path / "a") for p in (space, str(space)))
    assert by_path == by_text
    monkeypatch.setattr("sys.argv", ["run.py"])
    assert run.main([str(space), "--out", str(tmp_path / "b")]) == 0
    by_command = tables.open_results(str(tmp_path / "b"), "made")
    assert trainings.commands == ["made", "made"]
    assert set(rows_of(by_path)["trial_key"]) == set(rows_of(by_command)["trial_key"])
    differ = ("written_at",)
    from_python, from_command = about(by_path), about(by_command)
    assert {k: v for k, v in from_python.items() if k not in differ} == {
        k: v for k, v in from_command.items() if k not in differ
    }


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["optimiser=adam"], "there is no field 'optimiser'; did you mean 'optimizer'?"),
        (["seeds=0"], "seeds must be a whole number >= 1, got 0"),
        (["batch_size=100000"], "batch_size 100000 is larger than the "),
        (["explore.num_configs=3"], "there is no field 'explore.num_configs'"),
    ],
)
def test_a_wrong_setting_is_the_commands_error(
    settings: list[str],
    said: str,
    train: Callable[..., Trainings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainings = train()
    space = tmp_path / "made.py"
    space.write_text(SPACE)
    with pytest.raises(SpaceFileError) as caught:
        run_study(space, out=tmp_path, settings=settings)
    monkeypatch.setattr("sys.argv", ["run.py"])
    flags = [word for setting in settings for word in ("--set", setting)]
    assert run.main([str(space), "--out", str(tmp_path), *flags]) == 2
    assert capsys.readouterr().err == f"search.run: {caught.value}\n"
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert trainings.commands == []


def test_a_missing_file_and_a_misspelt_retry_are_one_line(
    train: Callable[..., Trainings], tmp_path: Path
) -> None:
    train()
    with pytest.raises(SpaceFileError, match=r"there is no space file nowhere\.py"):
        run_study("nowhere.py", out=tmp_path)
    with pytest.raises(
        SpaceFileError, match="retry must be one of failed, diverged, all, got 'fail'"
    ):
        run_study(study(), out=tmp_path, retry="fail")
    assert list(tmp_path.iterdir()) == []


def test_where_trials_are_left_it_stops_as_ctrl_c_does_and_the_same_call_goes_on(
    train: Callable[..., Trainings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(endings={FAILING: "interrupted"})
    with pytest.raises(KeyboardInterrupt):
        run_study(study(), out=tmp_path)
    said = capsys.readouterr().out
    assert "interrupted: 1 of 6 trials are left\ncall run_study again to go on\n" in said
    assert "report: " not in said
    trainings = train()
    results = run_study(study(), out=tmp_path)
    assert trainings.asked == [{FAILING}]
    assert sorted(rows_of(results)["attempt"]) == [1] * 5 + [2]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), NoSpaceError(errno.ENOSPC, "the disk is full")]
)
def test_what_ends_a_study_on_the_way_leaves_it_to_be_gone_on_with(
    error: BaseException, train: Callable[..., Trainings], tmp_path: Path
) -> None:
    train(raises=error)
    with pytest.raises(type(error)):
        run_study(study(), out=tmp_path)
    train()
    assert len(rows_of(run_study(study(), out=tmp_path))) == 6  # the lock is free


def test_a_failed_trial_raises_nothing_and_is_retried(
    train: Callable[..., Trainings], tmp_path: Path
) -> None:
    train(endings={FAILING: "failed"})
    results = run_study(study(), out=tmp_path)
    assert (rows_of(results)["status"] == "failed").sum() == 1
    trainings = train()
    rows = rows_of(run_study(study(), out=tmp_path, retry="failed"))
    assert trainings.asked == [{FAILING}]
    assert set(rows["status"]) == {"completed"}


def test_it_works_in_a_thread_and_beside_another_study(
    train: Callable[..., Trainings], tmp_path: Path
) -> None:
    train()
    done: list[Results] = []

    def work() -> None:
        done.extend(run_study(study(name=name), out=tmp_path) for name in ("a", "b"))

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=120)
    assert [results.study for results in done] == ["a", "b"]
    assert [len(rows_of(results)) for results in done] == [6, 6]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("ending", ["completed", "interrupted"])
def test_sigterm_is_ctrl_c_while_it_trains_and_what_it_was_afterwards(
    ending: str,
    train: Callable[..., Trainings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def own(*_: object) -> None:
        """Whoever calls `run_study` has it."""

    def stopped_meanwhile() -> None:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, own)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    train(endings={FAILING: ending}, meanwhile=stopped_meanwhile)
    try:
        run_study(study(), out=tmp_path)
    except KeyboardInterrupt:
        assert ending == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is own


def test_ctrl_c_is_what_it_was_after_a_study(
    train: Callable[..., Trainings], tmp_path: Path
) -> None:
    def as_ray_tune() -> None:
        signal.signal(signal.SIGINT, lambda *_: None)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    train(meanwhile=as_ray_tune)
    run_study(study(), out=tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- searches -------------------------------------------------------------------------------------


def searched(**changes: Any) -> Study:
    explore = Optuna(num_configs=6, sampler="random")
    return study(**({"vary": SEARCHED, "explore": explore} | changes))


def test_a_search_trains_all_its_configurations_and_knows_them_again(
    train: Callable[..., Trainings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings = train(num_slots=2)
    results = run_study(searched(), out=tmp_path)
    assert len(rows_of(results)) == 6
    assert "made: 6 trials on dataset=digits, 0 done before, 6 to run" in capsys.readouterr().out
    run_study(searched(), out=tmp_path)
    assert "made: 6 trials on dataset=digits, 6 done before, 0 to run" in capsys.readouterr().out
    assert trainings.commands == ["made"]
    grown = searched(explore=Optuna(num_configs=8, sampler="random"))
    assert len(rows_of(run_study(grown, out=tmp_path))) == 8
    assert about(results)["planned"] == list(dict.fromkeys(about(results)["planned"]))
    assert set(about(results)["planned"]) == set(rows_of(results)["trial_key"])


def test_a_failed_trial_of_a_search_is_retried(
    train: Callable[..., Trainings], tmp_path: Path
) -> None:
    point = {"batch_size": 64, "base_lr": 0.1}
    declared = searched(explore=Optuna(num_configs=3, sampler="random", points=[point]))
    train(endings={FAILING: "failed"})
    first = rows_of(run_study(declared, out=tmp_path)).set_index("trial_key")["status"]
    assert (first == "failed").sum() == 1
    unchanged = train()
    run_study(declared, out=tmp_path)
    assert unchanged.asked == []
    retried = train()
    rows = rows_of(run_study(declared, out=tmp_path, retry="failed")).set_index("trial_key")
    assert retried.asked == [{FAILING}]
    assert set(rows.index) == set(first.index)
    assert set(rows["status"]) == {"completed"}
    assert rows.loc[first.index[first == "failed"], "attempt"].to_list() == [2]


def test_an_interrupted_search_goes_on_with_what_was_under_way(
    train: Callable[..., Trainings], tmp_path: Path
) -> None:
    point = {"batch_size": 64, "base_lr": 0.1}
    declared = searched(explore=Optuna(num_configs=6, sampler="random", points=[point]))
    train(endings={FAILING: "interrupted"}, num_slots=2)
    with pytest.raises(KeyboardInterrupt):
        run_study(declared, out=tmp_path)
    trainings = train(num_slots=2)
    rows = rows_of(run_study(declared, out=tmp_path))
    assert FAILING in trainings.asked[0]
    assert len(rows) == 6
    assert set(rows["status"]) == {"completed"}


def test_what_a_search_chooses_that_cannot_be_is_the_commands_error(
    train: Callable[..., Trainings], tmp_path: Path
) -> None:
    def space(trial: Any) -> dict[str, object]:
        return {"base_lr": 0.5 - trial.number}

    train()
    declared = study(vary={}, explore=Optuna(num_configs=3, space=space))
    with pytest.raises(SpaceFileError, match=r"100 configurations in a row.*base_lr must be > 0"):
        run_study(declared, out=tmp_path)


# --- later trials in packed tables ----------------------------------------------------------------


def test_a_later_trial_that_is_packed_and_runs_again_is_in_the_tables_once(
    train: Callable[..., Trainings], tmp_path: Path
) -> None:
    """It is asked for once the grid has ended, in the midst of a command."""
    wider = study(explore=Grid(widen=3))
    later: Cell = (64, 0.8, 0)
    train(endings={FAILING: "failed", later: "failed"})
    tables.compact(run_study(wider, out=tmp_path))
    trainings = train()
    results = run_study(wider, out=tmp_path, retry="failed")
    assert trainings.asked[:2] == [{FAILING}, {later}]
    rows = rows_of(results)
    assert set(rows["status"]) == {"completed"}
    epochs = pd.read_parquet(f"{results.folder.uri}/epochs")
    assert not epochs.duplicated(["trial_key", "epoch"]).any()


# --- study.json -----------------------------------------------------------------------------------


def space_of_its_own(trial: Any) -> dict[str, object]:
    return {"base_lr": trial.suggest_float("base_lr", 0.1, 1.0)}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, {"explore": {"kind": "Grid", "widen": 0, "refine": 0}}),
        (
            {"explore": Grid(widen=1), "stop": Asha(), "leaders": Leaders(top=1, seeds=2)},
            {
                "explore": {"kind": "Grid", "widen": 1, "refine": 0},
                "stop": {
                    "kind": "Asha",
                    "reduction_factor": 3.0,
                    "grace_share": 1 / 9,
                    "by_batch_size": False,
                },
                "leaders": {"kind": "Leaders", "top": 1, "seeds": 2},
            },
        ),
        (
            {"explore": Ablation(steps={"a": {}, "b": {"dropout": 0.1}})},
            {"explore": {"kind": "Ablation", "steps": {"a": {}, "b": {"dropout": 0.1}}}},
        ),
        (
            {"vary": {}, "explore": Optuna(num_configs=2, space=space_of_its_own)},
            {
                "explore": {
                    "kind": "Optuna",
                    "num_configs": 2,
                    "sampler": "auto",
                    "points": [],
                    "warm_start": None,
                    "space": "space_of_its_own",
                    "objectives": [],
                    "sampling_seed": 0,
                }
            },
        ),
    ],
    ids=["grid", "stop and leaders", "ablation", "space"],
)
def test_study_json_has_the_explorer_as_data(
    changes: dict[str, Any],
    parts: dict[str, Any],
    train: Callable[..., Trainings],
    tmp_path: Path,
) -> None:
    train()
    declared = study(**changes)
    written = about(run_study(declared, out=tmp_path))
    none = {"explore": None, "stop": None, "leaders": None}
    assert {name: written[name] for name in none} == none | parts
    assert replace(declared.base, **written["base"]) == declared.base
    if not changes:
        assert written["vary"] == {
            "batch_size": {"grid_search": [16, 64]},
            "base_lr": {"grid_search": [0.1, 0.2, 0.4]},
        }


def test_study_json_names_all_trials_that_were_asked_for(
    train: Callable[..., Trainings], tmp_path: Path
) -> None:
    train()
    declared = study(explore=Grid(widen=3, refine=1), leaders=Leaders(top=1, seeds=3))
    results = run_study(declared, out=tmp_path)
    planned = about(results)["planned"]
    assert len(planned) == len(set(planned)) == 15
    assert set(planned) == set(rows_of(results)["trial_key"])
    assert all(re.fullmatch(r"[0-9a-f]{16}", key) for key in planned)


def test_a_study_gone_back_to_with_nothing_to_run_is_the_one_in_study_json(
    train: Callable[..., Trainings], tmp_path: Path
) -> None:
    """What is answered and reported is of this command, not of the one that trained last."""
    train()
    first = about(run_study(study(), out=tmp_path))
    other = about(run_study(study(), out=tmp_path, settings=["momentum=0.5"]))
    assert not set(first["planned"]) & set(other["planned"])
    again = about(run_study(study(), out=tmp_path))
    assert (again["planned"], again["settings"]) == (first["planned"], [])
    same = about(run_study(study(), out=tmp_path))
    assert same == again  # with nothing new, it says how the trials were made


def test_changed_expectations_are_in_the_report_of_the_next_command(
    train: Callable[..., Trainings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They decide nothing about trials: nothing is trained again."""
    trainings = train()
    results = run_study(study(), out=tmp_path)
    assert about(results)["expect"] == []
    assert "expected and measured" not in capsys.readouterr().out
    assert "expected" not in numbers(of_study(results))
    rows = [{"batch_size": 16, "base_lr": lr, "val_auroc": lr} for lr in (0.1, 0.2, 0.4)]
    beliefs = (Trend("falls", "Kandel 2020"), Reported("val_auroc", rows, "mine"))
    for number, belief in enumerate((*beliefs, beliefs[0])):
        run_study(study(expect=(belief,)), out=tmp_path)
        (written,) = numbers(of_study(results))["expected"]["verdicts"]
        assert written["declared"]["kind"] == type(belief).__name__, number
        said = capsys.readouterr().out
        assert f"Expected ({belief.source}): " in said
    same = about(results)
    run_study(study(expect=(belief,)), out=tmp_path)
    assert about(results) == same  # with nothing new, it says how the trials were made
    run_study(study(), out=tmp_path)
    assert "expected" not in numbers(of_study(results))
    assert len(trainings.asked) == 1


def test_own_data_is_named_by_its_folder_and_its_splits_do_not_mix(
    train: Callable[..., Trainings], tmp_path: Path
) -> None:
    """The study names none, so it is one of pcam."""
    train()
    for i in range(120):
        path = tmp_path / "moles" / "ab"[i % 2] / f"p{i % 7}_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 2 * i, 100)).save(path)
    mine = study(base=replace(BASE, dataset="pcam", train_images=None, eval_images=None))
    planned = []
    for settings in ([], ["split_by=prefix"], [], ["split_by=prefix"]):
        results = run_study(mine, out=tmp_path, data=tmp_path / "moles", settings=settings)
        planned.append(about(results)["planned"])
    rows = rows_of(results)
    assert set(rows["dataset"]) == {"moles"}
    assert rows.groupby("split")["trial_key"].nunique().to_dict() == {"by_image": 6, "by_prefix": 6}
    assert rows["data_fingerprint"].nunique() == 2
    assert (
        rows["split_by"].fillna("") == rows["split"].map({"by_prefix": "prefix"}).fillna("")
    ).all()
    assert planned[0] == planned[2] != planned[1] == planned[3]
    assert about(results)["base"]["dataset"] == "pcam"


def test_sigterm_stops_also_where_ctrl_c_is_ignored() -> None:
    """In a script, `nohup python -m search.run ... &` leaves SIGINT ignored."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        for ctrl_c in (signal.SIG_IGN, signal.default_int_handler):
            signal.signal(signal.SIGINT, ctrl_c)
            stop_on_sigterm()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
