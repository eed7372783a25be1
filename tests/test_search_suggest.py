import ast
import re
from pathlib import Path
from typing import Any

import pytest
import ray
from commands import ROOT, SPACES
from ray import tune

import trainable.lr_range
from search import run, suggest
from search.study.space_file import load_study
from search.study.study import Study
from search.suggest import main, probed_configs, suggested_ends
from trainable.config import TrialConfig
from trainable.lr_range import LrRange


def found(steepest: float | None, stable: float | None, unstable: float | None) -> LrRange:
    return LrRange(peak_per_base=0.5, steepest_lr=steepest, stable_lr=stable, unstable_lr=unstable)


def pasted(printed: str, study: Study) -> Study:
    """The study with the printed line in its `vary`, as if it had been pasted there."""
    (line,) = re.findall(r'^  ("base_lr": .*,)$', printed, re.MULTILINE)
    vary: dict[str, Any] = eval(f"{{{line}}}", {"tune": tune})
    return Study(name="pasted", base=study.base, vary={**study.vary, **vary}, explore=study.explore)


def test_a_grid_gets_values_that_it_accepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(SPACES / "small.py"), "--set", "weight_decay=0,0.001"]) == 0
    printed = capsys.readouterr().out
    assert "dataset=synthetic model=plain optimizer=sgd weight_decay=0 (varies)" in printed
    rows = [line.split() for line in printed.splitlines() if re.match(r" +(32|64) ", line)]
    assert [row[0] for row in rows] == ["32", "64"]
    for batch_size, *rates in rows:
        steepest_base, steepest_peak, stable_base, stable_peak = map(float, rates[:4])
        factor = int(batch_size) / 256  # the linear rule
        assert steepest_peak / steepest_base == pytest.approx(factor, rel=0.1)
        assert stable_peak / stable_base == pytest.approx(factor, rel=0.1)
    values = pasted(printed, load_study(SPACES / "small.py")).vary["base_lr"]["grid_search"]
    assert values[0] < min(float(row[1]) for row in rows) / 5
    assert values[-1] > max(float(row[3]) for row in rows)
    assert values == sorted(values)
    assert not ray.is_initialized()
    assert list(tmp_path.iterdir()) == []  # no results


def test_a_searched_study_gets_a_range_that_it_accepts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[TrialConfig] = []

    def find(config: TrialConfig, *_: object, **__: object) -> LrRange:
        asked.append(config)
        return found(0.05, 2.0, 2.2)

    monkeypatch.setattr(trainable.lr_range, "find_lr_range", find)
    assert main([str(SPACES / "searched.py"), "--set", "optimizer=adam"]) == 0
    assert [(c.batch_size, c.optimizer) for c in asked] == [(32, "adam"), (64, "adam")]
    domain = pasted(capsys.readouterr().out, load_study(SPACES / "searched.py")).vary["base_lr"]
    assert (domain.lower, domain.upper) == (0.01, 10.0)


def test_the_ends_of_a_suggestion() -> None:
    # Base rates: steepest 0.1 and 0.4, stable up to 4 and 24, unstable from 4.4 and 28.
    two = [found(0.05, 2.0, 2.2), found(0.2, 12.0, 14.0)]
    assert suggested_ends(two) == (0.01, 30.0)
    # A range test that saw no fall, or one above what is stable, gives the stable rate its place.
    assert suggested_ends([found(None, 0.5, 0.6)]) == (0.1, 3.0)
    assert suggested_ends([found(3.0, 0.5, 0.6)]) == (0.1, 3.0)
    assert suggested_ends([found(0.05, 100.0, None)]) == (0.01, 300.0)
    assert suggested_ends([*two, found(None, None, 1e-6)]) == (0.01, 30.0)
    assert suggested_ends([found(None, None, 1e-6)]) is None


@pytest.mark.parametrize(
    ("result", "status", "said"),
    [
        (found(0.05, 100.0, None), 0, "at least 2e+02"),
        (found(None, None, 1e-6), 1, "nothing to suggest"),
    ],
)
def test_a_bound_that_was_hit_is_said(
    result: LrRange,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trainable.lr_range, "find_lr_range", lambda *_, **__: result)
    assert main([str(SPACES / "small.py")]) == status
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.py"], "there is no space file nowhere.py"),
        ([str(SPACES / "small.py"), "--set", "optimiser=adam"], "did you mean 'optimizer'?"),
        ([str(SPACES / "small.py"), "--set", "batch_size=512"], "larger than the 256 training"),
        ([str(SPACES / "small.py"), "--set", "precision=fp16"], "precision=fp16 needs a GPU"),
        (
            [str(ROOT / "spaces" / "pcam_grid.py"), "--data", "nowhere"],
            "no recognised data set in nowhere",
        ),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("search.suggest: ")
    assert said in printed
    assert "\n" not in printed


def test_batch_sizes_are_the_studys() -> None:
    base = load_study(SPACES / "small.py").base
    fixed = Study(name="fixed", base=base, vary={"base_lr": tune.grid_search([0.1, 1.0])})
    assert [c.batch_size for c in probed_configs(fixed)] == [base.batch_size]
    grid = load_study(ROOT / "spaces" / "pcam_grid.py")
    assert [c.batch_size for c in probed_configs(grid)] == [16, 32, 64, 128, 256]


def test_flags_are_some_of_runs() -> None:
    ours, runs = (
        {option for action in each.parser()._actions for option in action.option_strings}
        for each in (suggest, run)
    )
    assert ours == {"-h", "--help", "--data", "--preview", "--set"}
    assert ours <= runs


def test_the_page_shows_a_line_that_is_python() -> None:
    text = (ROOT / "docs" / "studies.md").read_text()
    assert "python -m search.suggest spaces/pcam_grid.py --preview" in text
    (line,) = re.findall(r'^  ("base_lr": tune\.grid_search\(.*\)),$', text, re.MULTILINE)
    ast.parse(f"{{{line}}}")
