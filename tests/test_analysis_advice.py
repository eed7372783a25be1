"""Which setting is recommended for which goal, on small tables; and when none is."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_tables import findings_of, table

from search.analysis.advice import ALONE, CHANCE, FLAT, NO_SCORE, Advice, advice
from search.analysis.analysis import Analysis, analyse
from search.analysis.humps.by_model import ByModel, NextTrial
from search.report.advised import advice_lines, advice_numbers, what_was_trained
from search.report.sentences.advice import advice_sentences, rates_sentence

LRS = (0.01, 0.03, 0.1, 0.3, 1.0)


def hump(batch_size: int, top: float, *, at: float, noise: float = 0.001, seeds: int = 4) -> Any:
    """Scores of each lr at one batch size: a parabola in log lr with its top at `at`."""
    rng = np.random.default_rng(batch_size)
    return {
        (batch_size, lr): list(
            top - 0.02 * math.log10(lr / at) ** 2 + noise * rng.normal(size=seeds)
        )
        for lr in LRS
    }


def analysed(*humps: Any, **more: object) -> Analysis:
    cells = {cell: scores for each in humps for cell, scores in each.items()}
    rows = table(cells, **{"pack_size": 1, "device": "a chip"} | more)
    rows["seed"] = rows.groupby(["batch_size", "base_lr"]).cumcount()
    if "train_wall_s" not in rows:
        rows["train_wall_s"] = 6400.0 / rows["batch_size"]
    return analyse(rows, metric="val_auroc", mode="max")


def lines(analysis: Analysis, **about: object) -> list[str]:
    return advice_sentences(advice(analysis), analysis, about)


EQUAL = (hump(16, 0.9, at=0.03), hump(64, 0.9001, at=0.1), hump(256, 0.8997, at=0.3))


def answer(
    sizes: tuple[int, ...], lrs: tuple[float, ...], exponent: tuple[float, float, float]
) -> ByModel:
    """What a model says of these batch sizes: intervals are half an octave to either side."""
    rows = pd.DataFrame({"batch_size": sizes, "lr": lrs, "at_edge": False, "trials": 4})
    rows = rows.assign(low=rows["lr"] / 2**0.5, high=rows["lr"] * 2**0.5)
    return ByModel(
        of="",
        rows=rows,
        exponent=exponent,
        noise_std=0.01,
        num_best=3,
        num_cells=16,
        next_trial=NextTrial(batch_size=16, lr=0.02, gain=0.0),
    )


def test_batch_sizes_as_good_as_the_best_are_named() -> None:
    def score_line(*humps: Any) -> str:
        return lines(analysed(*humps))[1]

    others = sorted({16, 64, 256} - {advice(analysed(*EQUAL)).settings[0].batch_size})
    assert score_line(*EQUAL).endswith(
        f"; batch sizes {others[0]} and {others[1]} are not visibly worse."
    )
    worse = hump(16, 0.8, at=0.03)
    assert re.search(
        r"; batch size (64|256) is not visibly worse\.$", score_line(worse, *EQUAL[1:])
    )
    alone = score_line(worse, hump(64, 0.7, at=0.1), EQUAL[2])
    assert alone.endswith("surely (95 %) better than that of every other batch size.")
    unrepeated = score_line(worse, hump(64, 0.7, at=0.1, seeds=1), EQUAL[2])
    assert unrepeated.endswith("better than that of every other batch size with repeats.")


def test_a_batch_size_with_one_rate_has_no_best_one() -> None:
    cells = {(32, 0.3): [0.82, 0.83], (64, 0.3): [0.83, 0.82]}
    analysis = analysed(cells)
    assert not analysis.ridge["bracketed"].any()
    assert analysis.ridge["lr_low"].isna().all()
    assert lines(analysis)[0] == (
        "Use batch size 32 with a peak learning rate of 0.3. No other rate was tried there."
    )


def test_of_equal_batch_sizes_each_goal_has_its_own() -> None:
    analysis = analysed(*EQUAL)
    given = advice(analysis)
    first, *others = given.settings
    assert given.equal == (16, 64, 256)
    assert "score" in first.goals
    assert first.mean == pytest.approx(analysis.cells["mean"].max())
    fastest = next(s for s in given.settings if "time" in s.goals)
    assert fastest.batch_size == 256  # 25 s a trial, where 16 takes 400
    assert "largest" in fastest.goals
    assert fastest.seconds == 25.0
    assert len({s.batch_size for s in given.settings}) == len(given.settings) == 1 + len(others)
    c, power = given.rule
    assert power == pytest.approx(analysis.exponent.value)
    assert c * 64**power == pytest.approx(0.1, rel=0.3)
    for setting in given.settings:
        assert setting.low < setting.lr < setting.high
        assert setting.low < {16: 0.03, 64: 0.1, 256: 0.3}[setting.batch_size] < setting.high


def test_a_batch_size_that_is_worse_is_not_recommended() -> None:
    analysis = analysed(hump(16, 0.93, at=0.03), hump(64, 0.9, at=0.1), hump(256, 0.88, at=0.3))
    given = advice(analysis)
    assert given.equal == (16,)
    assert [s.batch_size for s in given.settings] == [16]
    assert set(given.settings[0].goals) == {"score", "time", "largest"}
    first, second, *_ = lines(analysis)
    assert first.startswith("Use batch size 16 with a peak learning rate of 0.0")
    assert second.endswith(", and surely (95 %) better than that of every other batch size.")


def test_without_repeats_the_best_score_is_the_only_goal() -> None:
    analysis = analysed(hump(16, 0.9, at=0.03, seeds=1), hump(64, 0.9, at=0.1, seeds=1))
    (setting,) = advice(analysis).settings
    assert setting.goals == ("score",)
    assert lines(analysis)[1].endswith("; without repeats, how sure that is cannot be said.")
    repeated = lines(analysed(hump(16, 0.9, at=0.03)))
    assert repeated[1].startswith("That is the best mean val_auroc, 0.")
    assert "repeats" not in repeated[1]


def test_the_rule_leaves_out_batch_sizes_whose_best_rate_is_at_the_edge() -> None:
    analysis = analysed(*EQUAL)
    model = answer((16, 64, 256, 1024), (0.01, 0.04, 0.16, 0.2), exponent=(1.0, 0.8, 1.2))
    model.rows["at_edge"] = [False, False, False, True]
    given = advice(analysis, model)
    assert given.rule == pytest.approx((0.01 / 16, 1.0))
    assert (given.rule_from, given.rule_to) == (16, 256)
    text = "\n".join(advice_sentences(given, analysis, {}))
    assert "from 16 to 256: peak learning rate = 0.00063 x B^a with a = 1.00 [0.80, 1.20]." in text
    at_edge = replace(model, rows=model.rows.assign(at_edge=[True, True, True, False]))
    assert math.isnan(advice(analysis, at_edge).rule[0])


def test_time_is_no_goal_where_it_cannot_be_compared() -> None:
    for name in ("device", "pack_size"):
        analysis = analysed(*EQUAL)
        differs = analysis.trials.assign(
            **{name: np.where(analysis.trials["batch_size"] > 64, 1, 2)}
        )
        analysis = analyse(differs, metric="val_auroc", mode="max")
        given = advice(analysis)
        assert not any("time" in s.goals for s in given.settings)
        assert all(math.isnan(s.seconds) for s in given.settings)
        assert not any("of the time" in line for line in lines(analysis))


def test_a_little_less_time_is_no_reason_for_another_batch_size() -> None:
    analysis = analysed(*EQUAL, train_wall_s=100.0)
    first = advice(analysis).settings[0]
    assert "time" in first.goals


def test_gpu_time_is_a_goal_of_its_own_where_gpus_differ() -> None:
    analysis = analysed(*EQUAL)
    gpus = analysis.trials.assign(
        num_gpus=analysis.trials["batch_size"].map({16: 1, 64: 1, 256: 8})
    )
    given = advice(analyse(gpus, metric="val_auroc", mode="max"))
    goals = {s.batch_size: set(s.goals) for s in given.settings}
    assert "time" in goals[256]  # 25 s on eight GPUs are 200 GPU-seconds, 100 s on one are 100
    assert "cost" in goals[64]


def test_the_best_rate_at_the_edge_is_named_and_asks_for_more() -> None:
    analysis = analysed(hump(16, 0.93, at=0.002), hump(64, 0.9, at=0.1), hump(256, 0.88, at=0.3))
    given = advice(analysis)
    assert given.at_edge
    assert given.settings[0].lr == 0.01
    assert math.isnan(given.settings[0].low)
    assert given.more[0].kind == "widen"
    about = {"space_file": "spaces/s.py", "explore": {"kind": "Grid", "widen": 1}}
    text = "\n".join(lines(analysis, **about))
    assert "a better one may lie outside" in text
    assert "python -m search.run spaces/s.py --set explore.widen=2" in text


def test_more_seeds_are_asked_for_with_the_studys_own_command() -> None:
    analysis = analysed(*(hump(b, 0.9, at=0.1, noise=0.006) for b in (16, 64, 256)))
    given = advice(analysis)
    (more,) = (step for step in given.more if step.kind == "seeds")
    assert more.seeds > 4
    assert more.trials == (more.seeds - 4) * 15
    assert more.seconds == pytest.approx(more.trials * analysis.trials["train_wall_s"].mean())
    about = {"space_file": "spaces/s.py", "settings": ["seeds=4", "epochs=3"], "preview": True}
    command = "python -m search.run spaces/s.py --preview{} --set epochs=3 --set seeds={}"
    assert lines(analysis, **about)[-1].endswith(command.format("", more.seeds))
    assert "search.run" not in "".join(lines(analysis))  # of a table there is none
    of_surfaces = advice(replace(analysis, surfaces=3)).more
    assert [step.trials for step in of_surfaces] == [3 * step.trials for step in given.more]
    about |= {"name": "made", "data_folder": "/data/a b"}
    for folder, more_flags in (
        (str(Path("results/made").absolute()), " --data '/data/a b'"),
        ("/else where/made", " --data '/data/a b' --out '/else where'"),
    ):
        (*_, last) = advice_sentences(given, analysis, about, folder)
        assert last.endswith(command.format(more_flags, more.seeds))
    (*_, last) = advice_sentences(given, analysis, about, "/else where/moved")
    assert "search.run" not in last  # it would train everything again, elsewhere


def test_base_and_peak_rate_are_both_given_where_they_differ() -> None:
    analysis = analysed(*EQUAL, lr_scaling="linear", reference_batch_size=256)
    setting = advice(analysis).settings[0]
    assert setting.lr == pytest.approx(setting.grid_lr * setting.batch_size / 256)
    assert setting.batch_size < 256
    assert f"(base_lr {setting.grid_lr:.2g})" in "".join(lines(analysis))
    assert rates_sentence(analysis).endswith("peak = base_lr x B / 256.")
    alike = analysed(*EQUAL, lr_scaling="constant", reference_batch_size=256)
    assert "(base_lr" not in "".join(lines(alike))
    assert rates_sentence(alike).endswith("is base_lr at every batch size.")
    mixed = analysed(*EQUAL, lr_scaling="linear", reference_batch_size=256)
    mixed.trials.loc[0, "lr_scaling"] = "sqrt"
    assert rates_sentence(mixed).endswith("before the batch-size rule.")


@pytest.mark.parametrize(
    ("cells", "why", "words"),
    [
        ({(16, 0.1): ["diverged"], (32, 0.1): ["diverged"]}, NO_SCORE, "no trial has a score yet"),
        ({(16, 0.1): [0.5, 0.49], (32, 0.1): [0.5, 0.5]}, CHANCE, "no trial beat chance"),
        ({(16, 0.1): [0.9], (32, 0.1): ["diverged"]}, ALONE, "only one setting has a score"),
    ],
)
def test_when_nothing_can_be_recommended_the_reason_is(cells: Any, why: str, words: str) -> None:
    analysis = analyse(table(cells), metric="val_auroc", mode="max")
    given = advice(analysis)
    assert given == Advice(why=why)
    (line,) = advice_sentences(given, analysis, {})
    assert line.startswith("Nothing can be recommended: ")
    assert words in line


def test_scores_like_noise_recommend_nothing_but_more_seeds() -> None:
    rng = np.random.default_rng(3)
    cells = {(b, lr): [float(rng.normal(0.8, 0.01))] for b in (16, 32, 64, 128) for lr in LRS}
    analysis = analyse(table(cells, train_wall_s=10.0), metric="val_auroc", mode="max")
    given = advice(analysis)
    assert given.why == FLAT
    assert [(step.kind, step.seeds, step.trials) for step in given.more] == [("seeds", 3, 40)]
    text = advice_sentences(given, analysis, {"space_file": "s.py"})
    assert "look like noise" in text[0]
    assert text[1].endswith(
        "about 6 m 40 s one after the other: python -m search.run s.py --set seeds=3"
    )


def test_where_lower_is_better_the_lowest_is_recommended() -> None:
    humps = {c: [1 - v for v in values] for h in EQUAL for c, values in h.items()}
    rows = table(humps)
    rows["seed"] = rows.groupby(["batch_size", "base_lr"]).cumcount()
    rows = rows.rename(columns={"val_auroc": "val_loss"})
    analysis = analyse(rows, metric="val_loss", mode="min")
    assert advice(analysis).settings[0].mean == pytest.approx(analysis.cells["mean"].min())


def test_the_header_says_what_was_trained() -> None:
    cells = {(16, 0.1): [0.9], (32, 0.1): [0.8]}
    more = {
        "dataset": "pcam",
        "model": "vgg16",
        "train_images": 2048,
        "image_size": 48,
        "epochs": 5,
    }
    findings = findings_of(cells, table(cells, **more, device="a chip"))
    words = (
        "PatchCamelyon, 2,048 training images of 48 px, network vgg16, 5 epochs, 2 trials, 2 seeds"
    )
    assert what_was_trained(findings) == f"{words}, on a chip"
    whole = table(cells, **more | {"train_images": None, "image_size": None})
    assert "all training images, network" in what_was_trained(findings_of(cells, whole))
    several = table(cells, **more)
    several["model"] = ["vgg16", "resnet18"]
    assert "networks resnet18 and vgg16" in what_was_trained(findings_of(cells, several))
    assert what_was_trained(findings_of(cells, table(cells))) == "2 trials, 2 seeds"


def test_scripts_get_what_readers_get() -> None:
    cells = {cell: scores for each in EQUAL for cell, scores in each.items()}
    findings = findings_of(cells, table(cells))
    numbers = advice_numbers(findings)
    assert numbers["sentences"] == advice_lines(findings)
    assert numbers["settings"][0]["goals"][0] == "score"
    assert numbers["settings"][0]["seconds"] is None  # the table has no times


def test_of_runs_that_differ_in_more_the_rates_are_recommended_and_no_batch_size() -> None:
    """The column is taken in by the model; of batch size 16 the best rate is at the edge."""
    cells = {cell: scores for each in EQUAL for cell, scores in each.items()}
    more: dict[str, Any] = {"about": {"table": "t.csv"}, "fields": ["batch_size", "lr", "momentum"]}
    without_model = findings_of(cells, table(cells), **more)
    assert advice_lines(without_model) == [
        "Nothing can be recommended: the runs differ in momentum as well, and they do not tell a "
        "best learning rate inside of what was tried."
    ]
    model = answer((16, 64, 256), (0.01, 0.1, 0.2), exponent=(0.5, 0.4, 0.6))
    model.rows["at_edge"] = [True, False, False]
    drawn = replace(without_model, by_model=[model])
    assert advice_lines(drawn)[:3] == [
        "Use a peak learning rate of 0.1 [0.071, 0.14] at batch size 64 and 0.2 [0.14, 0.28] at "
        "batch size 256.",
        "At other batch sizes from 64 to 256: peak learning rate = 0.013 x B^a with a = 0.50 "
        "[0.40, 0.60].",
        "These rates are for the momentum of the best tenth of the runs (medians). As the runs "
        "differ in these as well, no batch size is recommended.",
    ]
    numbers = advice_numbers(drawn)
    assert [setting["batch_size"] for setting in numbers["settings"]] == [64, 256]
    assert (numbers["beside"], numbers["settings"][0]["mean"]) == (["momentum"], None)
