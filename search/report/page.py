"""Findings -> report.html: one file that opens from disk without a network."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from search.report import sections
from search.report.by_model import by_model_section
from search.report.charts.gallery import Picture, surface_name
from search.report.charts.surface import theme
from search.report.expected import expected_section
from search.report.findings import Findings, cautions_of, conclusions_of
from search.report.markup import bullets, paragraph, script_data, section, text

# No network requests. Vega compiles a chart's expressions to functions (unsafe-eval).
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)
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
<body>
<a class="skip" href="#main">Skip to the answer</a>
"""


@cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, escaped for a script element."""
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script.replace("</script", "<\\/script")


def render(
    findings: Findings,
    pictures: Mapping[str, Picture],
    others: Mapping[str, Mapping[str, Picture]],
    *,
    refresh_s: int | None = None,
) -> str:
    """The page. `others` has the pictures of the other surfaces by name."""
    parts = _sections(findings, pictures, others)
    titles = [(name, title) for name, title, inside in parts if inside]
    links = "".join(f'<li><a href="#{name}">{text(title)}</a></li>' for name, title in titles)
    every = {**pictures, **{n: p for group in others.values() for n, p in group.items()}}
    title = f"{findings.name}: batch size and learning rate"
    refresh = f'<meta http-equiv="refresh" content="{refresh_s}">\n' if refresh_s else ""
    own = Path(__file__).parent
    return "\n".join(
        [
            HEAD.format(
                policy=POLICY,
                refresh=refresh,
                title=text(title),
                css=(own / "page.css").read_text(encoding="utf-8"),
            ),
            f"<header><h1>{text(title)}</h1>",
            paragraph(_counts(findings), kind="soft"),
            _loud(findings),
            f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>',
            '<main id="main" tabindex="-1">',
            _answer(findings),
            *(section(name, title, inside) for name, title, inside in parts),
            "</main>",
            "<footer>report.json in this folder has every number, and charts/ has every chart as "
            "PNG and SVG. Made by search.report; this page makes no network requests.</footer>",
            script_data("themes", {"light": theme(dark=False), "dark": theme(dark=True)}),
            *(script_data(f"spec-{n}", _fluid(p)) for n, p in every.items()),
            f"<script>{bundle()}</script>",
            f'<script type="module">{(own / "page.js").read_text(encoding="utf-8")}</script>',
            "</body></html>\n",
        ]
    )


def _sections(
    findings: Findings,
    pictures: Mapping[str, Picture],
    others: Mapping[str, Mapping[str, Picture]],
) -> list[tuple[str, str, str]]:
    """Id, title and content of each section; empty sections are not shown."""
    best = findings.analyses[0]
    metric = findings.metric

    def drawn(name: str) -> str:
        return figure(pictures[name]) if name in pictures else ""

    has_cells = not best.cells.empty
    return [
        ("expected", "Expected and measured", expected_section(findings)),
        ("by-model", "Ridge by the model", by_model_section(findings)),
        ("ablation", "Step by step", sections.ablation_tables(findings)),
        (
            "groups",
            "Surfaces compared",
            drawn("best_by_batch_size") + sections.groups_table(findings),
        ),
        (
            "surface",
            "Surface",
            drawn("surface") + (sections.surface_table(best) if has_cells else ""),
        ),
        ("lr-curves", "Learning rate curves", drawn("lr_curves")),
        ("learning-curves", "Learning curves", drawn("learning_curves")),
        (
            "ridge",
            "Ridge",
            drawn("ridge") + _ridge(findings),
        ),
        ("collapse", "Collapse", drawn("collapse")),
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


def _answer(findings: Findings) -> str:
    return (
        '<div class="answer"><div><h2>The answer</h2>'
        f'{bullets(conclusions_of(findings))}</div><div class="cautions"><h2>Caveats</h2>'
        f"{bullets(cautions_of(findings))}</div></div>"
    )


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
