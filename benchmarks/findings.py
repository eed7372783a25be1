"""What the studies of `spaces/` find in preview, with three seeds on real patches.

    uv run python -m benchmarks.findings --data DIR [--out results/findings] [--studies momentum]

Runs each classification study that is not finished yet (about two hours for all of them on two
cores; the same command goes on after an interruption), writes its report again, and makes
docs/findings.md from the numbers of the reports. The words of `REMARKS` are ours; nothing else is
written by hand. Last line: one JSON object, verdicts by study.
"""

import argparse
import json
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from search.analysis.expected import Verdict
from search.report.findings import Findings, numbers, of_study
from search.report.report import write
from search.report.sentences.expected import claim, measured, outcome
from search.report.sentences.wording import sentence
from search.results import open_results
from search.study.catalogue import Entry, entries
from trainable.host.device import device_name

DOCS = Path("docs")
PAGE, CHARTS = DOCS / "findings.md", DOCS / "findings"
SEEDS = 3
CPU = torch.device("cpu")
TASKS = ("transfer_detection", "transfer_segmentation")  # not of classification
# The first of these that a report has is the section's picture.
PICTURES = ("best_by_batch_size", "surface", "parallel_coordinates")
OWN_PICTURE = {"critical_batch": "updates_to_target", "pcam_optuna": "parallel_coordinates"}
CONCLUSIONS = 3  # of the report, in a section
WIDTH = 110
INTRO = """\
Each study of [spaces/](../spaces) that classifies, run in preview with three seeds on real patches:
4,000 training patches of a
[JPEG copy of PatchCamelyon](https://huggingface.co/datasets/vflorenc/AI4ALL-PCam), of which a
preview takes 2,048 and their central 48x48 pixels, five epochs, and a small network from scratch.
The copy is lossy: do not compare these scores with published ones. **A preview neither confirms nor
refutes its source**, which trained larger networks for longer; it shows what the study says, and
what to look at in a whole one."""
COMMANDS = """\
```bash
uv run python -m search.run spaces/momentum.py --preview --data DIR --set seeds=3   # one of them
uv run python -m benchmarks.findings --data DIR                               # all, and this page
```"""
# What the numbers of a section mean.
REMARKS: dict[str, str] = {}


@dataclass(frozen=True)
class Section:
    """One study's part of the page, and its picture in the report's folder."""

    entry: Entry
    findings: Findings
    conclusions: Sequence[str]
    picture: Path


def words(entry: Entry, data: str, out: str) -> list[str]:
    """The command that runs a study as the page has it."""
    study = ["-m", "search.run", str(entry.path), "--preview", "--data", data, "--out", out]
    return [sys.executable, *study, "--set", f"seeds={SEEDS}"]


def section_of(entry: Entry, out: str) -> Section:
    """The report of a finished study, written again, with its picture."""
    name = entry.path.stem
    results = open_results(out, name)
    findings = of_study(results)
    write(findings, results.folder)
    charts = Path(out) / name / "charts"
    drawn = [charts / f"{kind}.svg" for kind in (OWN_PICTURE.get(name, ""), *PICTURES)]
    picture = next(path for path in drawn if path.exists())
    return Section(entry, findings, numbers(findings)["conclusions"], picture)


def summary(sections: Sequence[Section]) -> str:
    """The table at the top: a row an expectation."""
    rows = [
        f"| [{section.entry.path.stem}](#{section.entry.path.stem}) | {claim(verdict)} "
        f"({verdict.expected.get('source')}) | {verdict.outcome} |"
        for section in sections
        for verdict in section.findings.expected
    ]
    return "\n".join(["| study | expected | verdict |", "|---|---|---|", *rows])


def in_markdown(section: Section) -> str:
    """The section of a study."""
    name = section.entry.path.stem
    trials = section.findings.trials
    parts = [
        f"## {name}",
        fill(f"*{section.entry.question}* {len(trials)} trials. {REMARKS.get(name, '')}"),
        f"![{section.picture.stem.replace('_', ' ')}](findings/{name}.svg)",
    ]
    if section.findings.expected:
        rows = [row_of(verdict) for verdict in section.findings.expected]
        parts.append("\n".join(["| expected | measured | verdict |", "|---|---|---|", *rows]))
    told = [text for text in section.conclusions if "from the literature" not in text]
    parts.append("\n".join(fill(text, "- ", "  ") for text in told[:CONCLUSIONS]))
    return "\n\n".join(part for part in parts if part)


def row_of(verdict: Verdict) -> str:
    """An expectation beside what was measured."""
    of = ", ".join(f"{name}={value}" for name, value in verdict.of.items())
    where = f" ({of})" if of else ""
    source = verdict.expected.get("source")
    found = sentence(measured(verdict)) if measured(verdict) else "-"
    return f"| {sentence(claim(verdict))}{where} ({source}) | {found} | {outcome(verdict)} |"


def fill(text: str, first: str = "", then: str = "") -> str:
    """Lines of at most `WIDTH` characters."""
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=then, break_on_hyphens=False
    )


def page(sections: Sequence[Section]) -> str:
    """The whole of docs/findings.md."""
    seconds = sum(float(s.findings.trials["train_wall_s"].sum()) for s in sections)
    num_trials = sum(len(s.findings.trials) for s in sections)
    made = (
        f"({num_trials:,} trials of {seconds / num_trials:.1f} s on average, two at once, on 2 "
        f"cores of an {device_name(CPU)} that was also doing other work, {date.today()}.)"
    )
    head = ["# What was found", fill(INTRO), COMMANDS, fill(made), summary(sections)]
    return "\n\n".join([*head, *map(in_markdown, sections)])


def main() -> None:
    """Run what is missing, then write the page and its pictures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.findings", description=__doc__)
    parser.add_argument("--data", required=True, help="the folder of the real patches")
    parser.add_argument("--out", default="results/findings", help="where the results are")
    parser.add_argument("--studies", nargs="+", metavar="NAME", help="only these")
    asked = parser.parse_args()
    chosen = [
        entry
        for entry in entries()
        if entry.path.stem not in TASKS and entry.path.stem in (asked.studies or [entry.path.stem])
    ]
    for entry in chosen:
        subprocess.run(words(entry, asked.data, asked.out), check=True)
    sections = [section_of(entry, asked.out) for entry in chosen]
    CHARTS.mkdir(exist_ok=True)
    for section in sections:
        (CHARTS / f"{section.entry.path.stem}.svg").write_bytes(section.picture.read_bytes())
    PAGE.write_text(page(sections) + "\n", encoding="utf-8")
    verdicts: dict[str, Any] = {
        section.entry.path.stem: [verdict.outcome for verdict in section.findings.expected]
        for section in sections
    }
    print(json.dumps(verdicts))


if __name__ == "__main__":
    main()
