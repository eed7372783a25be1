"""The tables of a report: their captions, headings and figures, word for word."""

import html
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_tables import Cells, findings_of, table
from made_tables import analysed as of

from search.analysis.analysis import analyse
from search.analysis.scaling.exponent import EDGE_WITHIN_NOISE, Exponent
from search.report import sections
from search.report.findings import Findings, conclusions_of, numbers
from search.report.markup import cell_text

NAN = math.nan
Table = tuple[str, list[str], list[list[str]]]
LOWER_BOUND = (
    "The best score so far, when every batch size had spent the same. A longer schedule had not "
    "decayed yet at that point, so its score is a lower bound."
)
CELLS: Cells = {
    (b, lr): [0.5 + b / 1000, 0.52 + b / 1000 + (b == 32) * lr]
    for b in (16, 32)
    for lr in (0.1, 0.2)
}


def read(part: str) -> list[Table]:
    """Each table of some HTML: caption, headings and rows."""
    found = []
    for one in re.findall(r"<table>.*?</table>", part, re.DOTALL):
        (caption,) = re.findall(r"<caption>(.*?)</caption>", one)
        head = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', one)
        rows = [
            [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
            for row in re.findall(r"<tr[^>]*>(.*?)</tr>", one.partition("<tbody>")[2])
        ]
        found.append((html.unescape(caption), [html.unescape(each) for each in head], rows))
    return found


def paragraphs(part: str) -> list[str]:
    return [html.unescape(each) for each in re.findall(r"<p[^>]*>(.*?)</p>", part)]


def findings(trials: pd.DataFrame, **more: Any) -> Findings:
    return findings_of(CELLS, trials, **more)


def exponent(value: float = NAN, low: float = NAN, high: float = NAN, **more: Any) -> Exponent:
    known: dict[str, Any] = {"log_c": 0.0, "batch_sizes": (16, 64), "left_out": {}}
    return Exponent(value=value, low=low, high=high, **known | more)


def test_surfaces_are_compared_by_their_best_cell() -> None:
    first = replace(of(CELLS), of={"optimizer": "adam"}, exponent=exponent(1.234, 0.9, 1.5))
    shares = replace(first.interaction, share_interaction=0.256, p_value=0.012345)
    first = replace(first, interaction=shares)
    second = replace(of(CELLS, mode="min"), of={"optimizer": "sgd"}, exponent=exponent(0.5))
    second = replace(second, interaction=replace(shares, share_interaction=NAN, p_value=NAN))
    nothing = replace(of({(16, 0.1): ["failed"]}), of={"optimizer": "lamb"})
    (caption, head, rows), by_batch_size = read(
        sections.groups_table(findings(table({}), analyses=[first, second, nothing]))
    )
    assert caption == "Surfaces, best first"
    assert head == [
        *("surface", "best val_auroc", "at batch size", "and base_lr", "n", "exponent [95 %]"),
        *("interaction's share", "p"),
    ]
    best = (0.532 + 0.552 + 0.2) / 2
    assert rows == [
        ["optimizer=adam", f"{best:.4g}", "32", "0.2", "2", "1.23 [0.90, 1.50]", "26%", "0.01235"],
        ["optimizer=sgd", "0.526", "16", "0.1", "2", "0.50", "-", "-"],
        ["optimizer=lamb", "-", "-", "-", "-", "-", "-", "-"],
    ]
    assert by_batch_size[0].startswith("Best mean val_auroc by batch size, each at its own best")
    assert by_batch_size[1] == ["surface", "batch 16", "batch 32"]
    assert [row[0] for row in by_batch_size[2]] == [row[0] for row in rows]
    assert by_batch_size[2][0][2] == f"{best:.4g}"
    assert by_batch_size[2][1][1] == "0.526"
    assert by_batch_size[2][2][1:] == ["-", "-"]
    assert sections.groups_table(findings(table({}))) == ""


def test_all_cells_are_listed_best_first() -> None:
    scaled = {"lr_scaling": "linear", "reference_batch_size": 16}
    for more, mode in (({}, "max"), (scaled, "min")):
        found = of(CELLS, mode=mode, **more)
        part = sections.surface_table(found)
        ((caption, head, rows),) = read(part)
        assert "<summary>The numbers of all settings</summary>" in part
        assert caption == "val_auroc of all settings, by mean"
        assert head == [
            "batch size", *(["base_lr"] if more else []), "peak lr", "mean", "std", "n",
            "95 % from", "to", "collapsed", "diverged", "stopped", "failed",
        ]  # fmt: skip
        means = [float(row[3 if more else 2]) for row in rows]
        assert means == sorted(means, reverse=mode == "max")
        if more:
            row = next(row for row in rows if row[:2] == ["32", "0.2"])
            assert row[2] == "0.4"  # twice the reference batch, twice the rate
        marked = re.findall(r'<tr class="best"', part)
        assert len(marked) == len(found.best_set)


def test_the_ridge_has_its_intervals() -> None:
    cells = {(16, lr): [s, s] for lr, s in ((0.1, 0.5), (0.2, 0.9), (0.4, 0.5))}
    ((caption, head, rows),) = read(sections.ridge_table(of(cells)))
    assert caption == "Best learning rate of each batch size"
    assert head == [
        *("batch size", "best peak lr", "95 % from", "to", "bracketed", "best peak lr tried"),
        "its val_auroc",
    ]
    beside = 2**0.2  # a fifth of a step
    low, high = (cell_text(0.2 * factor) for factor in (1 / beside, beside))
    assert rows == [["16", "0.2", low, high, "yes", "0.2", "0.9"]]
    (edge,) = read(sections.ridge_table(of({(16, 0.1): [0.5], (16, 0.2): [0.6]})))
    assert edge[2] == [["16", "0.2", "-", "-", "no", "0.2", "0.6"]]


@pytest.mark.parametrize(
    ("interval", "span", "verdicts"),
    [
        ((0.75, 0.5, 0.9), "0.75 [0.50, 0.90]", ["rejected", "compatible", "rejected"]),
        ((0.2, -0.1, 0.4), "0.20 [-0.10, 0.40]", ["compatible", "rejected", "rejected"]),
        ((0.75, NAN, NAN), "0.75", ["unknown"] * 3),
    ],
)
def test_each_rule_has_its_verdict(
    interval: tuple[float, float, float], span: str, verdicts: list[str]
) -> None:
    forms = pd.DataFrame(
        {"form": ["a=0.5", "power", "a=0", "a=1", "surge"], "parameters": 1, "delta": range(5)}
    )
    left = {8: EDGE_WITHIN_NOISE, 512: "of this"}
    found = replace(of(CELLS), exponent=exponent(*interval, left_out=left), forms=forms)
    rules, left_out, rivals = read(sections.rules_table(found))
    words = ["a constant rate", "square-root scaling", "linear scaling"]
    assert rules == (
        f"The exponent is {span}", ["rule", "verdict"],
        [list(each) for each in zip(words, verdicts, strict=True)],
    )  # fmt: skip
    assert left_out == (
        "Batch sizes left out",
        ["batch size", "why the exponent does not include it"],
        [["8", "the noise allows a best lr at the edge of the grid"], ["512", "of this"]],
    )
    assert rivals[:2] == (
        "Forms fitted to the best lr against batch size",
        ["form", "parameters", "AICc above the best"],
    )
    names = ["square root", "free power", "constant", "linear", "surge"]
    assert rivals[2] == [[name, "1", str(at)] for at, name in enumerate(names)]
    assert sections.rules_table(of({})) == ""


def test_the_interactions_shares_tests_and_ranks_are_told() -> None:
    found = of(CELLS)
    mixed = replace(
        found.interaction, share_batch_size=0.1234, share_lr=0.5, share_interaction=0.3766,
        p_value=0.02, p_flat=0.0345678, f=4.56789, replicates=2, left_out=1, why="",
    )  # fmt: skip
    found = replace(found, interaction=mixed, spearman={0.2: 0.5, 0.1: -1.0, 0.3: NAN})
    part = sections.interaction_table(found)
    shares, test, ranks = read(part)
    assert shares == (
        "Variance between settings",
        ["part", "share"],
        [["batch size", "12.3%"], ["base_lr", "50.0%"], ["their interaction", "37.7%"]],
    )
    assert test == (
        "Test of the interaction",
        ["", ""],
        [
            ["p of the interaction (permutations)", "0.02"],
            ["p of any difference (permutations)", "0.03457"],
            ["F", "4.568"],
            ["batch sizes used", "16, 32"],
            ["learning rates used", "0.1, 0.2"],
            ["scored settings left out", "1"],
            ["fewest seeds of a setting", "2"],
        ],
    )
    assert ranks == (
        "Rank correlation of batch size and val_auroc",
        ["base_lr", "Spearman's rho"],
        [["0.1", "-1.00"], ["0.2", "+0.50"]],
    )
    assert paragraphs(part) == []
    untested = replace(mixed, p_value=NAN, p_flat=NAN, f=NAN, left_out=0, why="of this")
    part = sections.interaction_table(replace(found, interaction=untested, spearman={}))
    assert [row[0] for row in read(part)[1][2]] == [
        *("batch sizes used", "learning rates used", "fewest seeds of a setting"),
    ]
    assert paragraphs(part) == ["What is unknown, and why: of this."]
    unknown = replace(untested, share_interaction=NAN)
    part = sections.interaction_table(replace(found, interaction=unknown, spearman={}))
    assert read(part) == []
    assert paragraphs(part) == ["What is unknown, and why: of this."]


def test_equal_costs_stand_side_by_side() -> None:
    def one(scores: dict[int, float], spent: float) -> pd.DataFrame:
        rows = [(b, 0.1 * b, score, 2) for b, score in scores.items()]
        return pd.DataFrame(rows, columns=["batch_size", "lr", "mean", "n"]).assign(spent=spent)

    equal = {
        "examples_seen": one({32: 0.6, 16: 0.5}, 25600.0),
        "updates": one({16: 0.55}, 40.0),
        "train_s": one({16: 0.4, 32: 0.45}, 12.34567),
    }
    part = sections.equal_table(replace(of(CELLS), equal=equal))
    assert read(part) == [
        (
            "Best mean val_auroc of each batch size at equal cost",
            [
                "batch size", "at 25,600 images", "at peak lr", "at 40 updates", "at peak lr",
                "at 12.35 seconds", "at peak lr",
            ],
            [
                ["16", "0.5", "1.6", "0.55", "1.6", "0.4", "1.6"],
                ["32", "0.6", "3.2", "-", "-", "0.45", "3.2"],
            ],
        )
    ]  # fmt: skip
    assert paragraphs(part) == [LOWER_BOUND]
    assert sections.equal_table(of(CELLS)) == ""
    (alone,) = read(sections.equal_table(replace(of(CELLS), equal={"updates": equal["updates"]})))
    assert alone[1] == ["batch size", "at 40 updates", "at peak lr"]


def test_a_targets_cost_is_in_whole_updates_and_images() -> None:
    needed = pd.DataFrame(
        [(16, 0.1, 100.6, 25600.4, 12.345, 3, 0.1)],
        columns=["batch_size", "lr", "updates", "examples_seen", "train_s", "n", "spread"],
    )
    found = replace(of(CELLS), needed=needed, target=0.87654)
    assert read(sections.target_table(found)) == [
        (
            "To reach val_auroc 0.8765",
            ["batch size", "peak lr", "updates", "images", "seconds", "seeds"],
            [["16", "0.1", "101", "25,600", "12.3", "3"]],
        )
    ]


def test_noise_scales_are_in_images() -> None:
    scales = pd.DataFrame(
        [(16, 123.456, 1.5, 963.0, 3)], columns=["batch_size", "noise_scale", "least", "most", "n"]
    )
    assert read(sections.noise_table(replace(of(CELLS), noise_scales=scales))) == [
        (
            "Gradient noise scale",
            ["batch size", "median noise scale (images)", "smallest", "largest", "trials"],
            [["16", "123.5", "1.5", "963", "3"]],
        )
    ]


@pytest.mark.parametrize(
    ("seconds", "gpus", "devices", "said"),
    [
        (3600.0, 0.5, ["H200", "A100"], "3.001 hours, 1.5 GPU-hours on A100, H200"),
        (600.0, 0.0, ["cpu"], "30.03 minutes on cpu"),
        (1199.3, 0.0, [None], "1 hours"),  # two seconds are those of the third
        (1199.0, None, [None], "59.98 minutes"),
    ],
)
def test_the_cost_of_all_trials_is_their_time_together(
    seconds: float, gpus: float | None, devices: list[str | None], said: str
) -> None:
    trials = table({(16, 0.1): [0.5, 0.6, "failed"]})
    times = [seconds, seconds, seconds + 2.1]
    trials = trials.assign(
        train_wall_s=times, num_gpus=gpus, device=[*devices, devices[0], None][:3],
        images_per_s=[100.0, 300.0, 900.0], peak_memory_gib=[1.0, 2.5, 9.0], noise_scale=1.0,
        trial_key=["a", "b", "c"],
    )  # fmt: skip
    trials["num_gpus"] = trials["num_gpus"].astype(float)
    found = analyse(trials, metric="val_auroc", mode="max")
    part = sections.cost_table(findings(trials, analyses=[found]))
    assert paragraphs(part) == [f"All 3 trials together trained for {said}."]
    ((caption, head, rows),) = read(part)
    assert caption == "Medians"
    assert head == ["batch size", "images/s", "seconds per trial", "peak memory (GiB)", "trials"]
    median = f"{seconds:,.0f}" if seconds == round(seconds) else f"{seconds:.4g}"
    assert rows == [["16", "200", median, "2.5", "2"]]  # of those that completed
    untimed = trials.assign(train_wall_s=np.nan)
    assert paragraphs(sections.cost_table(findings(untimed, analyses=[found]))) == []


def test_steps_and_their_changes_are_told() -> None:
    steps = pd.DataFrame(
        [(0.5, 0.1, 2, NAN, NAN, 0, 0.45), (0.61234, NAN, 1, 0.11234, NAN, 1, 0.5)],
        columns=["mean", "std", "n", "change", "change_std", "pairs", "test"],
        index=["a", "b"],
    )
    part = sections.ablation_tables(findings(table({}), steps={"lr=1": steps, "": steps}))
    heading = ["step", "mean val_auroc", "std", "seeds", "change", "std of change", "test"]
    rows = [
        ["a", "0.5", "0.1", "2", "-", "-", "0.45"],
        ["b", "0.6123", "-", "1", "+0.1123", "-", "0.5"],
    ]
    assert read(part) == [("Step by step lr=1", heading, rows), ("Step by step", heading, rows)]
    assert paragraphs(part) == ["Change: from the previous step, over seeds that both have."]
    assert sections.ablation_tables(findings(table({}))) == ""


def test_the_best_configurations_are_ranked() -> None:
    leaders = pd.DataFrame(
        [(16, 0.1, 0.9, 0.01, 3, 0.85, 0.88, 0.92), (32, 0.2, 0.8, NAN, 1, 0.75, NAN, NAN)],
        columns=["batch_size", "base_lr", "mean", "std", "n", "test_auroc", "low", "high"],
    )
    assert read(sections.leaders_table(findings(table({}), leaders=leaders))) == [
        (
            "Best configurations",
            [
                "", "batch_size", "base_lr", "mean val_auroc", "std", "n", "95 % from", "to",
                "mean test_auroc",
            ],
            [
                ["1", "16", "0.1", "0.9", "0.01", "3", "0.88", "0.92", "0.85"],
                ["2", "32", "0.2", "0.8", "-", "1", "-", "-", "0.75"],
            ],
        )
    ]  # fmt: skip
    own = leaders.rename(columns={"test_auroc": "q"})  # a metric that has no twin comes twice
    (shown,) = read(sections.leaders_table(findings(table({}), leaders=own, metric="q")))
    assert shown[1] == [*("", "batch_size", "base_lr", "mean q", "std", "n", "95 % from", "to")]


def test_troubles_are_counted_and_reasons_told_once() -> None:
    trials = table({(16, 0.1): [0.6, "failed"], (32, 0.4): ["diverged", "diverged", "failed"]})
    told = [None, "boom (traceback in a)", "NaN", "NaN", "boom (traceback in b)"]
    found = analyse(trials, metric="val_auroc", mode="max")
    limits = pd.DataFrame([(16, 0.1, 0.4), (32, math.nan, 0.4)], columns=[*found.stable])
    found = replace(found, stable=limits)
    part = sections.troubles(findings(trials.assign(reason=told), analyses=[found]))
    ended, stable, reasons = read(part)
    assert ended == (
        "How the trials ended",
        ["batch size", "completed", "diverged", "failed"],
        [["16", "1", "0", "1"], ["32", "0", "2", "1"]],
    )
    assert stable == (
        "Largest peak lr with stable training",
        ["batch size", "stable up to", "diverges at"],
        [["16", "0.1", "0.4"], ["32", "-", "0.4"]],
    )
    assert reasons == (
        "The first reasons",
        ["batch size", "base_lr", "seed", "status", "reason"],
        [
            ["16", "0.1", "1", "failed", "boom (traceback in a)"],
            ["32", "0.4", "2", "diverged", "NaN"],
        ],
    )
    whole = table(CELLS)
    (only,) = read(sections.troubles(findings(whole)))
    assert only[0] == "How the trials ended"
    assert sections.troubles(findings(whole.iloc[:0])) == ""


def test_how_it_was_made_is_told_of_what_is_known() -> None:
    about = {
        "table": "own.csv", "columns": {"lr": "rate"}, "data_fingerprint": "f1", "preview": True,
        "explore": "Grid()", "stop": "Asha()",
        "vary": {"lr": {"grid_search": [0.1, 12345]}, "x": "loguniform"},
        "space_file": "a.py", "space_sha256": "0f", "settings": ["a=1", "b=2"], "commit": "c0",
        "versions": {"python": "3"}, "hardware": {"GPU": 2}, "base": {"epochs": 5},
    }  # fmt: skip
    trials = table({(16, 0.1): [0.5, 0.6]}).assign(
        dataset=["pcam", "digits"],
        device=["cpu", None],
        ended_at=pd.to_datetime(["2026-01-02 03:04", "2026-01-03 05:06"], utc=True),
    )
    part = sections.provenance(findings(trials, about=about))
    ((caption, _, rows),) = read(part)
    assert caption == "How it was made"
    assert rows == [
        ["table", "own.csv"],
        ["columns", "lr is rate"],
        ["dataset", "digits, pcam"],
        ["data fingerprint", "f1"],
        ["preview", "yes: small network, few images, few epochs"],
        ["metric", "val_auroc, max is best"],
        ["explored by", "Grid()"],
        ["stopped by", "Asha()"],
        ["varied", "lr: 0.1 and 12345; x: loguniform"],
        ["seeds", "0, 1"],
        ["space file", "a.py"],
        ["its SHA-256", "0f"],
        ["settings", "a=1 b=2"],
        ["commit", "c0"],
        ["versions", "python 3"],
        ["hardware", "2 GPU"],
        ["device", "cpu"],
        ["trained", "2026-01-02 03:04 to 2026-01-03 05:06 UTC"],
    ]
    assert "<summary>The study&#x27;s base trial</summary><pre>{\n &quot;epochs&quot;: 5\n}" in part
    bare = pd.DataFrame({"batch_size": [16]})
    part = sections.provenance(findings(bare, about={"stop": "None"}, mode="min"))
    assert read(part)[0][2] == [["metric", "val_auroc, min is best"]]
    assert "details" not in part


def test_the_rungs_of_a_stopper_have_a_row_a_batch_size() -> None:
    rungs = pd.DataFrame(
        [
            (1, 12345, 3.0, 16.0, 40, 25, 12, 0.912, 0.70, 0.98, 1, 99, False),
            (1, 12345, 3.0, 32.0, 59, 50, 9, 0.8, NAN, NAN, 40, 99, True),
            (1, 12345, 3.0, NAN, 99, 75, 21, 0.905, 0.77, 0.96, 1, 99, False),
            (2, 37035, NAN, 64.0, 3, 3, 0, NAN, NAN, NAN, NAN, 0, False),
        ],
        columns=[
            *("rung", "images", "epoch", "batch_size", "reached", "stopped", "n", "rho", "low"),
            *("high", "best_place", "of", "best_below"),
        ],
    )
    part = sections.stopping_table(findings(table({}), stopping=rungs))
    assert read(part) == [
        (
            "Order at each rung against the final order by val_auroc",
            [
                "at", "batch size", "trials there", "stopped", "finished", "Spearman's rho",
                "95 % from", "to", "place of the best finisher",
            ],
            [
                ["epoch 3", "16", "40", "25", "12", "0.91", "0.7", "0.98", "1 of 99"],
                ["epoch 3", "32", "59", "50", "9", "0.8", "-", "-", "40 of 99, below the cut"],
                ["epoch 3", "all", "99", "75", "21", "0.91", "0.77", "0.96", "1 of 99"],
                ["37,035 images", "64", "3", "3", "0", "-", "-", "-", "-"],
            ],
        )
    ]  # fmt: skip
    assert paragraphs(part) == [
        "Rank correlation of the scores at the rung with the final ones. A stopped trial has no "
        "final score, so it is among the trials that finished: these were the better ones there, "
        "and among all trials it would usually be higher. Below the cut: by all trials that came "
        "there, the trial that finished best would have been stopped."
    ]
    assert sections.stopping_table(findings(table({}))) == ""


def test_a_report_says_whether_stopping_was_safe() -> None:
    rows = [
        {"rung": 1, "images": 500, "epoch": 1.0, "batch_size": b, "reached": 40, "stopped": 20}
        for b in (16.0, NAN)
    ]
    rungs = pd.DataFrame(rows).assign(
        n=20, rho=0.9, low=0.75, high=0.96, best_place=1, of=40, best_below=False
    )
    found = findings(table(CELLS), stopping=rungs)
    said = (
        "Stopping at epoch 1 was safe as far as the finished trials show: their order there "
        "agrees with their final order (Spearman's rho 0.90 [0.75, 0.96], 20 trials)."
    )
    assert conclusions_of(found)[-1] == said
    known = numbers(found)
    assert known["conclusions"][-1] == said
    assert {n: known["stopping"][n] for n in ("verdict", "deciding_rung")} == {
        "verdict": "safe", "deciding_rung": 1
    }  # fmt: skip
    assert known["stopping"]["rungs"][1]["batch_size"] is None
    assert known["stopping"]["rungs"][1]["rho"] == 0.9
    assert numbers(findings(table(CELLS)))["stopping"] is None
