"""The best lr of each batch size by the model of humps: a section of the page."""

from search.analysis.humps.by_model import ByModel
from search.report.findings import Findings
from search.report.markup import paragraph, table
from search.report.sentences.by_model import growth

LEGEND = (
    "By a model in which the scores of each batch size have one hump over log lr, whose place "
    "moves smoothly with log batch size. It uses all trials, also those at other batch sizes, so "
    "few trials are enough; its intervals hold where the scores do have such a shape. Before any "
    "trial it expects an exponent of 0.45, give or take 0.6. A batch size without trials has a "
    "prediction."
)
COLUMNS = {
    "batch_size": "batch size",
    "lr": "best peak lr",
    "low": "95 % from",
    "high": "to",
    "trials": "trials",
}


def by_model_section(findings: Findings) -> str:
    """A table a surface; empty for studies that do not search for the ridge."""
    if not findings.by_model:
        return ""
    return paragraph(LEGEND, kind="soft") + "".join(map(_table, findings.by_model))


def _table(answer: ByModel) -> str:
    caption = f"Best learning rate of each batch size, by the model{answer.of and f': {answer.of}'}"
    return table(caption, answer.rows, COLUMNS) + paragraph(growth(answer))
