"""The numbers of a report for scripts: an analysis as plain data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from search.analysis.analysis import Analysis
from search.analysis.best_set import seeds_for
from search.analysis.expected import Verdict
from search.report.sentences.caveats import cautions
from search.report.sentences.conclusions import conclusions, scope
from search.report.sentences.expected import may_differ, told


def as_json(analysis: Analysis) -> dict[str, Any]:
    """The numbers of a report for scripts: plain data, null for what is unknown."""
    ridge = analysis.ridge[["batch_size", "vertex", "lr_low", "lr_high", "bracketed", "lr", "mean"]]
    ridge = ridge.rename(columns={"lr": "best_tried_lr"}).rename(columns={"vertex": "lr"})
    fit = analysis.collapse
    numbers: dict[str, Any] = plain(
        {
            "of": analysis.of,
            "metric": analysis.metric,
            "mode": analysis.mode,
            "lr_is": "what the optimizer gets at its peak",
            "grid_lr_is": analysis.lr_name,
            "binned": analysis.binned,
            "noise_std": analysis.noise.std,
            "seed_std": analysis.noise.seed_std,
            "surface": _without_scores(analysis.cells),
            "ridge": ridge.to_dict("records"),
            "exponent": _exponent(analysis),
            "lr_to_use": analysis.lr_to_use.to_dict("records"),
            "forms": analysis.forms.to_dict("records"),
            "collapse": {
                "exponent": fit.exponent,
                "r2": fit.r2,
                "r2_at": {f"{a:g}": fit.r2_at.get(a) for a in (0.0, 0.5, 1.0)},
            },
            "interaction": asdict(analysis.interaction),
            "crossing_p": analysis.crossing_p,
            "spearman": {f"{lr:g}": rho for lr, rho in analysis.spearman.items()},
            "best_set": _without_scores(analysis.best_set),
            "margin": analysis.margin,
            "seeds_for_margin": seeds_for(analysis.margin, analysis.cells, mode=analysis.mode),
            "within_margin": _without_scores(analysis.near),
            "optimism": analysis.optimism,
            "stable_lr": analysis.stable.to_dict("records"),
            "target": analysis.target,
            "to_target": analysis.needed.to_dict("records"),
            "front": asdict(analysis.front),
            "noise_scale": analysis.noise_scales.to_dict("records"),
            "equal": {name: table.to_dict("records") for name, table in analysis.equal.items()},
            "throughput": analysis.throughput.to_dict("records"),
            "conclusions": conclusions(analysis),
            "cautions": cautions(analysis),
        }
    )
    return numbers


def _without_scores(cells: pd.DataFrame) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = cells.drop(columns=["seeds", "scores"]).to_dict("records")
    return rows


def _exponent(analysis: Analysis) -> dict[str, Any]:
    fit = analysis.exponent
    return {
        "value": fit.value,
        "low": fit.low,
        "high": fit.high,
        "scope": scope(analysis),
        "batch_sizes": list(fit.batch_sizes),
        "left_out": fit.left_out,
        "from_scatter": fit.from_scatter,
        "p_flat": fit.p_flat,
    }


def plain(value: Any) -> Any:
    """Plain data for JSON: numpy's numbers as Python's, values that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [plain(member) for member in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    if value is pd.NaT or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value


def expected_as_json(verdicts: Sequence[Verdict], about: Mapping[str, Any]) -> dict[str, Any]:
    """What the source reports beside what was measured; empty without expectations."""
    if not verdicts:
        return {}
    rows = [
        {
            "verdict": verdict.outcome,
            "sentence": told(verdict),
            "declared": verdict.expected,
            "metric": verdict.metric,
            "where": verdict.where,
            "of": verdict.of,
            "value": verdict.value,
            "low": verdict.low,
            "high": verdict.high,
            "p_value": verdict.p_value,
            "seeds": verdict.seeds,
            "left_out": verdict.left_out,
            "notes": verdict.notes,
            "why": verdict.why,
            "rows": verdict.rows.to_dict("records"),
        }
        for verdict in verdicts
    ]
    return {"expected": {"may_differ": may_differ(about) or None, "verdicts": rows}}
