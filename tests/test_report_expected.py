"""What a report says of expectations: sentences, the page, report.json and the terminal."""

import html
import io
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from no_drawing import DRAWING_STEP, draw_nothing
from ray import tune
from rich.console import Console

from search.analysis.expected import (
    NOT_MEASURED,
    NOT_REPRODUCED,
    REPRODUCED,
    UNRESOLVED,
    Verdict,
)
from search.report.findings import conclusions_of, numbers, of_study
from search.report.report import write_report
from search.report.sentences.expected import may_differ, summary, told
from search.report.terminal import print_answer
from search.results.tables import Results, commit_study, trials
from search.study import Study, Trend
from search.study.explorer import PlannedTrial
from trainable.config import TrialConfig

MakeStudy = Callable[..., Results]


def verdict(kind: str, outcome: str = REPRODUCED, **known: Any) -> Verdict:
    names = set(Verdict.__dataclass_fields__) - {"expected"}
    expected = {n: v for n, v in known.items() if n not in names or n == "where"}
    more = {n: v for n, v in known.items() if n in names and n != "where"}
    entry = {"kind": kind, "source": "Goyal 2017", "where": {}, **expected}
    how = {"metric": "val_auroc", "mode": "max", "where": known.get("found", {})}
    return Verdict(expected=entry, outcome=outcome, **how | more)


ORDER = {"field": "norm", "values": ["group", "batch", "none"]}
STEPS = pd.DataFrame({"outcome": [REPRODUCED, UNRESOLVED]})
TABLE = pd.DataFrame({"batch_size": [16, 32, 64], "measured": [0.8, 0.9, np.nan]})


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            verdict("Order", **ORDER, rows=STEPS, seeds=3, order=("group", "none", "batch")),
            "Expected (Goyal 2017): val_auroc from best to worst by norm: group, batch, none. "
            "Measured: group, none, batch; of 2 steps down the expected order 1 is reproduced and "
            "1 is not resolved by the noise. Reproduced.",
        ),
        (
            verdict("Order", NOT_MEASURED, **ORDER, why="no trial beat chance"),
            "Expected (Goyal 2017): val_auroc from best to worst by norm: group, batch, none. Not "
            "measured: no trial beat chance.",
        ),
        (
            verdict(
                "Trend",
                NOT_REPRODUCED,
                field="batch_size",
                direction="falls",
                where={"base_lr": "lowest", "optimizer": "sgd"},
                found={"base_lr": 0.003, "optimizer": "sgd"},
                value=-0.9,
                p_value=0.0042,
                seeds=3,
            ),
            "Expected (Goyal 2017): val_auroc falls as batch_size grows, at the lowest base_lr "
            "(0.003) and with optimizer=sgd. Measured: rank correlation +0.90 (p = 0.0042, 3 "
            "seeds). Not reproduced.",
        ),
        (
            verdict(
                "Trend",
                field="batch_size",
                direction="rises",
                metric="val_loss",
                mode="min",
                value=0.9,
                p_value=0.0002,
                seeds=1,
            ),
            "Expected (Goyal 2017): val_loss gets better (falls) as batch_size grows. Measured: "
            "rank correlation -0.90 (p < 0.001, 1 seed). Reproduced.",
        ),
        (
            verdict(
                "Reported",
                UNRESOLVED,
                rows=TABLE,
                value=1.0,
                p_value=0.33,
                seeds=2,
                notes=("base_lr: 0.1 there is 3 here",),
            ),
            "Expected (Goyal 2017): the order of 3 settings by val_auroc, as in its table. "
            "Measured: rank correlation +1.00 over 2 settings (p = 0.33, 2 seeds). Base_lr: 0.1 "
            "there is 3 here. Not resolved by the noise.",
        ),
        (
            verdict("Worse", NOT_MEASURED, why="its entry in study.json cannot be read"),
            "Expected (Goyal 2017): unknown. Not measured: its entry in study.json cannot be read.",
        ),
    ],
)
def test_an_expectation_is_told_beside_what_was_measured(found: Verdict, text: str) -> None:
    if found.kind == "Reported":
        found = Verdict(**{**vars(found), "expected": {**found.expected, "rows": [{}] * 3}})
    assert told(found) == text


def exponent(low: float, high: float, outcome: str, **known: Any) -> Verdict:
    entry = {"kind": "Exponent", "source": "a", "low": 0.8, "high": 1.2, "where": {}}
    how = {"metric": "val_auroc", "mode": "max", "low": low, "high": high, "seeds": 3}
    return Verdict(expected=entry, outcome=outcome, **how | {"value": (low + high) / 2} | known)


@pytest.mark.parametrize(
    ("found", "ending"),
    [
        (
            exponent(0.42, 1.2, REPRODUCED),
            "Measured: 0.81 [0.42, 1.20], with which square-root scaling is compatible too. "
            "Reproduced.",
        ),
        (
            exponent(math.nan, math.nan, UNRESOLVED, value=0.81, why="there is no interval"),
            "Expected (a): the best learning rate grows as batch size to the power 0.8 to 1.2. "
            "Measured: 0.81, without an interval. Not resolved by the noise: there is no interval.",
        ),
        (exponent(0.9, 1.1, REPRODUCED), "Measured: 1.00 [0.90, 1.10]. Reproduced."),
        (
            exponent(-0.1, 0.3, NOT_REPRODUCED, of={"optimizer": "adam"}),
            "0.8 to 1.2 (optimizer=adam). Measured: 0.10 [-0.10, 0.30]. Not reproduced.",
        ),
        (
            exponent(-0.1, 1.3, UNRESOLVED, seeds=1, why="the interval also contains 0"),
            "0.60 [-0.10, 1.30] (one seed: from the scatter about the line). Not resolved by the "
            "noise: the interval also contains 0.",
        ),
    ],
)
def test_an_exponent_has_its_interval(found: Verdict, ending: str) -> None:
    assert told(found).endswith(ending)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (
            {"value": 0.0123, "low": 0.001, "high": 0.0236, "seeds": 3},
            "0.0123 better [+0.0010, +0.0236] over 3 paired seeds",
        ),
        (
            {"value": -0.01, "low": -0.02, "high": 0.0, "seeds": 3, "by": 0.05},
            "0.01 worse [-0.0200, +0.0000] over 3 paired seeds, less than the source's 0.05",
        ),
        ({"value": 0.0123, "seeds": 1}, "0.0123 better with one seed"),
    ],
)
def test_an_effect_has_its_size(known: dict[str, Any], words: str) -> None:
    entry = {"kind": "Better", "source": "a", "field": "step", "value": "+ warmup", "than": "none"}
    by = {"by": known.pop("by", None)}
    how = {"metric": "val_auroc", "mode": "max", "outcome": UNRESOLVED}
    found = Verdict(expected=entry | {"where": {}} | by, **how | known)
    size = ", by 0.05" if by["by"] else ""
    assert told(found) == (
        f'Expected (a): val_auroc is better with step "+ warmup" than with "none"{size}. Measured: '
        f"{words}. Not resolved by the noise."
    )


def test_the_summary_counts_the_verdicts() -> None:
    assert summary([]) == ""
    found = [exponent(0.9, 1.1, name) for name in (UNRESOLVED, REPRODUCED, REPRODUCED)]
    assert summary(found) == (
        "Of 3 expectations from the literature 2 are reproduced and 1 is not resolved by the noise "
        "(see Expected and measured)."
    )


def test_a_preview_says_what_it_is() -> None:
    base = {"model": "plain", "train_images": 2048, "image_size": 48, "epochs": 5}
    about = {"preview": True, "base": {**base, "dataset": "synthetic"}, "vary": {"batch_size": {}}}
    assert may_differ(about).startswith(
        "This is a preview (model=plain, 2,048 training images of 48 px, 5 epochs, synthetic "
        "patches in place of real images), and its sources trained larger networks"
    )
    assert may_differ({**about, "preview": False}) == ""
    varied = {**about, "vary": {"model": {}, "epochs": {}}}
    assert "This is a preview (2,048 training images" in may_differ(varied)


# --- a whole report ---------------------------------------------------------------------------

VARY = {
    "batch_size": {"grid_search": [16, 32, 64, 128, 256]},
    "base_lr": {"grid_search": [0.03, 0.1, 0.3, 1.0, 3.0]},
}
EXPECT: list[dict[str, Any]] = [
    {"kind": "Exponent", "low": 0.8, "high": 1.2, "source": "Goyal 2017", "where": {}},
    {
        **{"kind": "Better", "field": "base_lr", "value": 0.3, "than": 0.03, "by": 0.01},
        **{"source": "a", "where": {}},
    },
    {"kind": "Order", "field": "base_lr", "values": [0.3, 0.1, 0.03], "source": "b", "where": {}},
    {
        **{"kind": "Trend", "field": "batch_size", "direction": "falls", "source": "c <b>"},
        "where": {"base_lr": "lowest"},
    },
    {
        **{"kind": "Reported", "metric": "test_auroc", "source": "d"},
        "rows": [
            {"batch_size": 16, "base_lr": lr, "test_auroc": score}
            for lr, score in ((0.03, 0.91), (0.1, 0.94), (0.3, 0.95), (1.0, 0.93), (3.0, 0.9))
        ],
    },
]


@pytest.fixture(scope="module")
def study(make_study: MakeStudy) -> Results:
    return make_study(
        about={
            "expect": EXPECT,
            "vary": VARY,
            "explore": {"kind": "Grid", "widen": 0, "refine": 0},
            "preview": True,
            "base": {"model": "plain", "epochs": 4},
        }
    )


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DRAWING_STEP, draw_nothing)


def written(results: Results) -> tuple[str, dict[str, Any]]:
    write_report(results)
    folder = Path(results.folder.uri)
    figures: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return (folder / "report.html").read_text(), figures


def test_the_page_and_report_json_say_the_same(study: Results) -> None:
    page, figures = written(study)
    part = page[page.index('<section aria-labelledby="expected-title"') :]
    part = part[: part.index("</section>")]
    assert [verdict["verdict"] for verdict in figures["expected"]["verdicts"]] == [
        *(REPRODUCED, REPRODUCED, REPRODUCED),
        *(figures["expected"]["verdicts"][3]["verdict"], REPRODUCED),
    ]
    items = re.findall(r"<li>(.*?)</li>", part)
    assert len(items) == 5
    for item, verdict in zip(items, figures["expected"]["verdicts"], strict=True):
        assert html.unescape(re.sub("<[^>]*>", "", item)) == verdict["sentence"]
    assert "<b>" not in part
    assert "This is a preview (model=plain, 4 epochs)" in part
    assert figures["expected"]["may_differ"].startswith("This is a preview (model=plain, 4 epochs)")
    assert 'href="#expected"' in page
    assert "test_auroc in the source" in part
    assert figures["conclusions"][-1].startswith("Of 5 expectations from the literature ")
    rows = figures["expected"]["verdicts"][4]["rows"]
    assert [row["expected"] for row in rows] == [0.91, 0.94, 0.95, 0.93, 0.9]


def test_without_expectations_there_is_no_such_section(make_study: MakeStudy) -> None:
    page, figures = written(make_study(about={"expect": []}))
    assert "Expected and measured" not in page
    assert "expected" not in figures
    assert not any("expectation" in sentence for sentence in conclusions_of_results(page))


def conclusions_of_results(page: str) -> list[str]:
    return re.findall(r"<li>(.*?)</li>", page)


def test_another_metric_has_its_own_verdicts_and_no_size_of_the_sources(study: Results) -> None:
    found = of_study(study, metric="val_loss")
    better = found.expected[1]
    assert (better.metric, better.outcome) == ("val_loss", REPRODUCED)
    assert ", by " not in told(better)
    assert found.expected[4].metric == "test_auroc"


def test_verdicts_come_from_the_folder_alone(study: Results, tmp_path: Path) -> None:
    """A folder that was copied elsewhere has no space file."""
    import shutil

    from search.results.tables import open_folder

    copied = Path(shutil.copytree(study.folder.uri, tmp_path / "elsewhere"))
    there = numbers(of_study(open_folder(str(copied))))["expected"]
    assert there == numbers(of_study(study))["expected"]


@pytest.mark.parametrize(
    "broken", ["Better", [1, None, {}], [{"kind": "Trend"}], {"kind": "Order"}]
)
def test_a_study_json_changed_by_hand_has_a_report(make_study: MakeStudy, broken: object) -> None:
    found = of_study(make_study(seeds=1, about={"expect": broken}))
    num = len(broken) if isinstance(broken, list) else 0
    assert [verdict.outcome for verdict in found.expected] == [NOT_MEASURED] * num
    assert len(conclusions_of(found)) > 1
    assert all("cannot be read" in told(verdict) for verdict in found.expected)


def test_the_terminal_prints_them(study: Results, make_study: MakeStudy) -> None:
    declared = Study(
        name="made",
        base=TrialConfig(dataset="d"),
        vary={name: tune.grid_search(domain["grid_search"]) for name, domain in VARY.items()},
        expect=(Trend("falls", "c"),),  # what is printed is of study.json
        seeds=3,
    )
    rows = trials(study)
    planned = [PlannedTrial(key, declared.base) for key in rows["trial_key"]]
    said = printed(declared, rows, study, planned)
    assert said.count("Expected (") == 5
    assert "the power 0.8 to 1.2. Measured: " in said
    assert said.count("    Reproduced.\n") >= 3
    assert "This is a preview (model=plain, 4 epochs)" in said
    nothing = Study(**{**vars_of(declared), "expect": ()})
    assert "expected" not in printed(nothing, rows, make_study(), planned).lower()


def vars_of(declared: Study) -> dict[str, Any]:
    return {name: getattr(declared, name) for name in ("name", "base", "vary", "seeds")}


def printed(declared: Study, rows: pd.DataFrame, results: Results, planned: Any) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_answer(console, declared, rows, results, planned)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_changed_expectations_change_the_report(study: Results, make_study: MakeStudy) -> None:
    results = make_study(about={"expect": EXPECT[:1], "vary": VARY, "explore": {"kind": "Grid"}})
    folder = Path(results.folder.uri)
    about: Mapping[str, Any] = json.loads((folder / "study.json").read_text())
    commit_study(results, {**about, "expect": EXPECT[3:4]})
    (found,) = of_study(results).expected
    assert found.kind == "Trend"
