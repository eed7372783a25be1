"""Constant predictions and scores at chance, which are told from a success."""

import numpy as np
import pandas as pd
import pytest
from made_tables import Cells, analysed, findings_of, table
from scipy import stats

from search.analysis.chance import collapsed, nothing_beat_chance
from search.analysis.metric_name import is_auroc
from search.report.findings import numbers
from search.report.sentences.caveats import cautions
from search.report.sentences.conclusions import conclusions

TELLS = (
    "No trial beat chance: the best AUROC is {best}, and guessing gives 0.5. So nothing can be "
    "concluded; check the data and its labels, and try lower learning rates or a longer training."
)
COLLAPSED = (
    "{n} collapsed: the same prediction for every image, an AUROC of exactly 0.5, usually by too "
    "high a learning rate. {they} as completed and {averaged}."
)
AT_CHANCE: Cells = {(16, 1e5): [0.5, 0.5], (16, 1e6): [0.5, 0.49], (32, 1e6): [0.48, 0.5]}


def test_nothing_is_best_where_nothing_beat_chance() -> None:
    found = analysed(AT_CHANCE)
    assert conclusions(found) == [TELLS.format(best="0.5")]
    told = numbers(findings_of(AT_CHANCE, table(AT_CHANCE)))
    assert told["conclusions"] == [TELLS.format(best="0.5")]


def test_the_column_tells_which_trials_collapsed_and_without_it_the_auroc() -> None:
    trials = pd.DataFrame({
        "status": ["completed", "completed", "completed", "diverged"],
        "val_auroc": [0.5, 0.5, 0.5, 0.5],
        "collapsed": [True, False, None, None],  # an old row has none
    })  # fmt: skip
    assert collapsed(trials).tolist() == [True, False, True, False]
    assert collapsed(trials.drop(columns="collapsed")).tolist() == [True, True, True, False]
    assert collapsed(trials.drop(columns="val_auroc")).tolist() == [True, False, False, False]
    assert collapsed(trials.iloc[:0]).tolist() == []


def test_one_trial_above_chance_is_a_result() -> None:
    said = conclusions(analysed(AT_CHANCE | {(64, 0.1): [0.7, 0.71]}))
    assert not any("beat chance" in sentence for sentence in said)


@pytest.mark.parametrize("images", [40, 1000])
def test_guesses_about_few_images_vary_as_the_margin_says(images: int) -> None:
    """Of 20 studies that guess once, 19 do not beat chance."""
    rng = np.random.default_rng(0)
    half = images // 2
    scores = [
        stats.mannwhitneyu(*rng.standard_normal((2, half))).statistic / half**2 for _ in range(2000)
    ]
    at_chance = [
        nothing_beat_chance(
            pd.DataFrame({"status": ["completed"], "val_auroc": score, "eval_images": images}),
            metric="val_auroc",
        )
        for score in scores
    ]
    assert np.mean(at_chance) == pytest.approx(0.95, abs=0.015)


def test_the_auroc_tells_whichever_metric_ranks() -> None:
    at_chance = table(AT_CHANCE).assign(val_loss=0.69)
    assert nothing_beat_chance(at_chance, metric="val_loss")
    assert nothing_beat_chance(at_chance.rename(columns={"val_auroc": "my_auc"}), metric="my_auc")
    assert not nothing_beat_chance(at_chance.drop(columns="val_auroc"), metric="val_loss")


def test_a_constant_prediction_is_collapsed_and_no_stable_rate() -> None:
    cells: Cells = {
        (16, 0.1): [0.8, 0.81], (16, 1.0): [0.79, 0.5], (16, 10.0): [0.5, "diverged"],
        (32, 0.1): [0.7, 0.71], (32, 1.0): [0.6, 0.61], (32, 10.0): [0.51, 0.52],
    }  # fmt: skip
    found = analysed(cells)
    assert collapsed(found.trials).sum() == 2
    assert found.cells["collapsed"].tolist() == [0, 1, 1, 0, 0, 0]
    stable = found.stable.set_index("batch_size")
    assert stable.loc[16, "diverges_at"] == 10.0  # one of the two diverged, the other collapsed
    assert np.isnan(stable.loc[16, "stable_lr"])  # of two trials at 0.1 one more might be lost
    assert np.isnan(stable.loc[32, "diverges_at"])
    said = COLLAPSED.format(n="2 trials", they="They count", averaged="are averaged")
    assert said in cautions(found)
    assert "1 trial diverged: it is counted, not averaged." in cautions(found)


def test_one_collapsed_trial_is_told_in_the_singular() -> None:
    said = COLLAPSED.format(n="1 trial", they="It counts", averaged="is averaged")
    assert said in cautions(analysed({(16, 0.1): [0.8], (16, 1.0): [0.5]}))


@pytest.mark.parametrize(
    ("metric", "is_one"),
    [
        *((name, True) for name in ("val_auroc", "auc", "roc_auc", "test/AUC", "valAuroc")),
        *((name, False) for name in ("pr_auc", "val_auc_pr", "prAUC", "auc_prc", "auprc")),
        *((name, False) for name in ("1-auc", "neg_auroc", "auc_loss", "val_acc")),
    ],
)
def test_half_is_chance_of_an_area_under_the_roc_curve_only(metric: str, is_one: bool) -> None:
    assert is_auroc(metric) == is_one


def test_a_study_of_average_precision_is_not_judged_by_an_aurocs_chance() -> None:
    trials = pd.DataFrame({"status": ["completed"], "pr_auc": 0.3})
    assert not nothing_beat_chance(trials, metric="pr_auc")
