"""Studies of tasks beyond classification: their metric, and what a command may set."""

from dataclasses import replace
from typing import Any

import pytest
from ray import tune

from search.analysis.metric_name import bounds_of, mode_by_name
from search.report.findings import mode_of
from search.results.tables import EPOCHS, TRIALS
from search.study.preview import as_preview
from search.study.settings import apply_settings
from search.study.space_file import SpaceFileError
from search.study.study import Study
from trainable.config import SCORES, SCORES_OF, WORST, TrialConfig

VARY = {"base_lr": tune.grid_search([0.1, 1.0])}
OWN = [("classification", "val_auroc"), ("segmentation", "val_miou"), ("detection", "val_map")]


def study(task: str = "classification", **changes: Any) -> Study:
    base = TrialConfig(dataset="synthetic", task=task, model="plain", pretrained="none")
    return Study(**({"name": "s", "base": base, "vary": VARY} | changes))


@pytest.mark.parametrize(("task", "metric"), OWN)
def test_a_study_that_names_no_metric_takes_its_tasks(task: str, metric: str) -> None:
    made = study(task)
    assert (made.metric, made.base.select_by, made.mode) == (metric, metric, "max")
    assert as_preview(made, dataset="synthetic").metric == metric


@pytest.mark.parametrize(("task", "metric"), OWN)
@pytest.mark.parametrize(("other", "others_metric"), OWN)
def test_a_score_of_another_task_is_refused(
    task: str, metric: str, other: str, others_metric: str
) -> None:
    if task == other:
        assert study(task, metric=metric).metric == metric
        return
    message = f"metric={others_metric} is no score of task={task}: take one of {metric}, "
    with pytest.raises(ValueError, match=message):
        study(task, metric=others_metric)
    with pytest.raises(SpaceFileError, match=message):
        apply_settings(study(task), [f"metric={others_metric}"])


@pytest.mark.parametrize(("task", "metric"), OWN)
def test_another_task_takes_its_own_metric(task: str, metric: str) -> None:
    changed = apply_settings(study(metric="val_accuracy"), [f"task={task}"])
    assert changed.base.task == task
    expected = "val_accuracy" if task == "classification" else metric
    assert (changed.metric, changed.base.select_by) == (expected, expected)
    both = apply_settings(study(), [f"task={task}", "metric=val_loss"])
    assert (both.metric, both.base.select_by, both.mode) == ("val_loss", "val_loss", "min")


def test_a_study_has_one_task() -> None:
    with pytest.raises(ValueError, match="task cannot vary: its scores are others, make a study"):
        study(vary={"task": tune.grid_search(["segmentation", "detection"])})
    with pytest.raises(SpaceFileError, match="task cannot vary"):
        apply_settings(study(), ["task=segmentation,detection"])
    with pytest.raises(SpaceFileError, match="task must be one of classification, segmentation, d"):
        apply_settings(study(), ["task=segment"])


def test_what_people_type_for_a_score_is_understood() -> None:
    for typed, meant in {"miou": "val_miou", "iou": "val_miou", "mAP": "val_map"}.items():
        with pytest.raises(
            ValueError, match=f"there is no metric '{typed}'; did you mean '{meant}'"
        ):
            study("segmentation", metric=typed)


@pytest.mark.parametrize("score", SCORES)
def test_each_score_has_its_columns_its_end_and_its_bounds(score: str) -> None:
    test_score = score.replace("val_", "test_")
    assert {score, test_score} <= set(TRIALS.names)
    assert score in EPOCHS.names
    is_loss = score == "val_loss"
    assert (
        mode_of(test_score) == SCORES[score] == mode_by_name(score) == ("min" if is_loss else "max")
    )
    assert WORST[score] == (-1e6 if is_loss else 0.0)
    assert bounds_of(score, [0.25, 0.5]) == (0.0, float("inf") if is_loss else 1.0)
    assert any(score in names for names in SCORES_OF.values())


def test_tasks_do_not_change_a_base_of_another(tiny_config: TrialConfig) -> None:
    made = study(base=replace(tiny_config, task="segmentation"))
    assert made.configs[0].select_by == "val_miou"
