"""What a report says to beware of, word for word, of tables whose truth is known."""

import math
from dataclasses import replace
from typing import Any

import pytest
from made_tables import Cells, table
from made_tables import analysed as of
from test_report_scaling_sentences import peaked

from search.analysis.analysis import Analysis, analyse
from search.report.sentences.caveats import cautions
from search.report.sentences.conclusions import conclusions

# Each sentence once, so that another wording is one edit.
PLAYBOOK = (
    "The best batch size here is the best one for this budget, schedule and regularization. Each "
    "batch size needs its own settings, and with equal epochs a small batch makes more updates. "
    "Choose the batch size by time and memory, then tune the other settings for it (Godbole et "
    "al., Deep Learning Tuning Playbook)."
)
STOPPED = (
    "{n} stopped trials are left out (censored). The means of their settings only include trials "
    "that were allowed to finish, and so are too good."
)
DIVERGED = "{n} trials diverged: they are counted, not averaged."
FAILED = "{n} trials failed and are left out."
BINNED = (
    "The learning rates are scattered. They are put into bins of a third of a decade, and batch "
    "sizes are rounded to powers of two: the spread within a bin includes everything else that "
    "differed."
)
TOO_FEW = (
    "{trials} scattered trials are too few for a surface: {alone} of its {cells} bins contain only "
    "one. Try more configurations, or a grid."
)
UNREPEATED = "There is only one {seed} per setting, so there are no intervals and no tests."
SCATTERED = (
    "There is only one seed per setting, so scores have no intervals and no tests. The intervals "
    "of learning rates are from the scatter about a line."
)
UNBRACKETED = (
    "At batch size{sizes} the best lr is the smallest or largest that was tried (unbracketed); a "
    "better one may lie outside."
)
VERSIONS = (
    "{n} versions of the code trained these trials; the column code_version distinguishes them."
)
SYNTHETIC = "dataset=synthetic: the images are synthetic patches, not histology."
NO_EVALUATIONS = (
    "Critical batch size: no evaluations during training are recorded with their number of updates."
)
INSIDE: Cells = {(16, 0.1): [0.51, 0.52], (16, 0.2): [0.6, 0.62], (16, 0.4): [0.51, 0.52]}


def test_a_whole_surface_of_one_batch_size_has_the_playbooks_caution_alone() -> None:
    assert cautions(of(INSIDE)) == [PLAYBOOK]


def test_trials_that_were_chosen_one_by_one_lack_nothing_of_a_grid() -> None:
    found = of({(16, 0.1): [0.8], (16, 0.2): [0.7], (32, 0.1): [0.9], (32, 0.2): [0.8]})
    assert len(cautions(found)) > 2  # one seed, and best rates at the edge
    assert cautions(found, whole_grid=False) == [PLAYBOOK, NO_EVALUATIONS]


def test_the_best_of_trials_that_were_chosen_one_by_one_is_no_ranking() -> None:
    found = of({(16, 0.1): [0.8], (16, 0.2): [0.7], (32, 0.1): [0.9, 0.92], (32, 0.2): [0.8]})
    assert conclusions(found, whole_grid=False)[0] == (
        "The best mean score is val_auroc 0.91, at batch size 32 with base_lr 0.1 (2 trials); the "
        "best of many is partly luck."
    )


def test_of_nothing_there_is_nothing_else_to_beware_of() -> None:
    assert cautions(of({})) == [PLAYBOOK]


def test_what_did_not_end_well_is_counted() -> None:
    lost: Cells = {
        (16, 0.1): [0.51, 0.52, "stopped", "stopped", "stopped"],
        (16, 0.2): [0.6, 0.62, "failed"],
        (16, 0.4): [0.51, 0.52, "diverged", "diverged", "interrupted"],
    }
    assert cautions(of(lost)) == [
        PLAYBOOK,
        STOPPED.format(n=3),
        DIVERGED.format(n=2),
        "1 trial failed and is left out.",
    ]


def test_with_one_seed_the_scores_have_no_interval_but_the_learning_rates_do() -> None:
    found = of(peaked({2**k: 2.0**-k * (1 + k % 2) for k in range(3, 9)}, (0.0,), step=1.0))
    assert math.isfinite(found.exponent.low)
    sentences = cautions(found)
    assert SCATTERED in sentences
    assert UNREPEATED.format(seed="seed") not in sentences


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([0.6], [UNREPEATED.format(seed="seed")]),
        ([0.6, 0.62], []),
        (["diverged", "diverged"], [DIVERGED.format(n=2)]),
    ],
    ids=["one", "two", "no score"],
)
def test_replicates_are_missing_where_no_cell_has_two_scores(
    scores: list[float | str], said: list[str]
) -> None:
    """One cell of two is enough to know the noise; of no score at all nothing is missing."""
    others: list[float | str] = ["diverged"] if isinstance(scores[0], str) else [0.51]
    count = sum(each == "diverged" for each in [*others, *others, *scores])
    said = [DIVERGED.format(n=count)] if count else said
    assert cautions(of({(16, 0.1): others, (16, 0.2): scores, (16, 0.4): others})) == [
        PLAYBOOK,
        *said,
    ]


def test_settings_of_one_seed_are_not_ranked_beside_those_of_several() -> None:
    cells: Cells = {(16, 0.1): [0.51, 0.6], (16, 0.2): [0.6, 0.7], (16, 0.4): [0.75]}
    assert cautions(of(cells))[1:] == [
        "1 of 3 settings has only one seed: beside settings with more they are not ranked, and "
        "cannot be best."
    ]


@pytest.mark.parametrize(
    ("best", "sizes"),
    [({16: 0.1}, " 16"), ({16: 0.1, 32: 0.4}, "s 16 and 32"), ({8: 0.1, 16: 0.4, 32: 0.1, 64: 0.2},
     "s 8, 16 and 32")],
)  # fmt: skip
def test_a_best_at_the_end_of_what_was_tried_is_unbracketed(
    best: dict[int, float], sizes: str
) -> None:
    cells = {
        (b, lr): [0.6 + (lr == best[b]) / 10, 0.62 + (lr == best[b]) / 10]
        for b in best
        for lr in (0.1, 0.2, 0.4)
    }
    said = [PLAYBOOK, UNBRACKETED.format(sizes=sizes)]
    more = [NO_EVALUATIONS] if len(best) > 1 else []  # two have a target in common
    assert cautions(of(cells)) == [*said, *more]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"dataset": "pcam", "code_version": "a"}, []),
        ({"dataset": "synthetic"}, [SYNTHETIC]),
        ({"dataset": ["pcam"] * 5 + ["synthetic"]}, [SYNTHETIC]),
        ({"code_version": list("aabbcc")}, [VERSIONS.format(n=3)]),
        ({"code_version": list("ab") * 3, "dataset": "synthetic"}, [VERSIONS.format(n=2),
         SYNTHETIC]),
    ],
)  # fmt: skip
def test_other_code_and_drawn_images_are_cautioned_about(
    more: dict[str, Any], said: list[str]
) -> None:
    assert cautions(of(INSIDE, **more)) == [PLAYBOOK, *said]


def scattered(lrs: dict[int, list[float]]) -> Analysis:
    """The score rises and falls again over each batch size's bins."""
    cells = {
        (b, lr): [0.9 - 0.01 * (math.log10(lr) + 2) ** 2] for b, each in lrs.items() for lr in each
    }
    return of(cells)


def test_scattered_trials_are_in_bins_and_may_be_too_few() -> None:
    """Of six bins four hold one trial; where a second one joins two of them, half of them do."""
    lrs = {
        16: [0.001234, 0.001789, 0.01345, 0.2345],
        32: [0.001111, 0.001999, 0.01222, 0.1888],
    }
    few = scattered(lrs)
    assert set(few.cells["n"]) == {1}
    assert cautions(few) == [
        PLAYBOOK,
        BINNED,
        TOO_FEW.format(trials=8, alone=8, cells=8),
        UNREPEATED.format(seed="trial"),
        NO_EVALUATIONS,
    ]
    lrs[16] += [0.001288, 0.01299, 0.2222]
    several = scattered(lrs)
    assert sorted(several.cells["n"]) == [1, 1, 1, 1, 1, 2, 2, 2]
    assert cautions(several) == [
        PLAYBOOK,
        BINNED,
        TOO_FEW.format(trials=11, alone=5, cells=8),
        NO_EVALUATIONS,
    ]
    lrs[32] += [0.01333]
    assert cautions(scattered(lrs)) == [PLAYBOOK, BINNED, NO_EVALUATIONS]  # half are not most


def test_the_critical_batch_size_is_cautioned_about_where_there_is_a_target() -> None:
    found = of({(b, lr): s for (_, lr), s in INSIDE.items() for b in (16, 32)})
    assert cautions(found) == [PLAYBOOK, NO_EVALUATIONS]
    assert cautions(replace(found, target=math.nan)) == [PLAYBOOK]
    assert cautions(replace(found, front=replace(found.front, why="of this"))) == [
        PLAYBOOK,
        "Critical batch size: of this.",
    ]
    assert cautions(replace(found, front=replace(found.front, why=""))) == [PLAYBOOK]


def test_a_table_without_the_columns_of_a_study_has_no_caution_of_them() -> None:
    rows = table(INSIDE).drop(columns="seed")
    assert cautions(analyse(rows, metric="val_auroc", mode="max")) == [PLAYBOOK]
