"""The studies that come with the program: what each one asks and costs, by its file's docstring."""

import ast
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from search.study.space_file import SpaceFileError

PARTS = ("__init__", "bases", "papers")  # of spaces/: no studies themselves


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One space file: its first sentence, and the paragraph that begins with `Cost:`."""

    path: Path
    question: str
    cost: str


def entries() -> list[Entry]:
    """All of them by name, without running any.

    Raises:
        SpaceFileError: they are not installed.
    """
    spec = find_spec("spaces.bases")  # a folder of the user's may be called spaces, too
    if spec is None or spec.origin is None:
        raise SpaceFileError("the package `spaces` is not installed")
    files = sorted(Path(spec.origin).parent.glob("*.py"))
    return [entry_of(path) for path in files if path.stem not in PARTS]


def entry_of(path: Path) -> Entry:
    """What a space file says of itself."""
    paragraphs = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n\n")
    one_line = [" ".join(paragraph.split()) for paragraph in paragraphs]
    costs = [text.removeprefix("Cost: ") for text in one_line if text.startswith("Cost: ")]
    return Entry(path=path, question=one_line[0], cost=costs[0] if costs else "")


def print_catalogue(console: Console) -> None:
    """A table on a terminal; in a pipe a line a study, with tabs between name, question, cost."""
    known = entries()
    if not console.is_terminal:
        for entry in known:
            # Not by `print`, which would make spaces of the tabs.
            console.file.write(f"{entry.path.stem}\t{entry.question}\t{entry.cost}\n")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    table.add_column("study", no_wrap=True, style="bold")
    table.add_column("question", ratio=3)
    table.add_column("cost", ratio=2, style="dim")
    for entry in known:
        table.add_row(entry.path.stem, entry.question, entry.cost)
    console.print(table, markup=False)
    folder = known[0].path.parent
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    console.print(f"run one: python -m search.run {folder}/STUDY.py", soft_wrap=True, markup=False)


def as_markdown() -> str:
    """The table of docs/studies.md."""
    rows = [
        f"| [{entry.path.stem}](../spaces/{entry.path.name}) | {entry.question} | {entry.cost} |"
        for entry in entries()
    ]
    return "\n".join(["| study | question | cost |", "|---|---|---|", *rows])
