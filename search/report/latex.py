"""Numbers and tables in LaTeX: booktabs, escaped texts, a value with its interval."""

import math
from collections.abc import Iterable, Mapping
from statistics import median

import numpy as np
import pandas as pd

from search.study.shown import decimals

NOTHING = "--"
ESCAPED = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def escape(words: object) -> str:
    """Text in which nothing is a command."""
    return "".join(ESCAPED.get(mark, mark) for mark in " ".join(str(words).split()))


def estimate(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """`0.852 [0.841, 0.862]`: as many decimals as give the interval two digits.

    Three digits or three decimals without an interval; a dash without a value.
    """
    return estimates([value], [low], [high])[0]


def estimates(values: Iterable[float], lows: Iterable[float], highs: Iterable[float]) -> list[str]:
    """A column of estimates, all with as many decimals as its median interval needs."""
    rows = list(zip(values, lows, highs, strict=True))
    widths = [high - low for _, low, high in rows if 0 < high - low < math.inf]
    if widths:
        places = max(0, 1 - math.floor(math.log10(median(widths))))
    else:
        places = decimals((value for value, *_ in rows), digits=3)
    return [
        NOTHING
        if not math.isfinite(value)
        else f"{value:.{places}f}"
        + (f" [{low:.{places}f}, {high:.{places}f}]" if math.isfinite(high - low) else "")
        for value, low, high in rows
    ]


def rate(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """`0.039 [0.012, 0.13]`: two digits of each, for what is compared on a logarithmic scale."""
    if not math.isfinite(value):
        return NOTHING
    if not (math.isfinite(low) and math.isfinite(high)):
        return rounded(value)
    return f"{rounded(value)} [{rounded(low)}, {rounded(high)}]"


def rounded(value: float, digits: int = 2) -> str:
    """A number of so many digits, without an exponent between 1e-4 and 1e6."""
    if not math.isfinite(value):
        return NOTHING
    return f"{float(f'{value:.{digits}g}'):.6g}"


def cell(value: object) -> str:
    """A field's value as it stands in a table."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value != value:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return rounded(value, 4)
    return str(value)


def booktabs(
    rows: pd.DataFrame, headings: Mapping[str, str], *, caption: str, label: str, above: str = ""
) -> str:
    """The columns in `headings` as a table of LaTeX; its document needs the package booktabs.

    `above` is a heading over all columns but the first.
    """
    shown = [
        [escape(cell(value)) for value in row] for row in rows[list(headings)].to_numpy(object)
    ]
    sides = ["l" if _is_text([row[i] for row in shown]) else "r" for i in range(len(headings))]
    over = []
    if above:
        last = len(headings)
        over = [
            rf" & \multicolumn{{{last - 1}}}{{c}}{{{escape(above)}}} \\",
            rf"\cmidrule(lr){{2-{last}}}",
        ]
    # An empty group: a row that begins with [ would be an argument of the line break before it.
    lines = ["{}" * row[0].startswith("[") + " & ".join(row) + r" \\" for row in shown]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(caption)}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{{''.join(sides)}}}",
            r"\toprule",
            *over,
            " & ".join(escape(heading) for heading in headings.values()) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _is_text(cells: list[str]) -> bool:
    return any(cell[:1].isalpha() for cell in cells)
