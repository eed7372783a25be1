"""What a served page says beside the report: which trials run, how long it takes, what failed."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from search.report.markup import paragraph, table, text
from search.study.shown import duration, number_of, show

MOST_ROWS = 30  # of running trials


def live_section(progress: Mapping[str, Any], *, is_running: bool, metric: str) -> str:
    """The trials that run and those that ended last, as HTML."""
    if not is_running:
        words = "No command is training this study now. This page follows if one does."
        return paragraph(words, kind="now")
    if not progress:
        return paragraph("The study is starting.", kind="now")
    fields = progress["fields"]
    running, recent = progress["running"], progress["recent"]
    return (
        _bar(progress)
        + paragraph(_counts(progress), kind="now")
        + _surface(progress.get("surface"), metric)
        + _trials(
            f"Running: {number_of(len(running), 'trial')}", running[:MOST_ROWS], fields, metric
        )
        + _trials("Ended last", recent, fields, metric)
    )


def _counts(progress: Mapping[str, Any]) -> str:
    left_s = progress["seconds_left"]
    left = "" if left_s is None else f", about {duration(left_s)} left"
    return f"{progress['ended']} of {number_of(progress['total'], 'trial')} ended{left}."


def _bar(progress: Mapping[str, Any]) -> str:
    return (
        f'<progress max="{int(progress["total"])}" value="{int(progress["ended"])}" '
        'aria-label="Trials that ended"></progress>'
    )


def _surface(surface: Mapping[str, Any] | None, metric: str) -> str:
    """Each setting with its mean score so far; the better, the lighter."""
    if not surface or not surface["cells"]:
        return ""
    cells = {(cell["batch_size"], cell["base_lr"]): cell for cell in surface["cells"]}
    behind = sorted(cell["behind"] for cell in surface["cells"] if cell["behind"] is not None)
    head = "".join(f'<th scope="col">{text(show(lr))}</th>' for lr in surface["lrs"])
    rows = []
    for size in surface["batch_sizes"]:
        shown = [_filled(cells.get((size, lr)), behind) for lr in surface["lrs"]]
        rows.append(f'<tr><th scope="row">{text(show(size))}</th>{"".join(shown)}</tr>')
    caption = f"Mean {metric} so far, by batch size and base_lr (… under way)"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f'<table class="filling"><caption>{text(caption)}</caption><thead><tr><th></th>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _filled(cell: Mapping[str, Any] | None, behind: Sequence[float]) -> str:
    """A setting's cell, in one of five colours by its place among the others."""
    if cell is None:
        return "<td></td>"
    words = text(cell["text"]) + (" …" if cell["running"] and cell["text"] != "…" else "")
    if cell["behind"] is None:
        return f"<td>{words}</td>"
    place = bisect_left(behind, cell["behind"]) / max(1, len(behind) - 1)
    return f'<td class="q{min(4, int(5 * place))}">{words}</td>'


def _trials(
    caption: str, rows: Sequence[Mapping[str, Any]], fields: Sequence[str], metric: str
) -> str:
    headings = {name: name for name in fields}
    headings |= {"epoch": "epoch", "score": metric, "status": "status"}
    if any(row["reason"] for row in rows):
        headings["reason"] = "reason"
    shown = pd.DataFrame(list(rows), dtype=object)
    return table(caption, shown.rename(columns={"batch_size": "batch"}), _renamed(headings))


def _renamed(headings: Mapping[str, str]) -> dict[str, str]:
    """The batch size under another name: what a reader picks does not hide what runs."""
    return {"batch" if name == "batch_size" else name: title for name, title in headings.items()}
