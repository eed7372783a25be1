import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT
from helpers import no_tables
from ray import tune

from search.explore import Ablation, Optuna, Variants
from search.explore.ask import ask
from search.study.catalogue import entries
from search.study.preview import as_preview
from search.study.settings import apply_settings
from search.study.space_file import SpaceFileError, load_study
from search.study.study import Study
from trainable.config import TrialConfig

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none")
VARY = {"batch_size": tune.grid_search([16, 32]), "base_lr": tune.grid_search([0.1, 1])}


def study(**changes: Any) -> Study:
    return Study(**({"name": "a", "base": BASE, "vary": VARY} | changes))


def test_a_grid_is_every_combination() -> None:
    cells = [(c.batch_size, c.base_lr) for c in study().configs]
    assert sorted(cells) == [(16, 0.1), (16, 1.0), (32, 0.1), (32, 1.0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../x"}, "name must be 1 to 128 letters"),
        ({"name": "a/b"}, "name must be 1 to 128 letters"),
        ({"name": ".."}, "name must be 1 to 128 letters"),
        ({"name": "a\nb"}, "name must be 1 to 128 letters"),
        ({"base": {"lr": 1}}, "base must be a TrialConfig"),
        ({"metric": "val_auc"}, "there is no metric 'val_auc'; did you mean 'val_auroc'?"),
        ({"seeds": 0}, "seeds must be a whole number >= 1, got 0"),
        ({"seeds": 1.5}, "seeds must be a whole number >= 1, got 1.5"),
        ({"gpus_per_trial": 1.5}, "gpus_per_trial must be a whole number above 1"),
        ({"gpus_per_trial": 0.001}, "gpus_per_trial must be 0.01 to 1, or 0 for trials on cores"),
        ({"gpus_per_trial": "all"}, "gpus_per_trial must be a number, a dict or 'auto', got 'all'"),
        ({"gpus_per_trial": {}}, "gpus_per_trial has no share: give some, as in {16: 0.25"),
        ({"gpus_per_trial": {16: 2.5}}, "gpus_per_trial must be a whole number above 1"),
        ({"gpus_per_trial": {16: 0}}, "gpus_per_trial must be 0.01 to 1"),
        ({"gpus_per_trial": {0: 1.0}}, "gpus_per_trial's batch sizes must be a whole number >= 1"),
        ({"gpus_per_trial": {"16": 1.0}}, "batch sizes must be a whole number >= 1, got '16'"),
        ({"gpus_per_trial": {16: "auto"}}, "gpus_per_trial must be a number >= 0, got 'auto'"),
        (
            {"gpus_per_trial": "auto", "vary": {}, "explore": Optuna(num_configs=2, space=dict)},
            "gpus_per_trial='auto' cannot know what batch sizes `space` will choose",
        ),
        ({"keep_weights": 1}, "keep_weights must be True or False"),
        (
            {"explore": Ablation(steps={"a": {}, "b": {"base_lr": 1.0}})},
            "base_lr: varies and is changed by a step",
        ),
        ({"explore": Ablation(steps={"a": {"lr": 1.0}})}, "there is no field 'lr'"),
        ({"vary": {"batchsize": tune.grid_search([1])}}, "did you mean 'batch_size'?"),
        ({"vary": {"seed": tune.grid_search([1])}}, "seed cannot vary: say how many with seeds"),
        ({"vary": {"base_lr": tune.loguniform(1e-4, 1)}}, "base_lr: a grid goes through values"),
        ({"vary": {"base_lr": [0.1, 0.2]}}, "what varies is given as tune.grid_search([...])"),
        ({"vary": {"base_lr": tune.grid_search([])}}, "takes a list of values, got []"),
        ({"vary": {"base_lr": tune.grid_search([1, 1])}}, "repeats a value"),
        ({"vary": {"base_lr": tune.grid_search([0.1, -1])}}, "base_lr must be > 0, got -1"),
        ({"name": 123}, "name must be 1 to 128 letters"),
        ({"vary": ["base_lr"]}, "vary must be a dict of fields"),
        ({"preview": None}, "preview must be a dict of fields"),
        ({"explore": "grid"}, "explore must be such as Grid() or Optuna(...)"),
        ({"vary": {"dataset": tune.grid_search(["a", "b"])}}, "dataset cannot vary"),
        ({"vary": {"split_by": tune.grid_search(["image", "slide"])}}, "split_by cannot vary"),
        ({"vary": {"base_lr": tune.grid_search([1, 1.0])}}, "repeats a value"),
        ({"preview": {"epoch": 3}}, "there is no field 'epoch'; did you mean 'epochs'?"),
    ],
)
def test_impossible_studies_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^") as caught:
        study(**change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value).replace("a\\nb", "")


def test_steps_of_an_ablation_build_on_each_other() -> None:
    steps = {"none": {}, "+ a": {"decay": "step"}, "+ b": {"decay": "cosine", "momentum": 0.5}}
    ablation = study(vary={}, explore=Ablation(steps={**steps, "+ c": {"ema_decay": 0.9}}))
    planned = ask(ablation, no_tables(), 1)
    assert [t.config for t in planned] == ablation.configs
    assert {t.step: (t.config.decay, t.config.momentum, t.config.ema_decay) for t in planned} == {
        "none": ("cosine", 0.9, 0.0),
        "+ a": ("step", 0.9, 0.0),
        "+ b": ("cosine", 0.5, 0.0),
        "+ c": ("cosine", 0.5, 0.9),
    }


def test_preview_keeps_the_shape_and_changes_the_size() -> None:
    big = study(
        base=TrialConfig(train_blocks=2, epochs=50),
        preview={"base_lr": [1.0, 2.0], "width": 8},
    )
    small = as_preview(big, dataset="synthetic")
    assert small.base.dataset == "synthetic"
    assert (small.base.model, small.base.pretrained, small.base.width) == ("plain", "none", 8)
    assert {(c.batch_size, c.base_lr) for c in small.configs} == {
        (16, 1.0),
        (16, 2.0),
        (32, 1.0),
        (32, 2.0),
    }
    assert small.base.epochs < 50
    with pytest.raises(ValueError, match="preview: base_lr varies, so give a list of values"):
        as_preview(study(preview={"base_lr": 1.0}), dataset="synthetic")


def test_a_preview_may_have_steps_of_its_own() -> None:
    def updates(num: int) -> Variants:
        return Variants(each={"epochs": {}, "updates": {"epochs": None, "updates": num}})

    big = study(explore=updates(5000), preview={"explore": updates(50)})
    small = as_preview(big, dataset="synthetic")
    assert {config.updates for config in big.configs} == {None, 5000}
    assert {config.updates for config in small.configs} == {None, 50}
    with pytest.raises(ValueError, match="there is no field 'explore'"):
        study(vary={"explore": tune.grid_search([1])})
    with pytest.raises(ValueError, match="explore must be such as Grid"):
        as_preview(study(preview={"explore": 3}), dataset="synthetic")


def test_settings_set_the_study_and_the_trial() -> None:
    changed = apply_settings(study(), ["seeds=3", "optimizer=adam", "epochs=4", "metric=val_loss"])
    assert (changed.seeds, changed.base.optimizer, changed.base.epochs) == (3, "adam", 4)
    assert changed.mode == "min"
    fixed = apply_settings(study(), ["base_lr=0.5"])
    assert list(fixed.vary) == ["batch_size"]
    assert fixed.base.base_lr == 0.5
    listed = apply_settings(study(), ["batch_size=64,128,256"])
    assert {c.batch_size for c in listed.configs} == {64, 128, 256}
    none = apply_settings(study(), ["image_size=None", "augment=none"])
    assert (none.base.image_size, none.base.augment) == (None, "none")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seeds", "--set takes FIELD=VALUE"),
        ("=3", "--set takes FIELD=VALUE"),
        ("seeds=", "--set takes FIELD=VALUE"),
        ("seeds=many", "seeds must be a whole number >= 1, got 'many'"),
        ("sedes=3", "did you mean 'seeds'?"),
        ("base_lr=fast", "base_lr must be a number, got 'fast'"),
        ("batch_size=16,x", "batch_size must be a whole number, got 'x'"),
        ("seed=3", "there is no field 'seed'; did you mean 'seeds'?"),
    ],
)
def test_wrong_settings_are_refused(setting: str, message: str) -> None:
    with pytest.raises(SpaceFileError) as caught:
        apply_settings(study(), [setting])
    assert message in str(caught.value)


HEAD = """
from ray import tune
from search.study.study import Study
from trainable.config import TrialConfig
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no space file"),
        ("study = = 1", "line 1: not Python"),
        (b"\xff\xfe\x00", "not Python"),
        ("x = 1 / 0", "line 1: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("x = 1", "must end with `study = Study(...)`; it has nothing of that name"),
        ("study = 3", "it has a int"),
        (
            HEAD + "study = Study(name='a', base=TrialConfig(batchsize=3), vary={})",
            "line 5: TrialConfig: there is no field 'batchsize'; did you mean 'batch_size'?",
        ),
        (
            HEAD + "study = Study(name='a', base=TrialConfig(), vary={}, seed=3)",
            "line 5: Study: there is no field 'seed'; did you mean 'seeds'?",
        ),
        (
            HEAD + "study = Study(name='a', base=TrialConfig(base_lr=-1), vary={})",
            "line 5: base_lr must be > 0, got -1",
        ),
    ],
)
def test_bad_space_files_are_named_with_the_line(
    text: str | bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "space.py"
    if isinstance(text, bytes):
        path.write_bytes(text)
    elif text is not None:
        path.write_text(text)
    with pytest.raises(SpaceFileError) as caught:
        load_study(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


SPACES = [entry.path for entry in entries()]


def test_there_are_spaces_to_load() -> None:
    """Without any, the tests below would pass by having no case."""
    assert {path.name for path in SPACES} >= {"pcam_grid.py", "pcam_optuna.py"}


@pytest.mark.parametrize("path", SPACES, ids=lambda p: p.name)
def test_every_space_loads_and_has_a_preview(path: Path) -> None:
    loaded = load_study(path)
    assert loaded.name == path.stem
    preview = as_preview(loaded, dataset="synthetic")
    assert 1 <= len(preview.configs) <= len(loaded.configs)
    assert set(preview.vary) == set(loaded.vary)
    assert type(preview.explore) is type(loaded.explore)
    assert preview.expect == loaded.expect
    assert f"python -m search.run spaces/{path.name}" in path.read_text()


def test_loading_spaces_loads_neither_torch_nor_optuna() -> None:
    code = (
        "import sys; from pathlib import Path; from search.study.space_file import load_study\n"
        f"for path in {[str(path) for path in SPACES]}:\n"
        "    load_study(Path(path)); print(path, {'torch', 'optuna'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"{path} set()" for path in SPACES]
