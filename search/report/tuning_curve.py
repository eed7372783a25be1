"""The tuning curve in a report: of which trials, in a sentence, as a section and as numbers."""

import math
from typing import Any

import pandas as pd

from search.analysis.groups import exploration_of, varied_fields
from search.analysis.tuning_curve import (
    ENDED,
    GRID,
    IN_ORDER,
    RANDOM,
    TuningCurve,
    tuning_curve,
)
from search.report.findings import Findings
from search.report.markup import paragraph, table
from search.report.numbers import plain
from search.report.sentences.wording import listed
from search.study.shown import number_of, show

COLUMNS = {"trials": "trials", "best": "median best", "low": "95 % from", "high": "to"}
READ = {
    RANDOM: (
        "How to read it: of many searches with so many random trials, half find a best score above "
        "the line. The band contains the whole true line with 95 % confidence (exact simultaneous "
        "bands of the distribution of scores; Lourie et al. 2024); where it reaches the edge of "
        "the chart there is no bound."
    ),
    GRID: (
        "How to read it: of many searches that draw so many settings of this grid at random, with "
        "replacement, and train each with one seed, half find a best score above the line. The "
        "order in which a grid is trained says nothing, and its settings are no random draws, so "
        "there is no band: the line is of these settings, not of the ranges they are from."
    ),
    IN_ORDER: (
        "How to read it: the best score among the trials that had ended. Another search of "
        "the same kind may go differently, and how differently one search does not tell: there is "
        "no band."
    ),
}
WORST = "Trials without a score, because they diverged or failed, count as worse than any other."
SELECTED = "The best of many noisy scores is a little better than its setting is."


def curve_of(findings: Findings) -> TuningCurve | None:
    """Of a search all trials; of a grid those of the best surface, once all have ended."""
    trials, about = findings.trials, findings.about
    is_table, best = "table" in about, findings.analyses[0]
    if findings.steps or trials.empty or findings.metric not in trials:
        return None
    by = findings.fields or ["batch_size", "lr"]
    if not is_table:
        if trials["data_fingerprint"].nunique(dropna=False) > 1:
            return None  # scores on different data
        if exploration_of(about).kind in ("Grid", "Variants") and "stopped" not in set(
            trials["status"]
        ):
            ended = trials.loc[trials["status"].isin(ENDED), "trial_key"]
            if set(about.get("planned") or ()) - set(ended):
                return None  # which trials of a grid end first is no random choice
            trials = best.trials
        by = varied_fields(trials)
    how: dict[str, Any] = {"metric": findings.metric, "mode": findings.mode}
    return tuning_curve(trials, about, by=by, is_drawn=is_table and best.binned, **how)


def tuning_sentence(findings: Findings) -> str:
    """What the curve says at a few numbers of trials; empty without one."""
    curve = curve_of(findings)
    if curve is None:
        return ""
    metric = findings.metric
    rows = [row for row in _told(curve) if math.isfinite(row["best"])]
    if not rows:
        return f"So far no trial has a {metric}."
    if curve.kind == RANDOM:
        first, *more = [f"{show(row['best'])} {_bounds(row)}" for row in rows]
        words = [f"the median best {metric} is {first}"]
        words += [
            f"after {row['trials']:.0f}, {told}" for row, told in zip(rows[1:], more, strict=True)
        ]
        start = number_of(int(rows[0]["trials"]), "random trial")
        return f"After {start} {'; '.join(words)} (95 % for all at once)."
    best = listed([f"{show(row['best'])} after {row['trials']:.0f}" for row in rows])
    if curve.kind == IN_ORDER:
        last = curve.rows.loc[curve.rows["best"] == rows[-1]["best"], "trials"].min()
        return (
            f"Of {curve.num_trials} trials the best {metric} so far was {best}; it last improved "
            f"with trial {last}."
        )
    return (
        f"Of settings drawn at random from the {curve.num_settings} of this grid, each trained "
        f"with one seed, the median best {metric} is {best} "
        f"{'trial' if rows[-1]['trials'] == 1 else 'trials'}."
    )


def notes(curve: TuningCurve) -> list[str]:
    """What else a reader must know of the curve."""
    sentences = []
    if curve.is_assumed:
        sentences.append(
            "The band assumes that the runs of this table were drawn independently at random, "
            "which the table does not tell; after a search that learns from its runs it is void."
        )
    if curve.kind == IN_ORDER:
        sentences.append(f"No confidence band: {curve.why}. {SELECTED}")
    if curve.seed is not None:
        sentences.append(f"One trial of each configuration was used, that with seed {curve.seed}.")
    if curve.left_out:
        sentences.append(
            f"{number_of(curve.left_out, 'configuration')} that the study gives as points "
            f"{'is' if curve.left_out == 1 else 'are'} no random draw and left out."
        )
    if curve.without_score:
        sentences.append(
            f"{curve.without_score} of {curve.num_trials} trials have no score. {WORST}"
        )
    return sentences


def tuning_section(findings: Findings, figure: str) -> str:
    """The chart, the sentence, the notes and a table of a few points."""
    curve = curve_of(findings)
    if curve is None:
        return ""
    rows = pd.DataFrame(_told(curve, most=8))
    columns = COLUMNS | ({"best": "best so far"} if curve.kind == IN_ORDER else {})
    caption = f"Best {findings.metric} after so many trials"
    return (
        figure
        + paragraph(tuning_sentence(findings))
        + "".join(paragraph(note, kind="soft") for note in notes(curve))
        + table(caption, rows, {name: words for name, words in columns.items() if name in rows})
    )


def tuning_numbers(findings: Findings) -> dict[str, Any] | None:
    """The curve for scripts; None without one."""
    curve = curve_of(findings)
    if curve is None:
        return None
    numbers: dict[str, Any] = plain(
        {
            "kind": curve.kind,
            "metric": findings.metric,
            "trials": curve.num_trials,
            "settings": curve.num_settings,
            "without_score": curve.without_score,
            "seed": curve.seed,
            "left_out": curve.left_out,
            "assumed_random": curve.is_assumed,
            "why_no_band": curve.why or None,
            "sentence": tuning_sentence(findings),
            "notes": notes(curve),
            "curve": curve.rows.to_dict("records"),
        }
    )
    return numbers


def _told(curve: TuningCurve, *, most: int = 3) -> list[dict[str, float]]:
    """The rows at the first, the last, and powers of two spread between them."""
    rows = curve.rows
    last = int(rows["trials"].iloc[-1])
    powers = [2**k for k in range(last.bit_length()) if 2**k < last]
    step = math.ceil(len(powers) / (most - 1))
    wanted = {*powers[::step], last}
    told: list[dict[str, float]] = rows[rows["trials"].isin(wanted)].to_dict("records")
    return told


def _bounds(row: dict[str, float]) -> str:
    """The interval of one point, as far as it has ends."""
    low, high = row["low"], row["high"]
    if math.isfinite(low) and math.isfinite(high):
        return f"[{show(low)}, {show(high)}]"
    if math.isfinite(low):
        return f"(at least {show(low)})"
    return f"(at most {show(high)})" if math.isfinite(high) else "(not bounded)"
