"""Sentences on an ablation: what its steps did."""

import math
from collections.abc import Mapping

import pandas as pd

from search.study.shown import change, show


def ablation_sentences(steps: Mapping[str, pd.DataFrame], metric: str) -> list[str]:
    """What each setting's steps did in all, and which of them changed most."""
    sentences = []
    for setting, table in steps.items():
        known = table.dropna(subset="mean")
        if len(known) < 2:
            sentences.append(f"Fewer than two steps have scores{_at(setting)}: nothing to compare.")
            continue
        first, last = known.iloc[0], known.iloc[-1]
        text = (
            f"From {known.index[0]} to {known.index[-1]}{_at(setting)} {metric} went from "
            f"{show(first['mean'])} to {show(last['mean'])}"
        )
        changes = known["change"].dropna()
        if len(changes):
            most = changes.abs().idxmax()
            n, std = int(known.loc[most, "pairs"]), known.loc[most, "change_std"]
            text += f"; {most} changed it most, by {change(changes[most])}"
            known_std = math.isfinite(std)
            text += (
                f" (deviation {show(std)} over {n} paired seeds)" if known_std else " (one seed)"
            )
        sentences.append(f"{text}.")
    return sentences


def _at(setting: str) -> str:
    return f" at {setting}" if setting else ""
