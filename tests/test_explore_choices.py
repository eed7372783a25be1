"""What a later command goes on with: the choices of a search, and whose they are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray import tune
from searches import BASE, VARY, all_ended, drawn_once, known, opened, study

from search.explore import Optuna, choices
from search.explore.ask import ask, total
from search.explore.optuna import JOURNAL


@pytest.mark.parametrize(
    "changes",
    [
        {"base": replace(BASE, epochs=3, optimizer="adamw")},
        {"vary": VARY | {"base_lr": tune.loguniform(1e-4, 1.0)}},
        {"vary": VARY | {"base_lr": tune.uniform(1e-3, 1.0)}},
    ],
    ids=["base", "range", "scale"],
)
def test_a_search_of_something_else_does_not_go_on_with_this_one(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    before = opened(study(3), tmp_path).next(known(tmp_path), 9)
    other = known(tmp_path, all_ended(before))
    trials = ask(study(3, **changes), other, room=9)
    assert len(trials) == 3
    assert not {trial.key for trial in trials} & {trial.key for trial in before}
    # Nor does the first search lose its place.
    assert ask(study(3), known(tmp_path, all_ended(before)), room=9) == before


def test_what_another_metric_chose_is_not_gone_on_with(tmp_path: Path) -> None:
    opened(study(3), tmp_path).next(known(tmp_path), 9)
    assert opened(study(3, metric="val_loss"), tmp_path).num_chosen == 0
    assert opened(study(3), tmp_path).num_chosen == 3
    # Not even where the epoch is picked by the same score.
    by_loss = study(3, base=replace(BASE, select_by="val_loss"))
    opened(by_loss, tmp_path).next(known(tmp_path), 9)
    assert opened(replace(by_loss, metric="val_accuracy"), tmp_path).num_chosen == 0


def test_another_first_seed_goes_on_with_the_search(tmp_path: Path) -> None:
    opened(study(3), tmp_path).next(known(tmp_path), 9)
    assert opened(study(3, base=replace(BASE, seed=7)), tmp_path).num_chosen == 3


def test_a_search_on_other_data_is_another_one(tmp_path: Path) -> None:
    before = opened(study(3), tmp_path).next(known(tmp_path), 9)
    other = replace(known(tmp_path, all_ended(before)), data_fingerprint="other data")
    assert len([t for t in ask(study(3), other, room=9) if t.key not in other.ended]) == 3
    folders = sorted(folder.name for folder in (tmp_path / "choices").iterdir())
    assert len(folders) == 2


def test_another_recipe_or_objective_is_another_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(study(3), tmp_path).next(known(tmp_path), 9)
    assert opened(study(3, objectives=["train_wall_s"]), tmp_path).num_chosen == 0
    monkeypatch.setattr(choices, "RECIPE_VERSION", 0)
    assert opened(study(3), tmp_path).num_chosen == 0


def drawn_lower(trial: Any) -> dict[str, object]:
    return {"base_lr": trial.suggest_float("base_lr", 1e-6, 1e-4)}


def test_another_space_function_is_another_search(tmp_path: Path) -> None:
    first = opened(study(3, vary={}, space=drawn_once), tmp_path).next(known(tmp_path), 9)
    again = opened(study(3, vary={}, space=drawn_once), tmp_path)
    assert again.next(known(tmp_path), 9) == first
    other = opened(study(3, vary={}, space=drawn_lower), tmp_path).next(known(tmp_path), 9)
    assert all(trial.config.base_lr <= 1e-4 for trial in other)


def test_more_seeds_and_configurations_go_on_with_the_search(tmp_path: Path) -> None:
    before = opened(study(2), tmp_path).next(known(tmp_path), 9)
    more = known(tmp_path, all_ended(before))
    declared = study(4, seeds=2)
    trials = ask(declared, more, room=1)  # only what was chosen before: its second seeds
    assert [t.config.seed for t in trials] == [0, 1, 0, 1]
    assert [t.key for t in trials[::2]] == [t.key for t in before]
    assert total(declared, more) == 8
    more.ended.update(all_ended(trials))
    trials = ask(declared, more, room=9)
    assert len({t.key for t in trials}) == 4
    more.ended.update(all_ended(trials))
    assert ask(declared, more, room=9) == []
    assert total(declared, more) == len({t.key for t in more.asked}) == 8
    # Fewer again: the answer is of the first ones.
    fewer = known(tmp_path, more.ended)
    assert ask(study(2), fewer, room=9) == before
    assert total(study(2), fewer) == 2


def test_another_sampler_goes_on_with_the_search(tmp_path: Path) -> None:
    before = opened(study(12), tmp_path).next(known(tmp_path), 12)
    asked = Optuna(num_configs=14, sampler="tpe")
    ours = opened(study(explore=asked), tmp_path)
    assert ours.next(known(tmp_path, all_ended(before)), 9)[:12] == before
    assert type(ours.optuna.sampler).__name__ == "TPESampler"
    assert [t.state.name for t in ours.optuna.get_trials()] == ["COMPLETE"] * 12 + ["RUNNING"] * 2


@pytest.mark.timeout(90)  # Optuna itself waits 30 s for each lock that is left
def test_a_search_needs_neither_its_journal_nor_a_whole_one(tmp_path: Path) -> None:
    """The file is for the dashboard: a torn one, or none, changes nothing."""
    before = opened(study(3), tmp_path).next(known(tmp_path), 9)
    journal = tmp_path / JOURNAL
    content = journal.read_bytes()
    for broken in (content[:-5], content[:-5] + b'{"op_code": 4, "worker', b"", None):
        journal.unlink()
        if broken is not None:
            journal.write_bytes(broken)
        (tmp_path / f"{JOURNAL}.lock").write_text("left by a killed command")
        again = opened(study(4), tmp_path)
        assert again.next(known(tmp_path, all_ended(before)), 9)[:3] == before
        storage = JournalStorage(JournalFileBackend(str(journal)))
        told = optuna.load_study(study_name="s", storage=storage).get_trials()
        assert [trial.state.name for trial in told] == ["COMPLETE"] * 3 + ["RUNNING"]
        (Path(again.folder.uri) / "000003.json").unlink()  # so that each turn begins with three


def test_a_hundred_choices_become_one_file(tmp_path: Path) -> None:
    first = opened(study(105), tmp_path).next(known(tmp_path), 105)
    again = opened(study(107), tmp_path)
    trials = again.next(known(tmp_path, all_ended(first)), 9)
    assert trials[:105] == first
    names = sorted(path.name for path in Path(again.folder.uri).iterdir())
    assert names == ["000105.json", "000106.json", "packed.json"]
    assert opened(study(107), tmp_path).next(known(tmp_path), 0) == trials


@pytest.mark.parametrize("lost", ["deleted", "damaged"])
def test_a_choice_that_was_lost_costs_no_other(
    lost: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = opened(study(3), tmp_path)
    first = ours.next(known(tmp_path), 9)
    file = Path(ours.folder.uri) / "000001.json"
    if lost == "deleted":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-9])
    trials = opened(study(3), tmp_path).next(known(tmp_path, all_ended(first)), 9)
    assert trials[:2] == [first[0], first[2]]
    assert len({trial.key for trial in trials}) == 3
    assert opened(study(3), tmp_path).next(known(tmp_path), 0) == trials
    assert ("000001.json cannot be read" in caplog.text) == (lost == "damaged")


def test_fewer_configurations_for_once_forget_no_choice(tmp_path: Path) -> None:
    """More than a hundred files are packed by the command that asks for fewer."""
    first = opened(study(105), tmp_path).next(known(tmp_path), 105)
    ended = all_ended(first)
    assert opened(study(20), tmp_path).next(known(tmp_path, ended), 9) == first[:20]
    again = opened(study(106), tmp_path)
    assert again.num_chosen == 105
    assert again.next(known(tmp_path, ended), 9)[:105] == first
