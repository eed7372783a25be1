"""The queue that hands trials to Tune, asked by hand: what it sends, waits for, and asks."""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from trainings import ByHand

from search.explore import Ablation, Grid, Leaders, Optuna, Pbt, Variants
from search.explore.plan import trials_of
from search.study.explorer import PlannedTrial, Tables
from search.study.space_file import SpaceFileError
from search.study.study import Study
from trainable.config import TrialConfig

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none", epochs=9)
GRID = {"base_lr": tune.grid_search([0.1, 0.2])}
SEARCHED = {"batch_size": tune.choice([16, 32]), "base_lr": tune.loguniform(1e-3, 1.0)}


def study(**changes: Any) -> Study:
    return Study(**({"name": "s", "base": BASE, "vary": GRID} | changes))


def played(ours: ByHand, *, num_slots: int, score: Callable[[TrialConfig], float]) -> list[str]:
    """The keys in the order in which they are sent; the oldest of those that run ends first."""
    running: list[str] = []
    for number in range(1000):
        trial_id = f"t{number}"
        while len(running) < num_slots and (task := ours.suggest(trial_id)):
            if task == "FINISHED":
                return list(ours.sent)
            running.append(trial_id)
            trial_id = f"{trial_id}+"
        ended = running.pop(0)
        config = ours.sent[ours.queue.under_way[ended][0]].config
        status = "stopped" if config.until_share < 1 else "completed"
        ours.end(ended, status=status, val_auroc=score(config), examples_seen=9)
    raise AssertionError("trials without end")


@pytest.mark.parametrize(
    ("explore", "num_asked", "num_keys"),
    [
        (Ablation(steps={"a": {}, "b": {"dropout": 0.1}, "back": {"dropout": 0.0}}), 6, 4),
        (Variants(each={"whole": {}, "again": {"epochs": 9}, "short": {"epochs": 2}}), 6, 4),
    ],
    ids=["Ablation", "Variants"],
)
def test_each_key_is_sent_once_also_where_two_trials_share_it(
    explore: Any, num_asked: int, num_keys: int, tmp_path: Path
) -> None:
    ours = ByHand(study(explore=explore), tmp_path)
    keys = played(ours, num_slots=2, score=lambda config: config.base_lr)
    assert len(ours.known.asked) == num_asked
    assert len(keys) == num_keys
    assert set(keys) == {trial.key for trial in ours.known.asked} == set(ours.known.ended)


def test_what_ended_in_an_earlier_command_is_not_sent(tmp_path: Path) -> None:
    first = ByHand(study(), tmp_path)
    keys = played(first, num_slots=1, score=lambda config: config.base_lr)
    ended = {keys[1]: first.known.ended[keys[1]]}
    assert played(ByHand(study(), tmp_path, ended), num_slots=1, score=lambda _: 0.5) == keys[:1]


def test_nothing_is_sent_while_what_is_under_way_decides_what_comes(tmp_path: Path) -> None:
    ours = ByHand(study(leaders=Leaders(top=1, seeds=2)), tmp_path)
    assert ours.suggest("a")["key"] != ours.suggest("b")["key"]
    for _ in range(3):
        assert ours.suggest("c") is None
    ours.end("a", status="completed", val_auroc=0.5)
    assert ours.suggest("c") is None  # the other may lead
    assert not ours.queue.finished
    ours.end("b", status="completed", val_auroc=0.6)
    leader = ours.sent[ours.suggest("c")["key"]]
    assert (leader.config.base_lr, leader.config.seed, leader.whole) == (0.2, 1, True)
    assert ours.suggest("d") is None
    assert not ours.queue.finished
    ours.end("c", status="completed", val_auroc=0.6)
    assert ours.suggest("d") == "FINISHED"
    assert ours.queue.finished


def test_a_trial_that_ended_without_a_row_is_not_sent_again(tmp_path: Path) -> None:
    """A scheduler may stop a trial before its first evaluation: a later command trains it."""
    ours = ByHand(study(), tmp_path)
    ours.suggest("a")
    ours.suggest("b")
    ours.queue.on_trial_complete("a", None, error=True)
    ours.queue.on_trial_complete("unknown")
    ours.end("b", status="completed", val_auroc=0.5)
    assert ours.suggest("c") == "FINISHED"
    assert len(ours.sent) == 2
    assert len(ours.known.ended) == 1


@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_optuna_is_asked_for_no_more_than_there_is_room(num_slots: int, tmp_path: Path) -> None:
    declared = study(vary=SEARCHED, explore=Optuna(num_configs=6, sampler="random"))
    ours = ByHand(declared, tmp_path, num_slots=num_slots)
    for number in range(num_slots):
        assert ours.suggest(f"t{number}") is not None
    for num_ended in range(6 - num_slots):
        assert len(ours.told) == num_slots + num_ended
        assert ours.suggest("x") is None
        assert len(ours.told) == num_slots + num_ended
        ours.end(f"t{num_ended}", status="completed", val_auroc=0.5)
        assert ours.suggest(f"t{num_slots + num_ended}") is not None
    assert len(ours.told) == 6
    assert ours.suggest("x") is None


def test_with_several_seeds_the_room_is_counted_in_trials(tmp_path: Path) -> None:
    declared = study(vary=SEARCHED, explore=Optuna(num_configs=3, sampler="random"), seeds=3)
    ours = ByHand(declared, tmp_path, num_slots=4)
    for number in range(4):
        ours.suggest(f"t{number}")
    assert len(ours.told) == 2
    assert len(ours.queue.waiting) == 2
    ours.suggest("t4")
    ours.suggest("t5")
    assert ours.suggest("t6") is None
    assert len(ours.told) == 2


def test_a_population_goes_on_generation_by_generation(tmp_path: Path) -> None:
    declared = study(vary=SEARCHED, explore=Pbt(size=4, generations=3), seeds=2)
    ours = ByHand(declared, tmp_path)
    keys = played(ours, num_slots=3, score=lambda config: config.base_lr)
    assert len(keys) == declared.explore.total(declared, ours.known) == 4 * 3 * 2
    for number, key in enumerate(keys):
        begins_from = ours.sent[key].config.begins_from
        assert begins_from is None or begins_from in keys[:number]


@dataclass(frozen=True)
class Failing:
    """An explorer that begins as a grid and then chooses what cannot be."""

    explore: Grid
    error: Exception

    def domains(self, vary: Mapping[str, object]) -> Any:
        return self.explore.domains(vary)

    def check(self, study: Study) -> None:
        """Any study fits."""

    def configs(self, study: Study) -> list[TrialConfig]:
        return self.explore.configs(study)

    def examples(self, study: Study, tables: Tables, num: int) -> list[TrialConfig]:
        return []

    def total(self, study: Study, tables: Tables) -> int:
        return len(tables.asked)

    def next(self, study: Study, tables: Tables, room: int) -> list[PlannedTrial]:
        if not tables.asked:
            return trials_of(tables, self.configs(study), seeds=[0])
        raise self.error


def test_an_explorer_that_chooses_what_cannot_be_is_an_error_of_the_space(tmp_path: Path) -> None:
    error = ValueError("base_lr must be > 0, got -1")
    ours = ByHand(study(explore=Failing(Grid(), error)), tmp_path)
    ours.suggest("a")
    ours.suggest("b")
    with pytest.raises(SpaceFileError, match=r"^base_lr must be > 0, got -1$"):
        ours.suggest("c")
    broken = ByHand(study(explore=Failing(Grid(), KeyError("x"))), tmp_path)
    broken.suggest("a")
    broken.suggest("b")
    with pytest.raises(KeyError):  # an error of the code is shown as one
        broken.suggest("c")


def test_ray_keeps_no_copy_of_the_queue(tmp_path: Path) -> None:
    ours = ByHand(study(), tmp_path)
    assert ours.queue.__getstate__() == {}
    assert len(pickle.dumps(ours.queue)) < 200
    ours.queue.save(str(tmp_path / "state"))
    assert not (tmp_path / "state").exists()


def test_the_seeds_of_a_grid_come_one_after_the_other(tmp_path: Path) -> None:
    """So that a whole surface is there early."""
    ours = ByHand(study(seeds=2), tmp_path)
    keys = played(ours, num_slots=1, score=lambda config: 0.5)
    configs = [ours.sent[key].config for key in keys]
    assert [config.seed for config in configs] == [0, 0, 1, 1]
    assert {replace(config, seed=0) for config in configs[:2]} == {
        replace(config, seed=0) for config in configs[2:]
    }


# --- packs ----------------------------------------------------------------------------------------

RATES = {
    "batch_size": tune.grid_search([16, 32]),
    "base_lr": tune.grid_search([0.1, 0.2, 0.3, 0.4, 0.5]),
}


def sent_in(ours: ByHand, trial_id: str) -> list[tuple[int, float, int]]:
    """Batch size, lr and seed of the trials that are sent together."""
    task = ours.suggest(trial_id)
    configs = [ours.sent[key].config for key in task["pack"] or [task["key"]]]
    return [(config.batch_size, config.base_lr, config.seed) for config in configs]


def test_a_pack_has_trials_of_one_batch_size_and_seed(tmp_path: Path) -> None:
    ours = ByHand(study(vary=RATES, seeds=2, pack=4), tmp_path, num_slots=1)
    sent: list[list[tuple[int, float, int]]] = []
    while len(ours.known.ended) < 20:
        sent.append(sent_in(ours, f"t{len(sent)}"))
        ours.end(f"t{len(sent) - 1}", status="completed", val_auroc=0.5)
    assert ours.suggest("last") == "FINISHED"
    assert [len(trials) for trials in sent] == [3, 2] * 4
    assert all(len({(size, seed) for size, _, seed in trials}) == 1 for trials in sent)
    assert len({trial for trials in sent for trial in trials}) == 20


def test_no_slot_is_left_empty_for_a_larger_pack(tmp_path: Path) -> None:
    ours = ByHand(study(vary=RATES, pack=8), tmp_path, num_slots=2)
    assert [len(sent_in(ours, name)) for name in "ab"] == [5, 5]


def test_auto_packs_where_blocks_are_frozen(tmp_path: Path) -> None:
    plain = ByHand(study(vary=RATES, pack="auto"), tmp_path, num_slots=1)
    assert len(sent_in(plain, "a")) == 1
    frozen = replace(BASE, model="resnet18", pretrained="imagenet", train_blocks=1)
    ours = ByHand(study(base=frozen, vary=RATES, pack="auto"), tmp_path, num_slots=1)
    assert len(sent_in(ours, "a")) == 5
    mixed = ByHand(
        study(base=replace(frozen, mixup_alpha=0.2), vary=RATES, pack="auto"),
        tmp_path,
        num_slots=1,
    )
    assert len(sent_in(mixed, "a")) == 1


def test_the_trials_of_a_lost_pack_are_sent_alone(tmp_path: Path) -> None:
    ours = ByHand(study(vary=RATES, pack=5), tmp_path, num_slots=1)
    lost = sent_in(ours, "a")
    assert len(lost) == 5
    planned = [ours.sent.pop(key) for key in ours.queue.under_way["a"]]
    ours.queue.on_trial_complete("a", error=True)
    ours.queue.send_alone(planned)
    sent: list[list[tuple[int, float, int]]] = []
    while len(ours.known.ended) < 10:
        sent.append(sent_in(ours, f"t{len(sent)}"))
        ours.end(f"t{len(sent) - 1}", status="completed", val_auroc=0.5)
    assert sorted(map(len, sent)) == [1, 1, 1, 1, 1, 5]
    assert sorted(trials[0] for trials in sent if len(trials) == 1) == sorted(lost)


def test_a_learner_is_asked_for_as_many_as_its_packs_hold(tmp_path: Path) -> None:
    explore = Optuna(num_configs=12, sampler="random")
    ours = ByHand(study(vary=SEARCHED, explore=explore, pack=3), tmp_path, num_slots=2)
    assert len(sent_in(ours, "a")) == 1  # the first, which a study asks for before it has slots
    second = sent_in(ours, "b")
    assert len({size for size, _, _ in second}) == 1
    assert len(ours.sent) + sum(map(len, ours.queue.waiting.values())) == 6
