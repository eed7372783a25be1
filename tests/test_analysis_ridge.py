"""The ridge, its noise and its stable rates, on small surfaces written down by hand."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_tables import Cells, table, with_scores
from statsmodels.tools import eval_measures

from search.analysis.best_set import optimism
from search.analysis.leaderboard import ablation, leaderboard
from search.analysis.noise import noise_of
from search.analysis.scaling.collapse import collapse
from search.analysis.scaling.exponent import exponent
from search.analysis.scaling.forms import rival_forms
from search.analysis.scaling.ridge import ridge, ridge_draws, ridge_interval
from search.analysis.surface import surface, usable

NAN = math.nan


def cells_of(cells: Cells) -> pd.DataFrame:
    return surface(table(cells), metric="val_auroc")


def test_usable_are_completed_finite_scores_of_one_configuration() -> None:
    rows = pd.DataFrame(
        {
            "status": ["completed"] * 4 + ["stopped", "diverged"],
            "q": [0.5, math.inf, NAN, 0.6, 0.7, 0.8],
            "begins_from": [None, None, None, "k0", None, None],
        }
    )
    assert usable(rows, metric="q").index.tolist() == [0]
    assert usable(rows.drop(columns="begins_from"), metric="q").index.tolist() == [0, 3]


def test_one_lucky_seed_is_not_the_best_lr_beside_cells_of_several() -> None:
    """Near the edge of stability one of three seeds may get through, with whatever score."""
    cells = cells_of({
        (16, 0.1): [0.70, 0.72], (16, 0.2): [0.80, 0.82], (16, 0.4): [0.95, "diverged"],
        (32, 0.1): [0.70], (32, 0.2): [0.60, 0.62],
    })  # fmt: skip
    best = ridge_interval(cells, mode="max")
    assert best["lr"].tolist() == [0.2, 0.1]  # of 32 only one has several: all are compared
    assert (best["lr_high"] < 0.4).all()


def test_a_cell_counts_how_its_trials_ended() -> None:
    found = surface(
        table({
            (32, 0.2): ["failed", "stopped", "stopped", "diverged", "interrupted"],
            (16, 0.4): [0.5, 0.7, "diverged"],
            (16, 0.1): [0.5],
        }, lr="rate"),
        metric="val_auroc", lr="rate",
    )  # fmt: skip
    names = ["batch_size", "lr", "n", "trials", "diverged", "stopped", "failed"]
    assert found[names].to_numpy().tolist() == [
        [16, 0.1, 1, 1, 0, 0, 0],
        [16, 0.4, 2, 3, 1, 0, 0],
        [32, 0.2, 0, 5, 1, 2, 1],
    ]
    assert found["mean"].tolist() == pytest.approx([0.5, 0.6, NAN], nan_ok=True)
    assert found["std"].tolist() == pytest.approx([NAN, 0.2 / math.sqrt(2), NAN], nan_ok=True)


@pytest.mark.parametrize(
    ("scores", "edge", "lr"),
    [
        ([0.5, 0.9, 0.5], "", 0.2),
        ([0.9, 0.8, 0.5], "low", 0.1),
        ([0.5, 0.8, 0.9], "high", 0.4),
        ([0.5, 0.9, "diverged"], "", 0.2),
        ([0.5, 0.9, "stopped"], "", 0.2),
        ([0.5, 0.9, "failed"], "high", 0.2),  # it was never tried
        (["failed", 0.9, 0.5], "low", 0.2),
        (["failed", 0.9, "failed"], "", 0.2),  # alone it is no edge
    ],
)
def test_a_best_is_on_an_edge_of_what_was_tried(
    scores: Sequence[float | str], edge: str, lr: float
) -> None:
    found = cells_of({(16, rate): [s] for rate, s in zip((0.1, 0.2, 0.4), scores, strict=True)})
    for mode, sign in (("max", 1.0), ("min", -1.0)):
        (row,) = ridge(found.assign(mean=sign * found["mean"]), mode=mode).to_dict("records")
        assert (row["batch_size"], row["lr"], row["edge"]) == (16, lr, edge)
        assert row["mean"] == sign * max(s for s in scores if isinstance(s, float))


@pytest.mark.parametrize(
    ("lrs", "scores"),
    [
        ((0.1, 0.2, 0.4), (0.5, 0.9, 0.6)),
        ((0.1, 0.15, 0.4, 0.9), (0.5, 0.7, 0.9, 0.3)),
        ((0.1, 0.3, 0.4), (0.89, 0.9, 0.2)),
    ],
)
def test_the_best_lr_is_the_vertex_of_a_parabola_in_log_lr(
    lrs: Sequence[float], scores: Sequence[float]
) -> None:
    at = int(np.argmax(scores))
    near = slice(at - 1, at + 2)
    square, slope, _ = np.polyfit(np.log(lrs[near]), scores[near], 2)
    wanted = math.exp(-slope / (2 * square))
    found = cells_of({(16, lr): [s, s] for lr, s in zip(lrs, scores, strict=True)})
    for mode, sign in (("max", 1.0), ("min", -1.0)):
        signed = found.assign(mean=sign * found["mean"])
        assert ridge(signed, mode=mode)["vertex"].tolist() == pytest.approx([wanted])
        # Seeds that do not differ draw the same vertex each time.
        draws = ridge_draws(signed, mode=mode, draws=5)
        assert draws is not None
        assert draws[16] == pytest.approx(np.log([wanted] * 5))


def test_the_vertex_of_an_edge_or_of_two_lrs_is_the_best_itself() -> None:
    found = cells_of({
        **{(16, lr): [s, s] for lr, s in ((0.1, 0.9), (0.2, 0.8), (0.4, 0.5))},
        **{(32, lr): [s, s] for lr, s in ((0.1, 0.8), (0.2, 0.9))},
        **{(64, lr): [s, s] for lr, s in ((0.1, 0.7), (0.2, 0.8), (0.4, 0.9))},
        (128, 0.2): [0.5, 0.5],
        (256, 0.2): ["failed"],
        # A plateau bends nowhere: its best is the first.
        **{(512, lr): [0.5, 0.5] for lr in (0.1, 0.2, 0.4)},
    })  # fmt: skip
    wanted = {16: 0.1, 32: 0.2, 64: 0.4, 128: 0.2, 512: 0.1}
    assert ridge(found, mode="max").set_index("batch_size")["vertex"].to_dict() == wanted
    draws = ridge_draws(found, mode="max", draws=4)
    assert draws is not None
    assert {b: set(each) for b, each in draws.items()} == {
        b: {math.log(lr)} for b, lr in wanted.items()
    }
    table_of = ridge_interval(found, mode="max").set_index("batch_size")
    unknown = {128: math.nan}  # a single lr is no best one
    assert table_of["lr_low"].to_dict() == pytest.approx(wanted | unknown, nan_ok=True)
    assert not table_of["bracketed"].any()


def test_without_seeds_there_is_no_interval_of_a_best_lr() -> None:
    found = cells_of({(16, lr): [s] for lr, s in ((0.1, 0.5), (0.2, 0.9), (0.4, 0.5))})
    assert ridge_draws(found, mode="max") is None
    (row,) = ridge_interval(found, mode="max").to_dict("records")
    assert math.isnan(row["lr_low"])
    assert math.isnan(row["lr_high"])
    assert row["bracketed"]
    assert math.isnan(noise_of(found, mode="max").std)
    assert noise_of(found, mode="max").freedom == 0


@pytest.mark.parametrize(("mode", "sign"), [("max", 1.0), ("min", -1.0)])
def test_noise_is_that_of_the_better_half_rounded_up(mode: str, sign: float) -> None:
    found = pd.DataFrame({
        "mean": sign * np.array([0.5, 0.9, 0.7, 0.95]), "std": [0.5, 0.1, 0.3, NAN],
        "n": [3, 4, 2, 1],
    })  # fmt: skip
    noise = noise_of(with_scores(found), mode=mode)
    wanted = math.sqrt((3 * 0.1**2 + 1 * 0.3**2) / 4)
    assert (noise.std, noise.freedom, noise.seed_std) == (pytest.approx(wanted), 4, 0.0)


@pytest.mark.parametrize(("mode", "sign"), [("max", 1.0), ("min", -1.0)])
@pytest.mark.parametrize("gap", [0.0, 1.0, 3.0])
def test_optimism_is_that_of_two_normals_drawn_together(mode: str, sign: float, gap: float) -> None:
    """Clark 1961: the larger of two exceeds its own truth by theta phi(delta / theta).

    Observed a gap apart, of whose variance noise has a share: the rest is kept.
    """
    std, n = 0.02, 4
    error = std / math.sqrt(n)
    apart = gap * error
    found = pd.DataFrame({
        "batch_size": 16, "lr": [0.1, 0.2, 0.3], "mean": sign * np.array([0.9, 0.9 - apart, NAN]),
        "std": [std, std, NAN], "n": [n, n, 0],
    })  # fmt: skip
    spread = apart**2 / 2
    kept = math.sqrt(max(0.0, 1 - error**2 / spread)) if gap else 0.0
    theta = error * math.sqrt(2)
    wanted = theta * math.exp(-((kept * apart / theta) ** 2) / 2) / math.sqrt(2 * math.pi)
    assert optimism(with_scores(found), mode=mode) == pytest.approx(wanted, rel=0.1)


def test_leaders_are_the_best_means_of_completed_trials() -> None:
    rows = table({(16, 0.1): [0.5, 0.7], (16, 0.2): [0.65], (32, 0.1): [0.1, "stopped"]})
    rows.loc[rows["status"] == "stopped", "val_auroc"] = 0.99
    rows = rows.assign(test_auroc=rows["val_auroc"] / 2, dropout=[None, None, 0.1, 0.1, 0.1])
    by = ["batch_size", "base_lr", "dropout"]
    for mode, order in (("max", [0.65, 0.6]), ("min", [0.1, 0.6])):
        found = leaderboard(rows, by=by, metric="val_auroc", mode=mode, rows=2)
        assert found["mean"].tolist() == pytest.approx(order)
        assert found["test_auroc"].tolist() == pytest.approx([each / 2 for each in order])
    assert "test_auroc" not in leaderboard(
        rows.drop(columns="test_auroc"), by=by, metric="val_auroc", mode="max", rows=2
    )


def test_an_ablations_steps_have_their_own_seeds_and_pairs() -> None:
    rows = [
        ("a", 0, 0.5),
        ("a", 1, 0.7),
        ("b", 0, 0.6),
        ("b", 1, 0.9),
        ("b", 2, 0.9),
        ("c", 2, 0.5),
    ]
    known = pd.DataFrame(rows, columns=["step", "seed", "val_auroc"]).assign(status="completed")
    lost = pd.DataFrame([("a", 2, 0.1)], columns=["step", "seed", "val_auroc"])
    trials = pd.concat([known, lost.assign(status="stopped")])
    found = ablation(
        trials.assign(test_auroc=trials["val_auroc"] / 2), steps=["a", "b", "c", "d"],
        metric="val_auroc",
    )  # fmt: skip
    assert found.index.tolist() == ["a", "b", "c", "d"]
    wanted = {
        "mean": [0.6, 0.8, 0.5, NAN],
        "std": [np.std([0.5, 0.7], ddof=1), np.std([0.6, 0.9, 0.9], ddof=1), NAN, NAN],
        "n": [2, 3, 1, 0],
        "change": [NAN, 0.15, -0.4, NAN],
        "change_std": [NAN, np.std([0.1, 0.2], ddof=1), NAN, NAN],
        "pairs": [0, 2, 1, 0],
        "test": [0.3, 0.4, 0.25, NAN],
    }
    for name, values in wanted.items():
        assert found[name].tolist() == pytest.approx(values, nan_ok=True), name


def test_the_fit_takes_the_weighted_line_through_the_bracketed() -> None:
    """By statsmodels, with the variance of each batch size's redrawn best as its weight."""
    import statsmodels.api as sm

    best = {16: 0.1, 32: 0.25, 64: 0.3, 128: 0.9}
    falls = {16: 0.01, 32: 0.02, 64: 0.04, 128: 0.01}
    rows = [
        (b, lr * 2.0**k, 0.9 - falls[b] * k**2, 0.004, 3, 3, 0, 0, 0)
        for b, lr in best.items()
        for k in (-2, -1, 0, 1, 2)
    ]
    names = ["batch_size", "lr", "mean", "std", "n", "trials", "diverged", "stopped", "failed"]
    found = with_scores(pd.DataFrame(rows, columns=names))
    draws = ridge_draws(found, mode="max")
    assert draws is not None
    x, y = np.log(list(best)), np.log(list(best.values()))
    weights = [1 / draws[b].var() for b in best]
    line = sm.WLS(y, sm.add_constant(x), weights=weights).fit()
    fit = exponent(found, mode="max")
    assert (fit.log_c, fit.value) == pytest.approx(tuple(line.params))
    low, high = line.conf_int(alpha=0.05)[1]
    assert (fit.low, fit.high) == pytest.approx((low, high))  # the points scatter, and widen it
    assert fit.batch_sizes == (16, 32, 64, 128)


def test_forms_are_ranked_by_akaikes_criterion() -> None:
    """Of six batch sizes whose best lr saturates, and is off that by turns."""
    sizes = np.array([4.0, 16, 64, 256, 1024, 4096])
    y = np.log(4 / (1 + 200 / sizes)) + np.array([0.1, -0.1, 0.05, -0.1, 0.1, -0.05])
    rows = [
        (int(b), float(np.exp(top)) * 2.0**k, 0.9 - 0.01 * k**2, NAN, 1, 1, 0, 0, 0)
        for b, top in zip(sizes, y, strict=True)
        for k in (-1, 0, 1)
    ]
    names = ["batch_size", "lr", "mean", "std", "n", "trials", "diverged", "stopped", "failed"]
    made = with_scores(pd.DataFrame(rows, columns=names))
    fit = exponent(made, mode="max")
    found = rival_forms(fit, ridge(made, mode="max")).set_index("form")

    def aicc(left: Any, parameters: int) -> float:
        """By statsmodels, but for what is the same in all forms."""
        n = len(sizes)
        likelihood = -n / 2 * math.log((left**2).mean())
        return float(eval_measures.aicc(likelihood, n, parameters + 1))

    x = np.log(sizes)
    wanted = {f"a={a:g}": aicc(y - a * x - (y - a * x).mean(), 1) for a in (0.0, 0.5, 1.0)}
    wanted["power"] = aicc(y - np.polyval(np.polyfit(x, y, 1), x), 2)
    scales = np.exp(np.linspace(x[0] - 5, x[-1] + 5, 20_001))[:, None]
    for form, shape in (
        ("saturating", -np.log(1 + scales / sizes)),
        ("surge", -np.log((np.sqrt(scales / sizes) + np.sqrt(sizes / scales)) / 2)),
    ):
        left = y - shape
        left = left - left.mean(axis=1, keepdims=True)
        at = (left**2).sum(axis=1).argmin()
        wanted[form] = aicc(left[at], 2)
        if at < len(scales) - 1:  # else the more, the better, and no end is the right one
            assert found.loc[form, "b_noise"] == pytest.approx(scales[at, 0], rel=0.02)
    assert found["aicc"].to_dict() == pytest.approx(wanted, abs=0.02)
    best = min(wanted.values())
    assert found["delta"].to_dict() == pytest.approx(
        {form: value - best for form, value in wanted.items()}, abs=0.02
    )
    assert found["aicc"].is_monotonic_increasing
    assert found["parameters"].to_dict() == {
        **dict.fromkeys(("a=0", "a=0.5", "a=1"), 1),
        **dict.fromkeys(("power", "saturating", "surge"), 2),
    }
    assert found["b_noise"].notna().sum() == 2


@pytest.mark.parametrize(("cells", "is_known"), [(5, True), (4, False)])
def test_five_cells_can_collapse(cells: int, is_known: bool) -> None:
    places = [(16, 0.1), (16, 0.2), (32, 0.1), (32, 0.2), (32, 0.4)][:cells]
    found = collapse(cells_of({at: [0.5 + k**2 / 50] for k, at in enumerate(places)}))
    assert math.isfinite(found.exponent) == is_known
    assert sorted(found.r2_at) == ([pytest.approx(k / 100) for k in range(201)] if is_known else [])
    alone = cells_of({(16, 0.1 * k): [0.5 + k / 100] for k in range(1, 4)})
    assert math.isnan(collapse(alone).r2)
