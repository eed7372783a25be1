"""Findings -> report.html: one file that opens from disk without a network."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

from search.report import sections
from search.report.advised import advice_lines, what_was_trained
from search.report.by_model import by_model_section
from search.report.charts.gallery import Picture, surface_name
from search.report.charts.surface import theme
from search.report.expected import expected_section
from search.report.findings import Findings, cautions_of, conclusions_of
from search.report.markup import bullets, paragraph, script_data, section, text
from search.report.tuning_curve import tuning_section
from trainable.host import storage
from trainable.host.storage import user_cache_dir

# No network requests. Vega compiles a chart's expressions to functions (unsafe-eval).
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)
VEGA = "vl-convert-python"  # the package that brings Vega
BUNDLE_END = "\n// whole"  # of the file: it was written to its end
POLICY_LIVE = f"{POLICY}; connect-src 'self'"  # a served page asks its server what is new
MOST_BUTTONS = 24  # batch sizes that a reader can pick by a button
FEW = 3  # fewer batch sizes than this have no line through them
# What a section that has nothing to show would need.
NEEDS = {
    "learning-curves": "the evaluations of each trial",
    "ridge": "scores at two learning rates of a batch size",
    "collapse": "three batch sizes, with three learning rates each",
    "target": "the evaluations of two batch sizes that reach a common score",
    "noise-scale": "trials that measured the noise of their gradients",
    "interaction": "a grid of two batch sizes by two learning rates",
    "equal": "the evaluations of each trial",
}
COMMAND = re.compile(r": (python -m search\.run [^<]*)</li>")
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
{refresh}<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{css}
</style>
</head>
<body{version}>
<a class="skip" href="#main">Skip to the answer</a>
"""


@cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, escaped for a script element.

    To make it takes more than a second, so it is kept in the user's cache for the next report.
    """
    import vl_convert

    folder, name = storage.folder_at(str(user_cache_dir())), f"vega-{metadata.version(VEGA)}.js"
    with suppress(OSError, UnicodeDecodeError):
        kept = storage.read(folder, name).decode()
        if kept.endswith(BUNDLE_END):
            return kept
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    script = script.replace("</script", "<\\/script") + BUNDLE_END
    with suppress(OSError):
        storage.write_once(folder, name, script.encode(), is_lasting=False)
    return script


def render(
    findings: Findings,
    pictures: Mapping[str, Picture],
    others: Mapping[str, Mapping[str, Picture]],
    *,
    refresh_s: int | None = None,
    version: str = "",
) -> str:
    """The page. `others` has the pictures of the other surfaces by name.

    With `refresh_s` it reloads itself. A page
    with a `version` is served, and asks its server for a newer one.
    """
    parts = _sections(findings, pictures, others)
    titles = [(name, title) for name, title, inside in parts if inside]
    links = "".join(f'<li><a href="#{name}">{text(title)}</a></li>' for name, title in titles)
    title = f"{findings.name}: batch size and learning rate"
    return document(
        title,
        [
            f"<header><h1>{text(title)}</h1>",
            paragraph(what_was_trained(findings)),
            paragraph(_counts(findings), kind="soft"),
            _loud(findings),
            f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>',
            '<main id="main" tabindex="-1">',
            '<div id="now"></div><div id="report">' if version else '<div id="report">',
            _advice(findings),
            _picker(findings),
            *(section(name, title, inside) for name, title, inside in parts[:1]),
            _answer(findings),
            *(section(name, title, inside) for name, title, inside in parts[1:]),
            section("missing", "What these trials cannot show", _missing(findings, parts)),
            "</div></main>",
        ],
        {**pictures, **{n: p for group in others.values() for n, p in group.items()}},
        numbers="report.json",
        refresh_s=refresh_s,
        version=version,
    )


def document(
    title: str,
    body: Sequence[str],
    pictures: Mapping[str, Picture],
    *,
    numbers: str,
    refresh_s: int | None = None,
    version: str = "",
) -> str:
    """A whole page with the data of its pictures; `numbers` is the file that has its numbers."""
    own = Path(__file__).parent
    refresh = f'<meta http-equiv="refresh" content="{refresh_s}">\n' if refresh_s else ""
    script = (own / "page.js").read_text(encoding="utf-8")
    script += (own / "live.js").read_text(encoding="utf-8") if version else ""
    css = (own / "page.css").read_text(encoding="utf-8")
    return "\n".join(
        [
            HEAD.format(
                policy=POLICY_LIVE if version else POLICY,
                refresh=refresh,
                title=text(title),
                css=css,
                version=f' data-version="{version}"' if version else "",
            ),
            *body,
            f"<footer>{numbers} in this folder has every number, charts/ has every chart as PNG, "
            "SVG and PDF. Made by search.report; this page makes no network requests.</footer>",
            script_data("themes", {"light": theme(dark=False), "dark": theme(dark=True)}),
            *(script_data(f"spec-{name}", _fluid(p)) for name, p in pictures.items()),
            f"<script>{bundle()}</script>",
            f'<script type="module">{script}</script>',
            "</body></html>\n",
        ]
    )


def _sections(
    findings: Findings,
    pictures: Mapping[str, Picture],
    others: Mapping[str, Mapping[str, Picture]],
) -> list[tuple[str, str, str]]:
    """Id, title and content of each section; empty sections are not shown.

    The first one, the picture that most readers look for, comes before the long text.
    """
    best = findings.analyses[0]
    metric = findings.metric

    def drawn(name: str) -> str:
        return figure(pictures[name]) if name in pictures else ""

    has_cells = not best.cells.empty
    has_line = best.cells["batch_size"].nunique() >= FEW
    return [
        (
            "surface",
            "Surface",
            drawn("surface") + (sections.surface_table(best) if has_cells else ""),
        ),
        ("expected", "Expected and measured", expected_section(findings)),
        ("by-model", "Ridge by the model", by_model_section(findings)),
        ("ablation", "Step by step", sections.ablation_tables(findings)),
        (
            "groups",
            "Surfaces compared",
            drawn("best_by_batch_size") + sections.groups_table(findings),
        ),
        ("lr-curves", "Learning rate curves", drawn("lr_curves")),
        ("learning-curves", "Learning curves", drawn("learning_curves")),
        (
            "ridge",
            "Ridge",
            (drawn("ridge") if has_line else "") + _ridge(findings),
        ),
        ("collapse", "Collapse", drawn("collapse") if has_line else ""),
        (
            "target",
            f"Cost of reaching a target {metric}",
            drawn("updates_to_target") + _target(findings),
        ),
        ("noise-scale", "Noise scale", drawn("noise_scale") + sections.noise_table(best)),
        ("interaction", "Interaction", sections.interaction_table(best) if has_cells else ""),
        ("equal", "At equal images, updates and time", sections.equal_table(best)),
        ("cost", "Throughput and cost", drawn("throughput") + sections.cost_table(findings)),
        (
            "search",
            "Importance of the fields",
            drawn("importance") + drawn("parallel_coordinates"),
        ),
        ("tuning-curve", "Tuning curve", tuning_section(findings, drawn("tuning_curve"))),
        ("leaders", "Best configurations", sections.leaders_table(findings)),
        ("troubles", "Failures and divergence", sections.troubles(findings)),
        ("stopping", "Was stopping safe?", sections.stopping_table(findings)),
        ("others", "Other surfaces", _others(others)),
        ("unplanned", "Other trials in this folder", sections.unplanned_table(findings)),
        ("made", "How it was made", sections.provenance(findings)),
    ]


def figure(picture: Picture) -> str:
    """A chart's element with title and caption; Vega adds the description to the drawing."""
    narrow = picture.spec.get("usermeta", {}).get("min_width_px", 0)
    wide = f' style="min-width:{narrow}px"' if narrow else ""
    return (
        f'<figure aria-labelledby="title-{text(picture.name)}"><h3 id="title-{text(picture.name)}">'
        f'{text(picture.title)}</h3><div class="scroll" tabindex="0" role="region" '
        f'aria-label="Chart: {text(picture.title)}"><div class="chart" '
        f'data-spec="spec-{text(picture.name)}" data-name="{text(picture.name)}"{wide}></div></div>'
        f"<figcaption>{text(picture.caption)}</figcaption></figure>"
    )


def _fluid(picture: Picture) -> dict[str, object]:
    """The specification without colours, which the page sets, and as wide as its element."""
    spec = {name: value for name, value in picture.spec.items() if name not in ("config", "title")}
    return {**spec, "width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}


def _counts(findings: Findings) -> str:
    trials = findings.trials
    counts = trials["status"].value_counts().to_dict()
    statuses = ", ".join(f"{n} {status}" for status, n in counts.items())
    surface = surface_name(findings.analyses[0])
    words = f"{statuses or 'no trial finished yet'}; metric {findings.metric} ({findings.mode} is "
    words += "best)"
    words += f"; charts and conclusions are of the best surface, {surface}" if surface else ""
    return f"{words}."


def _loud(findings: Findings) -> str:
    if not findings.synthetic:
        return ""
    return paragraph(
        "dataset=synthetic: trained on synthetic patches, not on real images. These results say "
        "nothing about real data.",
        kind="loud",
    )


def _advice(findings: Findings) -> str:
    lines = advice_lines(findings)
    if not lines:
        return ""
    listed = COMMAND.sub(r": <code>\1</code></li>", bullets(lines))
    return f'<div class="advice"><h2>What to use</h2>{listed}</div>'


def _picker(findings: Findings) -> str:
    """A button for each batch size: page.js shows these alone in charts and tables."""
    sizes = sorted({int(size) for size in findings.analyses[0].cells["batch_size"]})
    if not 1 < len(sizes) <= MOST_BUTTONS:
        return ""
    buttons = "".join(
        f'<button type="button" aria-pressed="false" data-size="{size}">{size}</button>'
        for size in sizes
    )
    return (
        '<div class="picker" role="group" aria-label="Batch sizes to show">Show batch size '
        f'<button type="button" aria-pressed="true" data-size="">all</button>{buttons}'
        '<span class="picked" role="status"></span></div>'
    )


def _answer(findings: Findings) -> str:
    return (
        '<div class="answer"><div><h2>The answer</h2>'
        f'{bullets(conclusions_of(findings))}</div><div class="cautions"><h2>Caveats</h2>'
        f"{bullets(cautions_of(findings))}</div></div>"
    )


def _missing(findings: Findings, parts: Sequence[tuple[str, str, str]]) -> str:
    """A line for each section of a surface that has nothing to show: what it would need."""
    if findings.analyses[0].cells.empty:
        return ""
    empty = [(name, title) for name, title, inside in parts if not inside and name in NEEDS]
    return bullets([f"{title}: needs {NEEDS[name]}." for name, title in empty])


def _ridge(findings: Findings) -> str:
    best = findings.analyses[0]
    tables = (sections.ridge_table, sections.lr_table, sections.rules_table)
    return "".join(table(best) for table in tables)


def _target(findings: Findings) -> str:
    best = findings.analyses[0]
    why = best.front.why if len(best.needed) else ""
    reason = paragraph(f"Critical batch size: {why}.", kind="soft") if why else ""
    return sections.target_table(best) + reason


def _others(others: Mapping[str, Mapping[str, Picture]]) -> str:
    return "".join(
        f"<h3>{text(name)}</h3>" + "".join(figure(picture) for picture in pictures.values())
        for name, pictures in others.items()
    )
