"""The numbers of a report for scripts: an analysis as plain data."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from search.analysis.analysis import Analysis
from search.report.sentences import cautions, conclusions, scope


def as_json(analysis: Analysis) -> dict[str, Any]:
    """The numbers of a report for scripts: plain data, null where nothing can be said."""
    ours = analysis
    ridge = ours.ridge[["batch_size", "vertex", "lr_low", "lr_high", "bracketed", "lr", "mean"]]
    ridge = ridge.rename(columns={"lr": "best_tried_lr"}).rename(columns={"vertex": "lr"})
    r2_at = {f"{a:g}": ours.collapse.r2_at.get(a) for a in (0.0, 0.5, 1.0)}
    mixed = ours.interaction
    said: dict[str, Any] = plain(
        {
            "of": ours.of,
            "metric": ours.metric,
            "mode": ours.mode,
            "lr_is": "what the optimizer gets at its peak",
            "grid_lr_is": ours.lr_name,
            "binned": ours.binned,
            "noise_std": ours.noise,
            "surface": ours.cells.to_dict("records"),
            "ridge": ridge.to_dict("records"),
            "exponent": {
                "value": ours.exponent.value,
                "low": ours.exponent.low,
                "high": ours.exponent.high,
                "scope": scope(ours),
                "batch_sizes": list(ours.exponent.batch_sizes),
                "left_out": ours.exponent.left_out,
            },
            "forms": ours.forms.to_dict("records"),
            "collapse": {
                "exponent": ours.collapse.exponent,
                "r2": ours.collapse.r2,
                "r2_at": r2_at,
            },
            "interaction": {
                "share_batch_size": mixed.share_batch_size,
                "share_lr": mixed.share_lr,
                "share_interaction": mixed.share_interaction,
                "p_value": mixed.p_value,
                "p_robust": mixed.p_robust,
                "f": mixed.f,
                "replicates": mixed.replicates,
                "batch_sizes": list(mixed.batch_sizes),
                "lrs": list(mixed.lrs),
                "why": mixed.why,
            },
            "spearman": {f"{lr:g}": rho for lr, rho in ours.spearman.items()},
            "best_set": ours.best_set.to_dict("records"),
            "optimism": ours.optimism,
            "stable_lr": ours.stable.to_dict("records"),
            "target": ours.target,
            "to_target": ours.needed.to_dict("records"),
            "front": {
                "s_min": ours.front.s_min,
                "e_min": ours.front.e_min,
                "critical_batch_size": ours.front.critical_batch_size,
                "low": ours.front.low,
                "high": ours.front.high,
                "why": ours.front.why,
            },
            "noise_scale": ours.noise_scales.to_dict("records"),
            "equal": {name: table.to_dict("records") for name, table in ours.equal.items()},
            "throughput": ours.throughput.to_dict("records"),
            "conclusions": conclusions(ours),
            "cautions": cautions(ours),
        }
    )
    return said


def plain(value: Any) -> Any:
    """Plain data for JSON: numpy's numbers as Python's, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    if value is pd.NaT or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value
