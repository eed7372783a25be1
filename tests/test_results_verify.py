"""`search.results`: what it finds wrong with tables, what it sets aside, how its commands end."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from search.results import files, lock, tables
from search.results.__main__ import main
from search.results.tables import EPOCHS, TRIALS, Results, ResultsError
from trainable.host import storage

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LISTING_S", 0.0)


def own(key: str) -> dict[str, Any]:
    return {"study": "s", "trial_key": key, "seed": 0, "attempt": 1}


def epochs(opened: Results, key: str, *numbers: int) -> None:
    tables.commit_epochs(opened, key, [own(key) | {"epoch": n} for n in numbers])


def trial(opened: Results, key: str, completed: int | None, status: str = "completed") -> None:
    ended = {"status": status, "epochs_completed": completed, "started_at": NOW}
    tables.commit_trial(opened, own(key) | ended)


@pytest.fixture
def opened(tmp_path: Path) -> Results:
    found = tables.open_results(str(tmp_path), "s")
    epochs(found, "a", 1, 2)
    trial(found, "a", 2)
    return found


def fault(key: str, kind: str) -> str:
    return {
        "gap": f"the epochs of trial {key} are not 1, 2, 3, ...",
        "short": f"trial {key} has fewer epochs in the table than it completed",
    }[kind]


@pytest.mark.parametrize(
    ("numbers", "completed", "wrong"),
    [
        ((1, 2, 3), 3, []),
        ((1, 2, 3), 2, []),  # an earlier attempt's are cut when it ends, not by reading
        ((3, 1, 2), 3, []),
        ((1, 2), 3, ["short"]),
        ((), 1, ["short"]),
        ((), 0, []),
        ((), None, []),
        ((2, 3), 2, ["gap"]),
        ((1, 3), 2, ["gap"]),
        ((0, 1), 2, ["gap"]),
        ((2,), 2, ["gap", "short"]),
    ],
)
def test_gaps_and_missing_epochs_are_named(
    numbers: tuple[int, ...], completed: int | None, wrong: list[str], opened: Results
) -> None:
    if numbers:
        epochs(opened, "b", *numbers)
    trial(opened, "b", completed)
    assert tables.faults(opened) == [fault("b", kind) for kind in wrong]


@pytest.mark.parametrize("status", tables.STATUSES)
def test_only_what_ended_with_all_its_epochs_must_have_them(status: str, opened: Results) -> None:
    trial(opened, "b", 3, status)
    short = status in ("completed", "stopped")
    assert tables.faults(opened) == ([fault("b", "short")] if short else [])
    assert tables.make_sound(opened) == (["trials/b.parquet"] if short else [])
    assert tables.faults(opened) == []
    left = set(tables.trials(opened)["trial_key"])
    assert left == ({"a"} if short else {"a", "b"})


def test_a_packed_trial_without_its_epochs_is_set_aside_alone(
    opened: Results, tmp_path: Path
) -> None:
    trial(opened, "b", 3)
    tables.compact(opened)
    assert tables.make_sound(opened) == ["trials/b.parquet"]
    assert list(tables.trials(opened)["trial_key"]) == ["a"]
    (aside,) = (tmp_path / "s" / "damaged" / "trials").iterdir()
    assert aside.name.endswith("-b.parquet")
    assert tables.faults(opened) == []


def test_rows_that_are_there_twice_are_counted(opened: Results) -> None:
    rows = [own("a") | {"epoch": n} for n in (1, 2)]
    files.write_part(opened / "epochs", "again.parquet", EPOCHS, rows)
    files.write_part(opened / "trials", "again.parquet", TRIALS, [own("a")])
    assert tables.faults(opened)[:2] == [
        "epochs: 2 duplicate rows",
        "trials: 1 duplicate row",
    ]


def test_a_file_that_cannot_be_read_is_said_to_be_left_out(
    opened: Results, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "s" / "epochs" / "a.parquet").write_bytes(b"PAR1")
    with caplog.at_level(logging.WARNING):
        assert tables.epochs(opened).empty
    (said,) = [record.message for record in caplog.records]
    assert said.startswith(f"{tmp_path}/s/epochs/a.parquet cannot be read and is left out: ")
    assert list(tables.damaged(opened)) == ["epochs/a.parquet"]
    (why,) = tables.damaged(opened).values()
    assert why
    assert tables.make_sound(opened) == ["epochs/a.parquet", "trials/a.parquet"]
    assert tables.num_files(opened) == 0


def test_what_a_study_was_is_json_and_its_tracebacks_are_text(
    opened: Results, tmp_path: Path
) -> None:
    tables.commit_study(opened, {"name": "s", "at": NOW})
    written = (tmp_path / "s" / "study.json").read_text()
    assert json.loads(written) == {"name": "s", "at": str(NOW)}
    assert written.endswith("}\n")
    assert written.splitlines()[1] == ' "name": "s",'
    where = tables.commit_traceback(opened, "a", "KeyError: ä")
    assert where == f"{tmp_path}/s/errors/a.txt"
    assert Path(where).read_text(encoding="utf-8") == "KeyError: ä"


def test_a_folder_is_opened_by_its_path(opened: Results, tmp_path: Path) -> None:
    found = tables.open_folder(f"{tmp_path}/s/")
    assert (found.study, found.folder) == ("s", opened.folder)
    (tmp_path / "only" / "epochs").mkdir(parents=True)
    with pytest.raises(ResultsError, match="is not a study's results: it has no trials/"):
        tables.open_folder(str(tmp_path / "only"))
    epochs(tables.Results("only", storage.folder_at(str(tmp_path / "only"))), "a", 1)
    assert tables.open_folder(str(tmp_path / "only")).study == "only"
    with pytest.raises(ResultsError, match="there://x"):
        tables.open_folder("there://x")


def test_commands_end_as_they_say(
    opened: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "s")
    epochs(opened, "b", 1)
    trial(opened, "b", 1)
    assert main(["verify", folder]) == 0
    assert capsys.readouterr() == ("2 trials, 3 epochs: 0 faults\n", "")
    assert main(["compact", folder]) == 0
    assert capsys.readouterr() == ("2 trials, 3 epochs: 2 files fewer\n", "")
    trial(opened, "c", 4)
    assert main(["verify", folder]) == 1
    said = [
        "trial c has fewer epochs in the table than it completed",
        f"trials/c.parquet: moved to {folder}/damaged; run the study again",
        "2 trials, 3 epochs: 1 fault",
    ]
    assert capsys.readouterr() == ("".join(f"{line}\n" for line in said), "")
    epochs(opened, "c", 2)
    assert main(["verify", folder]) == 1  # a gap is named, and nothing can be moved
    assert "moved to" not in capsys.readouterr().out
    (tmp_path / "s" / "epochs" / "c.parquet").write_bytes(b"")
    assert main(["compact", folder]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"search.results: cannot compact {folder}: ")
    assert printed.out == ""
    assert main(["verify", str(tmp_path)]) == 2
    with lock.held(opened.folder):
        assert main(["compact", folder]) == 2
    assert " is writing to " in capsys.readouterr().err
    assert not (tmp_path / "s" / "lock.json").exists()
    with pytest.raises(SystemExit) as caught:
        main(["mend", folder])
    assert caught.value.code == 2
