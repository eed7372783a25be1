"""Pieces of HTML: escaped text, tables with headings, data in script elements."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from search.study.shown import show

Columns = Mapping[str, str]


def text(value: object) -> str:
    """Escaped text for an element or a quoted attribute."""
    return html.escape(str(value), quote=True)


def cell_text(value: object) -> str:
    """A value in a table: as `show` prints it, but yes, no, and commas in large whole numbers."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "-"
        if value == round(value) and abs(value) >= 100:
            return f"{value:,.0f}"
    if isinstance(value, int) and abs(value) >= 10000:
        return f"{value:,}"
    return show(value)


def script_data(identity: str, value: object) -> str:
    """Plain data in a script element, escaped so that no text in it can end the element."""
    data = json.dumps(value, separators=(",", ":"))
    safe = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="{text(identity)}">{safe}</script>'


def section(identity: str, title: str, *content: str) -> str:
    """A section of the page; empty if it has no content."""
    inside = "\n".join(part for part in content if part)
    if not inside:
        return ""
    return (
        f'<section aria-labelledby="{identity}-title" id="{identity}">\n'
        f'<h2 id="{identity}-title">{text(title)}</h2>\n{inside}\n</section>'
    )


def paragraph(words: str, *, kind: str = "") -> str:
    """A paragraph of escaped text."""
    return f"<p{_class(kind)}>{text(words)}</p>" if words else ""


def bullets(sentences: Sequence[str], *, kind: str = "") -> str:
    """A list of sentences."""
    items = "".join(f"<li>{text(sentence)}</li>" for sentence in sentences)
    return f"<ul{_class(kind)}>{items}</ul>" if items else ""


def table(
    caption: str,
    rows: pd.DataFrame,
    columns: Columns,
    *,
    best: Sequence[bool] = (),
    long: Sequence[str] = (),
    cell_lr: Sequence[float] = (),
) -> str:
    """The frame's columns with the headings in `columns`; the first one is the row's heading.

    Rows marked in `best` are coloured; columns in `long` contain sentences. Empty without rows.
    The page shows the rows of the batch sizes that the reader picks, if there is such a column, and
    with `cell_lr`, the peak learning rates of the rows, those of the settings.
    """
    names = [name for name in columns if name in rows]
    if rows.empty or not names:
        return ""
    texts = [n for n in names if n == names[0] or isinstance(rows[n].iloc[0], str)]
    head = "".join(
        f'<th scope="col"{_class("text" if name in texts else "")}>{text(columns[name])}</th>'
        for name in names
    )
    body = []
    for index, row in enumerate(rows[names].to_dict("records")):
        cells = [f'<th scope="row">{text(cell_text(row[names[0]]))}</th>']
        cells += [_cell(row[name], is_long=name in long) for name in names[1:]]
        marked = ' class="best"' if index < len(best) and best[index] else ""
        marked += _linked(rows, index, cell_lr)
        body.append(f"<tr{marked}>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table>'
        f"<caption>{text(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _linked(rows: pd.DataFrame, index: int, cell_lr: Sequence[float]) -> str:
    """Which batch size and which setting a row is of, for page.js."""
    size = rows["batch_size"].iloc[index] if "batch_size" in rows else None
    if not isinstance(size, int | float | np.number) or not math.isfinite(size):
        return ""
    lr = cell_lr[index] if index < len(cell_lr) else math.nan
    of_lr = f' data-lr="{float(lr)!r}"' if math.isfinite(lr) else ""
    return f' data-size="{size:.0f}"{of_lr}'


def details(summary: str, content: str) -> str:
    """Content that is hidden until the reader opens it."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>" if content else ""


def pairs(caption: str, values: Mapping[str, Any]) -> str:
    """A table of two columns; entries without a value are left out."""
    known = [(k, v) for k, v in values.items() if v not in (None, "", [], {})]
    return table(
        caption,
        pd.DataFrame(known, columns=["what", "value"], dtype=object),
        {"what": "", "value": ""},
        long=["value"],
    )


def _cell(value: object, *, is_long: bool) -> str:
    words = text(cell_text(value))
    if is_long:
        return f'<td class="long">{words}</td>'
    return f'<td class="text">{words}</td>' if isinstance(value, str) else f"<td>{words}</td>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
