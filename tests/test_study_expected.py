"""Expectations as a space file declares them: what is refused, and what becomes of the rest."""

import json
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from search.execution.provenance import part_as_json
from search.explore import Ablation, Variants
from search.study import Better, Exponent, Order, Reported, Study, Trend
from search.study.preview import as_preview
from search.study.settings import apply_settings
from search.study.space_file import SpaceFileError, load_study
from trainable.config import TrialConfig

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none")
VARY: dict[str, Any] = {
    "batch_size": tune.grid_search([16, 32]),
    "base_lr": tune.grid_search([0.1, 1.0]),
}
ALL = (
    Exponent(0.8, 1.2, "Goyal 2017"),
    Better("optimizer", "sgd", "adam", "a", by=0.01, where={"base_lr": "highest"}),
    Order("norm", ["group", "batch"], "b"),
    Trend("falls", "c", where={"base_lr": "lowest"}),
    Reported("test_auroc", [{"batch_size": 16, "base_lr": "lowest", "test_auroc": 0.9}], "d"),
)


def study(*expect: Any, **changes: Any) -> Study:
    return Study(**({"name": "a", "base": BASE, "vary": VARY, "expect": expect} | changes))


def test_a_study_without_expectations_has_none() -> None:
    assert Study(name="a", base=BASE, vary=VARY).expect == ()


def test_expectations_go_with_the_study_into_preview_and_settings() -> None:
    declared = study(*ALL)
    assert as_preview(declared, dataset="synthetic").expect == ALL
    # A value that is not tried now is no error: the report says that it was not measured.
    assert apply_settings(declared, ["base_lr=0.3", "optimizer=lamb"]).expect == ALL


def test_they_are_plain_data_in_json() -> None:
    written = json.loads(json.dumps([part_as_json(expectation) for expectation in ALL]))
    assert [entry["kind"] for entry in written] == [
        *("Exponent", "Better", "Order", "Trend", "Reported")
    ]
    assert written[1] == {
        **{"kind": "Better", "field": "optimizer", "value": "sgd", "than": "adam"},
        **{"source": "a", "by": 0.01, "where": {"base_lr": "highest"}},
    }
    assert written[4]["rows"] == [{"batch_size": 16, "base_lr": "lowest", "test_auroc": 0.9}]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Exponent(1.2, 0.8, "a"), "Exponent: low must be <= high, got 1.2 and 0.8"),
        (lambda: Exponent("1", 2, "a"), "Exponent: low must be a finite number, got '1'"),
        (lambda: Exponent(0, float("inf"), "a"), "Exponent: high must be a finite number, got inf"),
        (lambda: Exponent(0, 1, ""), "Exponent: source must be a short citation, such as 'Goyal"),
        (lambda: Trend("falls", None), "Trend: source must be a short citation, such as 'Goyal"),
        (
            lambda: Trend("rising", "a"),
            "Trend: there is no direction 'rising'; did you mean 'rises'?",
        ),
        (lambda: Trend("falls", "a", where="sgd"), "Trend: where must be a dict of fields, such"),
        (lambda: Better("depth", 3, 3, "a"), "Better: value and than must differ, got 3 twice"),
        (lambda: Better("depth", 3, 2, "a", by=-1), "Better: by must be > 0, got -1: exchange"),
        (lambda: Better("depth", 3, 2, "a", by=True), "Better: by must be a finite number"),
        (lambda: Order("norm", "batch", "a"), "Order: values must be a list of two or more, best"),
        (lambda: Order("norm", ["batch"], "a"), "Order: values must be a list of two or more"),
        (lambda: Order("depth", [3, 4, 3], "a"), "Order: values repeats a value: [3, 4, 3]"),
        (
            lambda: Reported("test_auc", [{"test_auc": 1, "depth": 1}], "a"),
            "Reported: there is no metric 'test_auc'; did you mean 'test_auroc'?",
        ),
        (lambda: Reported("val_loss", [], "a"), "Reported: rows must be a list of dicts, got []"),
        (
            lambda: Reported("val_loss", [{"val_loss": 0.1}], "a"),
            "Reported: row 1 must be a dict of fields and val_loss, such as",
        ),
        (
            lambda: Reported("val_loss", [{"depth": 1, "val_auroc": 0.1}], "a"),
            "Reported: row 1 must be a dict of fields and val_loss, such as",
        ),
        (
            lambda: Reported("val_loss", [{"depth": 1, "val_loss": None}], "a"),
            "Reported: val_loss of row 1 must be a finite number, got None",
        ),
    ],
)
def test_an_impossible_expectation_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^") as caught:
        make()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        (
            Better("optimiser", "sgd", "adam", "a"),
            "Better: there is no field 'optimiser'; did you mean 'optimizer'?",
        ),
        (
            Better("optimizer", "sdg", "adam", "a"),
            "Better: optimizer must be one of sgd, adam",
        ),
        (Order("norm", ["batch", "groups"], "a"), "Order: norm must be one of "),
        (Trend("falls", "a", where={"lr": 0.1}), "Trend: there is no field 'lr'; did you mean 'ba"),
        (Trend("falls", "a", where={"base_lr": -1}), "Trend: base_lr must be > 0, got -1"),
        (
            Trend("falls", "a", where={"base_lr": "low"}),
            "Trend: base_lr must be a number, 'lowest' or 'highest', got 'low'",
        ),
        (
            Trend("falls", "a", where={"optimizer": "lowest"}),
            "Trend: optimizer has no lowest value: name one of its values",
        ),
        (
            Trend("falls", "a", field="optimizer"),
            "Trend: optimizer has no numbers, so nothing can rise or fall with it; write Order(",
        ),
        (Better("seed", 1, 2, "a"), "Better: seed cannot be named: seeds are what the noise is"),
        (
            Better("step", "b", "a", "x"),
            "Better: the study has no steps: name a field of the trial, got 'step'",
        ),
        (
            Reported("val_loss", [{"batchsize": 16, "val_loss": 0.1}], "a"),
            "Reported: there is no field 'batchsize'; did you mean 'batch_size'?",
        ),
        ("faster", "expect must contain Exponent, Better, Order, Trend, Reported, got 'faster'"),
    ],
)
def test_a_field_or_value_that_cannot_be_is_refused_in_one_line(expect: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^") as caught:
        study(expect)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_one_expectation_without_its_comma_is_told_so() -> None:
    with pytest.raises(ValueError, match=r"^expect must be a tuple, .* with its comma, got Trend"):
        study(expect=(Trend("falls", "a")))


@pytest.mark.parametrize(
    ("explore", "name"),
    [
        (Ablation(steps={"none": {}, "+ warmup": {"warmup_epochs": 1}}), "step"),
        (Variants(each={"none": {}, "+ warmup": {"warmup_epochs": 1}}), "variant"),
    ],
)
def test_steps_and_variants_go_by_their_names(explore: Any, name: str) -> None:
    declared = study(Better(name, "+ warmup", "none", "a"), explore=explore)
    assert len(declared.expect) == 1
    with pytest.raises(ValueError, match=rf"there is no {name} '\+ warm'; did you mean '\+ warmup"):
        study(Better(name, "+ warm", "none", "a"), explore=explore)


def test_a_space_file_names_the_line_and_the_right_word(tmp_path: Path) -> None:
    space = tmp_path / "made.py"
    space.write_text(
        "from search.study import Better\n\nclaim = Better('norm', 'group', 'batch', origin='a')\n"
    )
    with pytest.raises(SpaceFileError, match=r"made.py, line 3: Better: there is no field 'origin"):
        load_study(space)
    space.write_text("from search.study import Better\n\nBetter('norm', 'group', 'batch')\n")
    with pytest.raises(SpaceFileError, match=r"made.py, line 3: .*'source'$"):
        load_study(space)
