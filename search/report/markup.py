"""Pieces of HTML: text escaped, tables with headings, data that a script element may hold."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

Columns = Mapping[str, str]


def text(value: object) -> str:
    """Any text for between tags or in an attribute's quotes."""
    return html.escape(str(value), quote=True)


def shown(value: object) -> str:
    """A value for people: four digits of a number, a dash for nothing."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NaT:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "-"
        return f"{value:,.0f}" if value == round(value) and abs(value) >= 100 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10000 else str(value)
    return str(value)


def script_data(identity: str, value: object) -> str:
    """Plain data in a script element, where no text of it can end the element."""
    data = json.dumps(value, separators=(",", ":"))
    safe = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="{text(identity)}">{safe}</script>'


def section(identity: str, title: str, *content: str) -> str:
    """A part of the page; empty where it has no content."""
    inside = "\n".join(each for each in content if each)
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
    items = "".join(f"<li>{text(each)}</li>" for each in sentences)
    return f"<ul{_class(kind)}>{items}</ul>" if items else ""


def table(
    caption: str,
    rows: pd.DataFrame,
    columns: Columns,
    *,
    best: Sequence[bool] = (),
    long: Sequence[str] = (),
) -> str:
    """The frame's columns under the headings that `columns` gives them; the first heads its row.

    Rows of `best` are coloured; columns of `long` hold sentences. Empty without rows.
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
    for at, row in enumerate(rows[names].to_dict("records")):
        cells = [f'<th scope="row">{text(shown(row[names[0]]))}</th>']
        cells += [_cell(row[name], is_long=name in long) for name in names[1:]]
        marked = ' class="best"' if at < len(best) and best[at] else ""
        body.append(f"<tr{marked}>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table>'
        f"<caption>{text(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def details(summary: str, content: str) -> str:
    """What is folded away until it is asked for."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>" if content else ""


def pairs(caption: str, values: Mapping[str, Any]) -> str:
    """A table of two columns, what has no value left out."""
    known = [(k, v) for k, v in values.items() if v not in (None, "", [], {})]
    return table(
        caption,
        pd.DataFrame(known, columns=["what", "value"], dtype=object),
        {"what": "", "value": ""},
        long=["value"],
    )


def _cell(value: object, *, is_long: bool) -> str:
    words = text(shown(value))
    if is_long:
        return f'<td class="long">{words}</td>'
    return f'<td class="text">{words}</td>' if isinstance(value, str) else f"<td>{words}</td>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
