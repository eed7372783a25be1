"""What the study's source reports beside what was measured: a section of the page."""

from search.analysis.expected import NOT_REPRODUCED, REPRODUCED, Verdict
from search.report.findings import Findings
from search.report.markup import details, paragraph, table, text
from search.report.sentences.expected import beside, claim, may_differ, outcome

LEGEND = (
    "What the study's source reports, beside what was measured. Reproduced: the 95 % interval of "
    "the effect, or a test at 5 %, excludes chance, and the effect is as reported. Not reproduced: "
    "it is the other way round, or the exponent's interval is beyond the range."
)
OPEN_ROWS = 24  # a longer table is hidden until opened
MARKS = {REPRODUCED: "good", NOT_REPRODUCED: "bad"}
STEPS = {
    "value": "better",
    "than": "than",
    "difference": "by",
    "low": "95 % from",
    "high": "to",
    "p_value": "p (Holm)",
    "seeds": "seeds",
    "outcome": "verdict",
}


def expected_section(findings: Findings) -> str:
    """The verdicts as sentences, then their tables; empty without expectations."""
    if not findings.expected:
        return ""
    items = "".join(
        f'<li>{text(beside(verdict))} <strong class="{MARKS.get(verdict.outcome, "open")}">'
        f"{text(outcome(verdict))}</strong></li>"
        for verdict in findings.expected
    )
    return (
        paragraph(LEGEND, kind="soft")
        + paragraph(may_differ(findings.about), kind="soft")
        + f'<ul class="verdicts">{items}</ul>'
        + "".join(map(_table, findings.expected))
    )


def _table(verdict: Verdict) -> str:
    """What a verdict was made of; empty if its sentence says all."""
    rows, caption = verdict.rows, f"{verdict.expected.get('source')}: {claim(verdict)}"
    if rows.empty:
        return ""
    if verdict.kind == "Order":
        return table(caption, rows, STEPS)
    if verdict.kind == "Reported":
        shown = _reported(verdict)
        return shown if len(rows) <= OPEN_ROWS else details(caption, shown)
    columns = {name: name for name in rows} | {
        "setting": "at",
        "value": "better by",
        "measured": verdict.metric,
    }
    return details(f"By setting: {claim(verdict)}", table(caption, rows, columns))


def _reported(verdict: Verdict) -> str:
    """The source's table beside ours."""
    figures = {
        "expected": f"{verdict.metric} in the source",
        "measured": "measured",
        "seeds": "seeds",
    }
    fields = {name: name for name in verdict.rows if name not in figures}
    caption = f"{verdict.expected.get('source')}, beside the same settings here"
    return table(caption, verdict.rows, fields | figures)
