"""Every number on the page is in report.json: as it is, in a sentence, or with other units."""

import html
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search.report.__main__ import main
from search.results.tables import Results

pytestmark = pytest.mark.usefixtures("no_drawing")
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
UNITS = (1, 100, 60, 3600, 1 / 60, 1 / 3600)  # percent, and seconds, minutes, hours
SEARCH: dict[str, Any] = {
    "explore": "Random(num_configs=50)",
    "vary": {"batch_size": "", "base_lr": "", "optimizer": ""},
}


def leaves(content: Any) -> Iterator[Any]:
    """Keys and values of nested JSON."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield key
            yield from leaves(value)
    elif isinstance(content, list):
        for value in content:
            yield from leaves(value)
    else:
        yield content


class Known:
    """The numbers of a report.json, and those in its texts."""

    def __init__(self, content: Any) -> None:
        found = list(leaves(content))
        texts = [leaf for leaf in found if isinstance(leaf, str)]
        self.written = {token(n) for text in texts for n in NUMBER.findall(text)}
        numbers = [leaf for leaf in found if isinstance(leaf, int | float)]
        self.numbers = sorted(abs(float(number)) for number in numbers)

    def has(self, shown: str) -> bool:
        """Whether a number rounds to what is shown."""
        if token(shown) in self.written:
            return True
        mantissa, _, exponent = token(shown).partition("e")
        decimals = len(mantissa.partition(".")[2])
        half = 0.5001 * 10.0 ** (int(exponent or 0) - decimals)
        return any(self._within(float(token(shown)), half, unit) for unit in UNITS)

    def _within(self, value: float, half: float, unit: float) -> bool:
        at = bisect_left(self.numbers, (value - half) / unit)
        return at < len(self.numbers) and self.numbers[at] <= (value + half) / unit


def token(shown: str) -> str:
    return shown.rstrip(",").replace(",", "")


def unknown_numbers(folder: Path, name: str = "report") -> list[str]:
    """What the page shows and the numbers' file lacks, with the words around it."""
    page = (folder / f"{name}.html").read_text()
    page = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    shown = html.unescape(re.sub(r"<[^>]+>", " ", page))
    known = Known(json.loads((folder / f"{name}.json").read_text()))
    found = list(NUMBER.finditer(shown))
    assert len(found) > 50
    return [
        shown[max(0, number.start() - 40) : number.end() + 20]
        for number in found
        if not known.has(number.group())
    ]


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"seeds": 1},
        {"batch_sizes": (16,), "lrs": (0.1,), "seeds": 2},
        {"batch_sizes": (16, 64)},
        {"changes": [{"optimizer": "sgd"}, {"optimizer": "adamw"}], "about": SEARCH},
        {"status": "diverged", "val_auroc": None, "val_loss": None, "reason": "the loss is NaN"},
    ],
    ids=["seeds", "one seed", "one cell", "two sizes", "search", "diverged"],
)
def test_every_number_on_the_page_is_in_the_json(
    make_study: Callable[..., Results], made: dict[str, Any]
) -> None:
    results = make_study(**made)
    assert main([results.folder.uri]) == 0
    assert unknown_numbers(Path(results.folder.uri)) == []


def test_a_number_that_is_not_there_is_found(make_study: Callable[..., Results]) -> None:
    results = make_study()
    assert main([results.folder.uri]) == 0
    page = Path(results.folder.uri, "report.html")
    page.write_text(page.read_text().replace("</main>", "<p>It took 31.4159 s.</p></main>"))
    (missing,) = unknown_numbers(Path(results.folder.uri))
    assert "31.4159" in missing


def test_every_number_of_a_comparison_is_in_its_json(
    make_study: Callable[..., Results], tmp_path: Path
) -> None:
    studies = [make_study(name=name).folder.uri for name in ("one", "other")]
    assert main([*studies, "--out", str(tmp_path / "both")]) == 0
    assert unknown_numbers(tmp_path / "both", "comparison") == []
