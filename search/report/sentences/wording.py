"""Parts of sentences that several files of the report use."""

from collections.abc import Sequence

import pandas as pd

from search.analysis.analysis import Analysis
from search.study.shown import show


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def cell_words(row: "pd.Series[float]", analysis: Analysis) -> str:
    """The setting of a row of cells."""
    return f"batch size {row['batch_size']:.0f} with {analysis.lr_name} {show(row['grid_lr'])}"


def replicate(analysis: Analysis) -> str:
    """What a cell contains several of: in bins, trials differ in more than the seed."""
    return "trial" if analysis.binned else "seed"


def how_to_replicate(analysis: Analysis) -> str:
    """How to get replicates: of a study by its command, of a table by training more."""
    if analysis.binned:
        return "try more configurations"
    is_study = analysis.lr_name == "base_lr"
    return "add --set seeds=3" if is_study else "train with more seeds"


def sentence(words: str) -> str:
    """The words with a capital."""
    return f"{words[:1].upper()}{words[1:]}"


def sizes(batch_sizes: Sequence[str]) -> str:
    """`batch sizes 16 and 32`."""
    return f"batch size{'s' if len(batch_sizes) > 1 else ''} {listed(batch_sizes)}"
