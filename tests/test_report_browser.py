"""The report in Chromium, as a reader opens it: from a disk, with every network refused."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from no_drawing import DRAWING_STEP, draw_nothing
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from search.report.charts.linked import DIM
from search.report.report import write_report
from search.results.tables import Results

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
LOCAL = ("file:", "data:", "blob:")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists() and not os.environ.get("CI"):
        pytest.skip("no /usr/bin/chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        yield chromium
        chromium.close()


@dataclass
class Opened:
    """A page, what it complained of, and what it asked the network for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Opened]]:
    contexts = []

    def open_page(results: Results, *, width: int = 1280, scheme: Any = "light") -> Opened:
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        shown = Opened(context.new_page())
        shown.page.on("console", lambda message: shown.complaints.append(message.text))
        shown.page.on("pageerror", lambda error: shown.complaints.append(str(error)))
        shown.page.on("request", lambda request: shown.requests.append(request.url))
        shown.page.route(re.compile("^(http|ws)"), lambda route: route.abort())
        shown.page.goto(Path(results.folder.uri, "report.html").as_uri())
        shown.page.wait_for_selector("body[data-drawn]", timeout=30_000)
        return shown

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def study(make_study: Callable[..., Results]) -> Results:
    """A search over two optimizers: every chart that there is."""
    results = make_study(
        changes=[{"optimizer": "sgd"}, {"optimizer": "adamw"}],
        about={
            "explore": "Random(num_configs=50)",
            "vary": {"batch_size": "", "base_lr": "", "optimizer": ""},
            "expect": [{"kind": "Exponent", "low": 0.9, "high": 1.1, "source": "a", "where": {}}],
        },
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DRAWING_STEP, draw_nothing)  # the browser draws the page's charts
        write_report(results)
    return results


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)` (WCAG 2.2)."""
    parts = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
    linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def colour(element: Locator, name: str) -> str:
    found: str = element.evaluate(f"e => getComputedStyle(e)[{name!r}]")
    return found


def test_every_chart_is_drawn_without_a_network_or_a_complaint(
    study: Results, opened: Callable[..., Opened]
) -> None:
    shown = opened(study)
    charts = shown.page.locator(".chart").all()
    names = {chart.get_attribute("data-name") for chart in charts}
    assert {
        *("surface", "lr_curves", "learning_curves", "ridge", "collapse", "updates_to_target"),
        *("noise_scale", "throughput", "importance", "parallel_coordinates"),
        "surface-optimizer=adamw",
    } <= names
    for chart in charts:
        drawing = chart.locator("svg.marks")
        box = drawing.bounding_box()
        assert box is not None
        assert box["width"] > 200
        assert box["height"] > 80
        assert drawing.locator(".role-mark path").count() > 0, chart.get_attribute("data-name")
        described = chart.locator("xpath=descendant-or-self::*[@role='graphics-document']")
        assert len(described.get_attribute("aria-label") or "") > 40
    assert shown.complaints == []
    assert [url for url in shown.requests if not url.startswith(LOCAL)] == []
    assert len(shown.requests) >= 1  # the page itself: the listener hears


def test_a_tooltip_says_a_cells_numbers(study: Results, opened: Callable[..., Opened]) -> None:
    page = opened(study).page
    page.locator('.chart[data-name="surface"] .mark-rect path').nth(3).hover(force=True)
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for(timeout=5000)
    text = tooltip.inner_text()
    for words in ("batch size", "peak lr", "mean val_auroc", "std over seeds", "diverged"):
        assert words in text


def shown_rows(page: Page) -> set[tuple[str | None, str | None]]:
    """Batch size and peak lr of the rows of settings that are visible, in all tables."""
    rows = page.locator("tr[data-size]:not([hidden])")
    return {(row.get_attribute("data-size"), row.get_attribute("data-lr")) for row in rows.all()}


def dimmed(page: Page, chart: str, mark: str) -> int:
    """How many marks of a chart have been dimmed."""
    marks = page.locator(f'.chart[data-name="{chart}"] .mark-{mark} path').all()
    names = ("opacity", "stroke-opacity", "fill-opacity")
    return sum(min(float(m.get_attribute(name) or 1) for name in names) <= DIM for m in marks)


def says(page: Page, words: str) -> None:
    page.get_by_role("status").get_by_text(words, exact=True).wait_for(timeout=5000)


def test_a_button_shows_one_batch_size_everywhere(
    study: Results, opened: Callable[..., Opened]
) -> None:
    shown = opened(study)
    page = shown.page
    assert {dimmed(page, name, "line") for name in ("lr_curves", "learning_curves")} == {0}
    whole = shown_rows(page)
    button = page.get_by_role("button", name="64", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    says(page, "Charts and tables show batch size 64; Esc shows all.")
    assert button.get_attribute("aria-pressed") == "true"
    assert {size for size, _ in shown_rows(page)} == {"64"}
    assert shown_rows(page) < whole
    page.wait_for_timeout(300)  # Vega draws in the next frame
    num_lines = page.locator('.chart[data-name="lr_curves"] .mark-line path').count()
    assert dimmed(page, "lr_curves", "line") == num_lines - 1
    assert dimmed(page, "learning_curves", "line") > 0
    assert dimmed(page, "ridge", "symbol") > 0
    page.keyboard.press("Escape")
    page.wait_for_timeout(300)
    assert shown_rows(page) == whole
    assert dimmed(page, "lr_curves", "line") == 0
    assert shown.complaints == []


def test_settings_picked_in_the_surface_are_those_of_charts_and_tables(
    study: Results, opened: Callable[..., Opened]
) -> None:
    shown = opened(study)
    page = shown.page
    surface = page.locator('.chart[data-name="surface"] svg.marks')
    surface.scroll_into_view_if_needed()
    box = surface.bounding_box()
    assert box is not None
    middle = {"x": box["width"] * 0.4, "y": box["height"] * 0.55}
    surface.click(position=middle)
    says(page, "Charts and tables show 1 setting; Esc shows all.")
    cells = {(size, lr) for size, lr in shown_rows(page) if lr}
    assert len(cells) == 1
    assert {size for size, _ in shown_rows(page)} == {size for size, _ in cells}
    surface.click(position={**middle, "x": box["width"] * 0.6}, modifiers=["Shift"])
    says(page, "Charts and tables show 2 settings; Esc shows all.")
    assert len({(size, lr) for size, lr in shown_rows(page) if lr}) == 2
    page.wait_for_timeout(300)
    assert dimmed(page, "surface", "rect") > 0
    assert dimmed(page, "lr_curves", "symbol") > 0
    # Another chart's choice takes the place of this one.
    legend = page.locator('.chart[data-name="lr_curves"] .role-legend-symbol path')
    legend.nth(1).click(force=True)
    page.get_by_role("status").get_by_text("batch size").wait_for(timeout=5000)
    assert len({size for size, _ in shown_rows(page)}) == 1
    assert shown.complaints == []


def test_lines_picked_in_parallel_coordinates_are_those_of_charts_and_tables(
    study: Results, opened: Callable[..., Opened]
) -> None:
    shown = opened(study)
    page = shown.page
    chart = page.locator('.chart[data-name="parallel_coordinates"] svg.marks')
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box is not None
    x, y = box["x"] + 10, box["y"] + box["height"] * 0.7
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + box["width"] * 0.3, y + box["height"] * 0.25, steps=4)
    page.mouse.up()
    status = page.get_by_role("status")
    status.get_by_text(re.compile(r"show \d+ trials; Esc")).wait_for(timeout=5000)
    page.wait_for_timeout(300)
    num_lines = page.locator('.chart[data-name="parallel_coordinates"] .mark-line path').count()
    num_dim = dimmed(page, "parallel_coordinates", "line")
    assert 0 < num_dim < num_lines
    assert status.inner_text() == (
        f"Charts and tables show {num_lines - num_dim} trials; Esc shows all."
    )
    assert 0 < len({size for size, _ in shown_rows(page)}) < 5
    assert shown.complaints == []


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_does_not_scroll_sideways(
    study: Results, opened: Callable[..., Opened], width: int
) -> None:
    page = opened(study, width=width).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for chart in page.locator(".chart").all():
        box = chart.locator("svg.marks").bounding_box()
        assert box is not None
        assert box["width"] <= max(width, 500)  # the heat map scrolls in its own frame


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_are_readable(
    study: Results, opened: Callable[..., Opened], scheme: str
) -> None:
    shown = opened(study, scheme=scheme)
    back = colour(shown.page.locator("body"), "backgroundColor")
    assert (luminance(back) < 0.1) == (scheme == "dark")
    for selector in ("p.soft", "main li", ".verdicts .good", "figcaption", "td", "nav a"):
        element = shown.page.locator(selector).first
        assert contrast(colour(element, "color"), back) >= 4.5, selector
    for name in ("surface", "ridge", "importance"):
        label = shown.page.locator(f'.chart[data-name="{name}"] .role-axis-label text').first
        assert contrast(colour(label, "fill"), back) >= 4.5
    fitted = shown.page.locator('.chart[data-name="collapse"] .mark-line path').first
    assert contrast(colour(fitted, "stroke"), back) >= 3
    for line in shown.page.locator('.chart[data-name="lr_curves"] .mark-line path').all():
        assert contrast(colour(line, "stroke"), back) >= 1.8
    assert shown.complaints == []


def test_it_can_be_read_from_the_keyboard(study: Results, opened: Callable[..., Opened]) -> None:
    page = opened(study).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the answer"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    focused = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        focused.add(page.evaluate("document.activeElement.getAttribute('aria-label')"))
        focused.add(page.evaluate("document.activeElement.tagName"))
    assert any("Chart: val_auroc over batch size" in str(each) for each in focused)
    assert {"BUTTON", "SUMMARY"} <= focused
    assert "Best learning rate of each batch size" in focused  # a table, which scrolls
    levels = [int(h.evaluate("e => e.tagName[1]")) for h in page.locator("h1, h2, h3").all()]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_hostile_text_runs_nothing(
    make_study: Callable[..., Results], opened: Callable[..., Opened], hostile: str
) -> None:
    results = make_study(
        seeds=1,
        changes=[{"pretrained": "none"}, {"pretrained": hostile}],
        reason=hostile,
        about={"name": hostile, "space_file": hostile},
    )
    write_report(results)
    shown = opened(results)
    shown.page.locator('.chart[data-name="surface"] .mark-rect path').first.hover(force=True)
    assert shown.page.evaluate("window.broken") is None
    assert hostile in shown.page.locator("h1").inner_text()
    assert shown.complaints == []


def test_it_is_printed_on_two_pages(study: Results, opened: Callable[..., Opened]) -> None:
    page = opened(study).page
    margin: Any = dict.fromkeys(("top", "bottom", "left", "right"), "1.2cm")
    printed = page.pdf(format="A4", margin=margin)
    assert len(re.findall(rb"/Type\s*/Page[^s]", printed)) == 2
    page.emulate_media(media="print")
    for shown in (".advice", "#surface svg.marks", ".answer", "#lr-curves svg.marks"):
        assert page.locator(shown).first.is_visible(), shown
    for hidden in ("nav", ".picker", "#made", "summary"):
        assert not page.locator(hidden).first.is_visible(), hidden


def test_one_setting_is_the_best_in_colour_too(
    make_study: Callable[..., Results], opened: Callable[..., Opened]
) -> None:
    results = make_study(name="alone", batch_sizes=(16,), lrs=(0.1,), seeds=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DRAWING_STEP, draw_nothing)
        write_report(results)
    shown = opened(results)
    yellow = "rgb(253, 231, 37)"  # the end of viridis
    assert shown.page.locator(f'.mark-rect path[fill="{yellow}"]').count() == 1
    assert shown.complaints == []
