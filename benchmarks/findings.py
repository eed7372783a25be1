"""What the studies of `spaces/` find in preview, with three seeds on real patches.

    uv run python -m benchmarks.findings --data DIR [--out results/findings] [--studies momentum]

Runs each classification study that is not finished yet (about two hours for all of them on two
cores; the same command goes on after an interruption), writes its report again, and makes its
section of docs/findings.md from the numbers of the report; other sections stay. The words of
`REMARKS` are ours; nothing else is written by hand. Last line: one JSON object, verdicts by study.
"""

import argparse
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from search.analysis.expected import Verdict
from search.report.findings import Findings, numbers, of_study
from search.report.report import write
from search.report.sentences.expected import claim, measured, outcome
from search.report.sentences.wording import listed
from search.results import open_results
from search.study.catalogue import Entry, entries
from trainable.host.device import device_name

DOCS = Path("docs")
PAGE, CHARTS = DOCS / "findings.md", DOCS / "findings"
SEEDS = 3
CPU = torch.device("cpu")
REPEAT_THEMSELVES = ("pcam_asha", "pcam_ridge")  # they say which configurations get more seeds
TASKS = ("transfer_detection", "transfer_segmentation")  # not of classification
# The first of these that a report has is the section's picture.
PICTURES = ("best_by_batch_size", "surface", "parallel_coordinates")
OWN_PICTURE = {"critical_batch": "updates_to_target", "pcam_optuna": "parallel_coordinates"}
HEAD = "| expected | measured | verdict |"
FIRST_CONCLUSIONS = 1  # of the report, in a section; and those that begin so:
RIDGE_CONCLUSIONS = ("The best lr grows", "By one line", "The best peak lr", "It grows")
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
REMARKS = {
    "pcam_grid": "The best base rate is 0.3 or 1 at every batch size: linear scaling "
    "fits. Square-root scaling fits as well, since the curves are flat near their tops.",
    "pcam_grid_adam": "Adam's best rate grows about as the square root of the batch; five "
    "batch sizes and three seeds do not exclude linear growth.",
    "optimizers": "Each at its own best rate, all eight are within 0.005 of each other at "
    "batch 16. At 256, with 40 updates, plain SGD and schedule-free SGD fall behind by 0.015 "
    "to 0.02.",
    "budgets": "At equal epochs the batch size hardly matters. At equal updates the batch "
    "of 256, which then sees sixteen times the images, is ahead by 0.027: what small batches "
    "have is more updates.",
    "normalization": "From batch 16 to 256 BatchNorm with recomputed statistics loses "
    "0.004, with running averages 0.017: after 40 updates they lag. Group normalization needs "
    "many more updates than there are.",
    "warmup": "At the best rate the three differ by at most 0.003, which is noise. At the "
    "highest one most trials fail with and without warmup.",
    "weight_decay": "Up to 0.3, weight decay makes no difference in five epochs. At 3 and "
    "batch 16, the time scale is ahead by 0.0013: as expected, and within the noise.",
    "momentum": "At batch 16 momentum makes no difference at equal lr / (1 - momentum). "
    "At 256, 0.9 is ahead of none by 0.025, and 0.98 is too slow for 40 updates.",
    "schedules": "Cosine is ahead at both batch sizes, but by little more than the noise; "
    "steps and a batch that grows lose most at 256, where 40 updates leave them few.",
    "layers": "Without pretrained weights there is nothing to keep near the input: lower "
    "rates there only cost. Fine-tuning is another matter.",
    "pcam_kandel": "With SGD the paper's crossing appears: the low rate wants small "
    "batches, the high one large batches. With Adam the high rate trains nothing in this "
    "small network.",
    "tricks_refinements": "Cosine decay adds what the paper reports. Smoothing adds "
    "little, and six epochs are too few for mixup, for which the paper trained longer.",
    "tricks_efficient": "In six epochs a residual network whose blocks begin as the "
    "identity (zero gamma) is behind; what the paper saw after 120 epochs is not visible "
    "here.",
    "critical_branch": "With square-root scaling the loss after three more epochs is the "
    "same up to batch 256. With linear scaling it parts at 256: 0.505 against 0.492.",
    "critical_batch": "A batch of 256 reaches the target after 23 updates and one of 16 "
    "after 210: nine times fewer with sixteen times the batch, so it costs more images.",
    "activations": "Sigmoid learns next to nothing at this depth. Every other function "
    "trains at batch 16 and the lowest rates. Without normalization rectifiers, ELU and SELU "
    "diverge at the higher ones, above all at batch 256, where tanh goes on.",
    "depth_width": "In three seconds thirty plain convolutions learn least of all. Their "
    "residual twin is ahead on average, but its seeds differ too much to say so. Six layers, "
    "wide or narrow, are ahead of both.",
    "regularization": "On 512 images flips help most and dropout some. Colour and erasing "
    "on top of flips cost more than they give in twenty epochs, and early stopping changes no "
    "score.",
    "accumulation": "At batch 16, which is one microbatch, the scores are equal to the "
    "last digit. At 256 and the best rate they differ by 0.0003 with group normalization and "
    "by 0.003 with BatchNorm, which is noise.",
    "pcam_asha": "Of 35 configurations ASHA stopped 21, and the ridge is that of the "
    "grid. Its interval is too narrow: what was stopped is not in it, and means are of one "
    "seed but for the best three.",
    "pcam_ridge": "Twenty trials, none at batch 128, find rates within the intervals of the grid's "
    "105, with 15 % of its images. Both rule out that one rate serves all batch sizes.",
    "pcam_optuna": "Three times forty configurations, of which 101 trials were stopped, "
    "end where the grid's best cells are: batch 16 to 64, an effective rate near its best. "
    "Nothing is learnt of batch 256.",
    "pcam_conditional": "AdamW's best, at batch 32, are ahead of SGD's by less than 0.01; "
    "the search tried few rates of SGD.",
    "pcam_pbt": "It ends at batch 16 and at 256 with scores that cannot be told apart, as "
    "the grid does.",
    "tricks_architectures": "The preview has other networks than the paper, so it "
    "measures none of its numbers; its three are within the noise of each other.",
    "data_size": "With 256 images a batch of 256 loses 0.017 to one of 16; with 4,000 "
    "images 0.006. The best base rate stays between 0.3 and 1.",
}


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
    more = [] if entry.path.stem in REPEAT_THEMSELVES else ["--set", f"seeds={SEEDS}"]
    return [sys.executable, *study, *more]


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


def in_markdown(section: Section) -> str:
    """The section of a study."""
    name = section.entry.path.stem
    trials = section.findings.trials
    made = f"({len(trials)} trials of {trials['train_wall_s'].mean():.0f} s, {date.today()})"
    parts = [
        f"## {name}",
        fill(f"*{section.entry.question}* {REMARKS.get(name, '')} {made}"),
        f"![{section.picture.stem.replace('_', ' ')}](findings/{name}.svg)",
    ]
    if section.findings.expected:
        rows = [row_of(verdict) for verdict in section.findings.expected]
        parts.append("\n".join([HEAD, "|---|---|---|", *rows]))
    told = [
        text
        for number, text in enumerate(section.conclusions)
        if number < FIRST_CONCLUSIONS or text.startswith(RIDGE_CONCLUSIONS)
    ]
    parts.append("\n".join(fill(text, "- ", "  ") for text in told))
    return "\n\n".join(part for part in parts if part)


def summary(sections: Mapping[str, str]) -> str:
    """The table at the top: a row for each row of a section."""
    rows = []
    for name, section in sections.items():
        _, _, table = section.partition(f"{HEAD}\n|---|---|---|\n")
        for row in table.partition("\n\n")[0].splitlines():
            _, claim_of, _, verdict, _ = (cell.strip() for cell in row.split("|"))
            word = re.split(r"[.:]", verdict)[0].lower()
            rows.append(f"| [{name}](#{name}) | {claim_of} | {word} |")
    return "\n".join(["| study | expected | verdict |", "|---|---|---|", *rows])


def row_of(verdict: Verdict) -> str:
    """An expectation beside what was measured."""
    of = ", ".join(f"{name}={value}" for name, value in verdict.of.items())
    where = f" ({of})" if of else ""
    source = verdict.expected.get("source")
    found = measured(verdict) or "-"
    return f"| {claim(verdict)}{where} ({source}) | {found} | {outcome(verdict)} |"


def fill(text: str, first: str = "", then: str = "") -> str:
    """Lines of at most `WIDTH` characters."""
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=then, break_on_hyphens=False
    )


def page(sections: Mapping[str, str]) -> str:
    """The whole of docs/findings.md, by the names of its studies."""
    made = (
        f"(2 cores of an {device_name(CPU)} that was also doing other work; two trials at once. "
        f"Each section has its number of trials, their mean time, and its date.)"
    )
    left = [entry.path.stem for entry in entries() if entry.path.stem not in (*sections, *TASKS)]
    made += f" Not run yet: {listed(left)}." if left else ""
    head = ["# What was found", fill(INTRO), COMMANDS, fill(made), summary(sections)]
    return "\n\n".join([*head, *sections.values()]) + "\n"


def sections_of(text: str) -> dict[str, str]:
    """The sections of a page that was written before."""
    _, *parts = re.split(r"^## ", text, flags=re.MULTILINE)
    return {part.partition("\n")[0]: f"## {part.strip()}" for part in parts}


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
    before = sections_of(PAGE.read_text("utf-8")) if PAGE.exists() else {}
    new = {section.entry.path.stem: in_markdown(section) for section in sections}
    PAGE.write_text(page(dict(sorted({**before, **new}.items()))), encoding="utf-8")
    verdicts: dict[str, Any] = {
        section.entry.path.stem: [verdict.outcome for verdict in section.findings.expected]
        for section in sections
    }
    print(json.dumps(verdicts))


if __name__ == "__main__":
    main()
