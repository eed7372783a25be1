"""methods.md says what the tables and study.json say, and calls the rest unknown."""

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from search.report.facts import (
    command_of,
    evaluation_images,
    hours_words,
    parameters_words,
    training_images,
)
from search.report.findings import of_study, of_table
from search.report.methods import methods
from search.report.protocol import part_words, varied
from search.report.sentences.domains import domain_words
from search.results.tables import Results
from search.run import parser

MakeStudy = Callable[..., Results]


def told(make_study: MakeStudy, **more: Any) -> str:
    return methods(of_study(make_study(**more)))


def part(text: str, title: str) -> str:
    """The text under a heading."""
    return text.partition(f"## {title}\n\n")[2].partition("\n\n## ")[0]


def test_a_grid_is_described_from_its_tables(make_study: MakeStudy) -> None:
    text = told(
        make_study,
        split="by_image",
        select_by="val_auroc",
        code_version="c0ffee",
        host="h",
        about={"space_file": "spaces/my_grid.py", "settings": ["seeds=3"], "space_sha256": "ab"},
    )
    assert text.startswith("# Methods of made\n")
    data = part(text, "Data")
    assert "Data set: pcam; task: classification; images not cropped." in data
    assert "Training images: unknown; validation images: unknown; test images: unknown." in data
    assert "image by image, so images of one patient or slide may be in both." in data
    assert "SHA-256 of the data: `abc`." in data
    of_vary = part(text, "What was varied")
    assert "`batch_size`: 16, 32, 64, 128 and 256\n- `base_lr`: 0.03, 0.1, 0.3, 1 and 3" in of_vary
    assert "All combinations were trained: `Grid(widen=0, refine=0)`." in of_vary
    fixed = part(text, "What was held fixed")
    assert "`optimizer` sgd, `momentum` 0.9" in fixed
    assert "`epochs` 4" in fixed
    assert "beta1" not in fixed  # of Adam
    assert "`batch_size`" not in fixed
    trials = part(text, "Trials and selection")
    assert "75 trials: 25 settings, seeds 0, 1 and 2" in trials
    assert "74 completed, 0 stopped, 1 diverged, 0 failed, 0 interrupted" in trials
    assert "those of its evaluation with the best val_auroc" in trials
    assert "The test split was scored once a trial" in trials
    bars = part(text, "Error bars")
    assert "means over 2 to 3 seeds with the standard deviation (n - 1)" in bars
    compute = part(text, "Compute")
    assert "Device: cpu, CPU only; 1 host" in compute
    assert "trained for 0.125 hours" in compute  # 75 x 6 s
    assert "no GPU was used" in compute
    again = part(text, "How to reproduce it")
    assert "`python -m search.run spaces/my_grid.py --set seeds=3`" in again
    assert "Commit: `c0ffee`. Versions: python 3." in again
    assert "preview" not in text
    assert "synthetic" not in text


def test_the_checklists_answer_or_say_that_it_is_not_recorded(make_study: MakeStudy) -> None:
    findings = of_study(make_study(about={"space_file": "spaces/my_grid.py"}))
    text = methods(findings)
    answers = dict(re.findall(r"^\| (.*?) \| (.*?) \|$", text, re.MULTILINE))
    assert answers["Number of parameters of each model (C1)"] == "not recorded"
    assert answers["Number of training runs of the search"] == "75, each with its evaluations"
    assert answers["Excluded data, link to the data"] == "not recorded"
    best = findings.leaders.iloc[0]
    assert answers["Best-found values (C2)"] == (
        f"`batch_size` {best['batch_size']:g}, `base_lr` {best['base_lr']:g}"
    )
    assert (
        f"test_auroc {best['test_auroc']:.3f}"
        in (answers["Validation score beside each test score"])
    )
    assert f"n = {best['n']:g}" in answers["Summary statistics: mean, variance (C3)"]
    assert answers["Experimental result reproducibility"].startswith("yes: command, commit")
    dirty = told(make_study, code_version="c0ffee-dirty", about={"space_file": "s.py"})
    assert "partly: the code had changes that were not committed" in dirty
    assert "`c0ffee-dirty` (with changes that were not committed)" in dirty


def test_previews_and_synthetic_patches_come_first(make_study: MakeStudy) -> None:
    text = told(make_study, changes=[{"dataset": "synthetic"}], about={"preview": True})
    first, second = text.split("\n\n")[1:3]
    assert first.startswith("**This is a preview:")
    assert second.startswith("**dataset=synthetic: trained on synthetic patches")


def test_one_seed_has_no_error_bars(make_study: MakeStudy) -> None:
    text = told(make_study, seeds=1)
    assert part(text, "Error bars").startswith("No setting has two scores")
    assert "no: no setting has two scores" in text


def test_ranking_by_a_test_score_is_said_loudly(make_study: MakeStudy) -> None:
    text = methods(of_study(make_study(), metric="test_auroc"))
    assert "**Settings are ranked by test_auroc, a test score: that is selection by test.**" in text
    assert "no: settings are ranked by a test score" in text


def test_gpu_hours_and_images_are_those_of_the_tables(make_study: MakeStudy) -> None:
    counts = dict(zip(("true_positives", "false_negatives"), (30, 20), strict=True))
    counts |= {"false_positives": 5, "true_negatives": 45}
    test = {f"test_{name}": number for name, number in counts.items()}
    results = make_study(
        **test, num_gpus=2.0, train_wall_s=3600.0, device="NVIDIA H200", image_size=96
    )
    text = methods(of_study(results))
    assert "test images: 100 (50 positive)" in text
    assert "images cropped to a central square of 96 px" in text
    assert "trained for 75 hours" in text
    assert "150 GPU-hours" in text
    assert "NVIDIA H200, 2 GPU a trial" in text


def test_images_of_the_splits() -> None:
    trials = pd.DataFrame({"trial_key": ["a", "b"], "train_images": [None, None]})
    epochs = pd.DataFrame(
        {
            "trial_key": ["a", "a", "b"],
            "epoch": [1, 2, 1],
            "epochs_seen": [1.0, 2.0, 0.5],
            "examples_seen": [100, 200, 50],
        }
    )
    assert training_images(trials, epochs) == [100]
    assert training_images(trials, None) == []
    assert training_images(trials.assign(train_images=[64.0, 32.0]), epochs) == [32, 64]
    asked = pd.DataFrame({"eval_images": [500]})
    assert evaluation_images(None, asked, "val") == "at most 500"
    assert evaluation_images(None, trials, "val") == "unknown"
    names = ("true_positives", "false_positives", "true_negatives", "false_negatives")
    none = pd.DataFrame({f"val_{name}": [-1] for name in names})  # the task has no such counts
    assert evaluation_images(none, asked, "val") == "at most 500"


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        ({"grid_search": [1, 0.5]}, "1 and 0.5"),
        ({"choice": [16, 32, 64]}, "one of 16, 32 and 64"),
        ({"range": [0.001, 1], "scale": "log"}, "0.001 to 1 (log scale)"),
        (
            {"range": [2, 8], "scale": "linear", "step": 2, "whole": True},
            "2 to 8 (linear scale, in steps of 2, whole numbers)",
        ),
        # As older study.json have them.
        ("[16, 32] Categorical", "one of 16 and 32"),
        ("['sgd', None] Categorical", "one of sgd and -"),
        ("(0.1, 1) Float", "0.1 to 1 (its scale was not recorded)"),
        ("(1, 5) Integer", "1 to 4 (its scale was not recorded, whole numbers)"),
        ("all of it", "all of it"),
        (0.3, "0.3"),
        ("adamw", "adamw"),
    ],
)
def test_domains_in_words(domain: object, words: str) -> None:
    assert domain_words(domain) == words


def test_variants_are_told_with_their_own_values(make_study: MakeStudy) -> None:
    each = {"low": {"base_lr": {"grid_search": [0.1, 0.2]}}, "as it is": {}}
    about = {
        "vary": {"base_lr": {"grid_search": [1, 3]}},
        "explore": {"kind": "Variants", "each": each},
    }
    assert varied(replace(of_study(make_study()), about=about)) == [
        "- `base_lr`: 1 and 3 (where those below do not give their own)",
        "- low: `base_lr`: 0.1 and 0.2",
        "- as it is: the base configuration",
        "Every variant was trained with all combinations of its values: `Variants()`.",
        "No scheduler stopped trials early.",
    ]


def test_many_values_that_nobody_declared_are_a_range(make_study: MakeStudy) -> None:
    lrs = [round(0.01 * 1.1**i, 6) for i in range(14)]
    text = told(make_study, lrs=lrs, seeds=1, about={"vary": {}})
    assert "- `base_lr`: 14 values from 0.01 to 0.03452 (as trained)" in text


def test_parts_in_words() -> None:
    assert part_words({"kind": "Random", "num_configs": 3, "points": []}) == "Random(num_configs=3)"
    assert [part_words(each) for each in (None, "None", "Grid()")] == ["", "", "Grid()"]


def test_searches_say_that_stopped_seeds_flatter(make_study: MakeStudy) -> None:
    findings = of_study(make_study(about={"stop": {"kind": "Asha", "reduction_factor": 3}}))
    findings.trials.loc[:9, "status"] = "stopped"
    text = methods(findings)
    assert "Trials were stopped early by `Asha(reduction_factor=3)`." in text
    assert "its mean is of the better ones, and too good" in text


def test_a_table_says_nothing_of_its_training(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    rows = [(b, lr, 0.8) for b in (16, 32) for lr in (0.1, 0.2)]
    pd.DataFrame(rows, columns=["b", "lr", "acc"]).to_csv(path, index=False)
    text = methods(of_table(path, batch_size="b", lr="lr", metric="acc"))
    assert "4 runs were read from" in text
    assert "(batch_size from `b`, lr from `lr`; metric `acc`, max is best)" in text
    assert "hardware, time, versions and commit are unknown" in text


def test_without_study_json_the_plan_is_unknown(make_study: MakeStudy) -> None:
    results = make_study()
    (Path(results.folder.uri) / "study.json").unlink()
    text = methods(of_study(results))
    assert "**There is no study.json: how these trials were planned is unknown.**" in text
    assert "The command is unknown." in text
    assert "Versions: unknown." in text


def test_the_number_of_parameters_is_told_by_model(make_study: MakeStudy) -> None:
    networks = ({"model": "vgg16", "train_blocks": 2}, {"model": "resnet18"})
    findings = of_study(make_study(changes=networks, seeds=1))
    assert "Number of parameters: unknown." in methods(findings)
    trials = findings.trials
    is_frozen = trials["model"] == "vgg16"
    counted = trials.assign(
        num_parameters=is_frozen.map({True: 14_715_714, False: 11_177_538}),
        num_trained_parameters=is_frozen.map({True: 12_980_226, False: 11_177_538}),
    )
    words = "resnet18 11,177,538 (all trained) and vgg16 14,715,714 (12,980,226 trained)"
    assert parameters_words(counted) == words
    text = methods(replace(findings, trials=counted))
    assert f"Number of parameters: {words}." in text
    assert f"| Number of parameters of each model (C1) | {words} |" in text
    wider = counted[is_frozen].assign(num_parameters=[10, *[20] * (is_frozen.sum() - 1)])
    assert parameters_words(wider) == "vgg16 10 to 20 (12,980,226 trained)"


def test_the_command_is_one_that_search_run_takes() -> None:
    settings = ["seeds=3", "base_lr=0.1, 1"]
    about = {"space_file": "my spaces/grid.py", "preview": True, "settings": settings}
    command = command_of({**about, "data_folder": "somewhere"})
    program, arguments = command.split()[:3], shlex.split(command)[3:]
    assert program == ["python", "-m", "search.run"]
    taken = parser().parse_args(arguments)
    assert (taken.space, taken.preview) == (Path("my spaces/grid.py"), True)
    assert taken.settings == settings
    assert taken.data == Path("DIR")  # this machine's folder is nobody else's


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        *((1, "1 hour"), (1.0004, "1 hour"), (0.5, "0.5 hours"), (12.34, "12.3 hours")),
        *((0.1, "0.1 hours"), (0.000186, "0.7 s"), (0.05, "3 m 00 s")),
    ],
)
def test_hours_in_words(hours: float, words: str) -> None:
    assert hours_words(hours) == words
