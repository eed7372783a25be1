"""The files for papers: tables as LaTeX and CSV, charts as PDF."""

import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from search.report.findings import Findings, of_study, of_table
from search.report.latex import booktabs, cell, escape, estimate, estimates, rate, rounded
from search.report.paper_tables import PaperTable, paper_tables
from search.report.report import write_report
from search.results.tables import Results

MakeStudy = Callable[..., Results]
NAMES = {"surface", "ridge", "scaling", "cost_to_target", "best_configurations"}
PREVIEW = "A preview, not a full study."


def tables_of(findings: Findings) -> dict[str, PaperTable]:
    return {table.name: table for table in paper_tables(findings)}


def rows_of(latex: str) -> list[list[str]]:
    """The cells of a table, header first; fails where LaTeX would."""
    bare = re.sub(r"\\.", "", latex)
    depth = 0
    for mark in bare:
        depth += {"{": 1, "}": -1}.get(mark, 0)
        assert depth >= 0, "a brace closes what was not open"
    assert depth == 0
    assert not re.search(r"(?<!\\)[$#_^~]", latex.replace("% needs", ""))
    begun = re.findall(r"\\begin\{(\w+)\}", latex)
    assert begun == re.findall(r"\\end\{(\w+)\}", latex)[::-1]
    for rule in ("toprule", "midrule", "bottomrule"):
        assert latex.count(f"\\{rule}\n") == 1
    (sides,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", latex)
    body = latex.partition("\\toprule\n")[2].partition("\\bottomrule")[0]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    rows = [re.split(r"(?<!\\)&", line.removesuffix(r"\\")) for line in lines]
    rows = [row for row in rows if "multicolumn" not in row[-1]]
    assert {len(row) for row in rows} == {len(sides)}
    return [[each.strip() for each in row] for row in rows]


def test_numbers_are_rounded_by_their_intervals() -> None:
    assert estimate(0.85213, 0.84101, 0.86249) == "0.852 [0.841, 0.862]"
    assert estimate(0.85213, 0.8, 0.9) == "0.85 [0.80, 0.90]"
    assert estimate(1234.5, 1000, 1500) == "1234 [1000, 1500]"
    assert estimate(0.85213) == "0.852"
    assert estimate(0.85213, 0.85213, 0.85213) == "0.852 [0.852, 0.852]"
    assert estimate(math.nan, 0, 1) == "--"
    assert estimates([0.00021, 0.00034], [math.nan] * 2, [math.nan] * 2) == ["0.000210", "0.000340"]
    assert estimates([0.5, 0.6], [0.4, math.nan], [0.6, math.nan]) == ["0.50 [0.40, 0.60]", "0.60"]
    assert rate(0.03921, 0.0123, 0.131) == "0.039 [0.012, 0.13]"
    assert (rate(0.01875), rate(math.nan)) == ("0.019", "--")
    assert [rounded(x) for x in (120.4, 0.0123, 1e-6, math.nan)] == ["120", "0.012", "1e-06", "--"]
    assert [cell(x) for x in (None, math.nan, True, 3, np.float64(0.5), "sgd")] == [
        *("--", "--", "yes", "3", "0.5", "sgd")
    ]


def test_nothing_in_a_text_is_a_command() -> None:
    assert escape("val_auroc 95 % & #1 $x^2$ {~} a\\b\nc <d>") == (
        r"val\_auroc 95 \% \& \#1 \$x\textasciicircum{}2\$ \{\textasciitilde{}\} "
        r"a\textbackslash{}b c \textless{}d\textgreater{}"
    )
    hostile = r"\input{x} & 50% \\ _ [1]"
    rows = pd.DataFrame({"a_b": [hostile, "[2]"], "n": [1, 2]})
    latex = booktabs(rows, {"a_b": "a_b", "n": "n & m"}, caption=hostile, label="tab:x")
    assert r"\input" not in latex
    head, first, second = rows_of(latex)
    assert head == [r"a\_b", r"n \& m"]
    assert first[1] == "1"
    assert second[0] == "{}[2]"  # not the argument of the line break before it
    assert latex.startswith("% needs \\usepackage{booktabs}\n")


def test_a_grid_has_the_tables_of_a_paper(make_study: MakeStudy) -> None:
    findings = of_study(make_study())
    tables, best = tables_of(findings), findings.analyses[0]
    assert set(tables) == NAMES
    for table in tables.values():
        rows = rows_of(table.latex)
        assert len(rows) > 1
        assert r"\label{tab:made-" in table.latex
        assert "made" in table.latex.partition(r"\caption{")[2]
        read = pd.read_csv(io.StringIO(table.csv))
        if "verdict" in read:
            read["verdict"] = read["verdict"].fillna("")
        pd.testing.assert_frame_equal(read, table.numbers, check_dtype=False, rtol=1e-14)
    surface = tables["surface"].numbers
    assert list(surface["mean"].dropna()) == list(best.cells["mean"].dropna())
    assert {"batch_size", "base_lr", "peak_lr", "sd", "n", "low", "high"} <= set(surface)
    head, *rows = rows_of(tables["surface"].latex)
    assert head == [r"base\_lr", "16", "32", "64", "128", "256"]
    assert [row[0] for row in rows] == ["0.03", "0.1", "0.3", "1", "3"]
    known = best.cells.set_index(["batch_size", "grid_lr"]).loc[(16, 0.3)]
    assert rows[2][1] == f"{known['mean']:.3f} ({known['std']:.3f}, n=3)"
    assert rows[4][5].endswith("n=2)")  # one seed of it diverged
    ridge = tables["ridge"].numbers
    assert list(ridge["best_lr"]) == list(best.ridge["vertex"])
    first = ridge.iloc[0]
    assert rows_of(tables["ridge"].latex)[1][1] == rate(
        first["best_lr"], first["lr_low"], first["lr_high"]
    )
    verdicts = tables["scaling"].numbers.set_index("rule")["verdict"]
    assert verdicts[["constant", "sqrt", "linear"]].to_list() == [
        best.exponent.verdict(rule) for rule in ("constant", "sqrt", "linear")
    ]
    leaders = tables["best_configurations"]
    assert list(leaders.numbers["mean"]) == list(findings.leaders["mean"])
    assert len(rows_of(leaders.latex)) == 11
    assert "the test score is reported, and ranked nothing" in leaders.latex
    assert PREVIEW not in leaders.latex


def test_cells_without_scores_say_why(make_study: MakeStudy) -> None:
    results = make_study(seeds=1)
    (latex,) = [t.latex for t in paper_tables(of_study(results)) if t.name == "surface"]
    assert rows_of(latex)[5][5] == "div."
    assert "n = 1 seed;" in latex
    assert "standard deviation" not in latex
    assert paper_tables(of_study(make_study(status="failed", val_auroc=None))) == []


def test_small_scores_keep_their_digits(make_study: MakeStudy) -> None:
    findings = of_study(make_study())
    best = findings.analyses[0]
    columns = ["mean", "std", "low", "high"]
    cells = best.cells.assign(**{name: best.cells[name] * 1e-4 for name in columns})
    ridge = best.ridge.assign(mean=best.ridge["mean"] * 1e-4)
    leaders = findings.leaders
    leaders = leaders.assign(**{name: leaders[name] * 1e-4 for name in columns})
    small = replace(findings, analyses=[replace(best, cells=cells, ridge=ridge)], leaders=leaders)
    tables = tables_of(small)
    known = cells.set_index(["batch_size", "grid_lr"]).loc[(16, 0.3)]
    mean, sd, _ = rows_of(tables["surface"].latex)[3][1].replace(",", " (").split(" (")
    assert math.isclose(float(mean), known["mean"], rel_tol=5e-3)
    assert math.isclose(float(sd), known["std"], rel_tol=0.5)
    assert float(rows_of(tables["ridge"].latex)[1][-1]) > 0
    head, *rows = rows_of(tables["best_configurations"].latex)
    assert all(float(row[head.index("sd")]) > 0 for row in rows)


def test_columns_left_out_are_said(make_study: MakeStudy) -> None:
    findings = of_study(make_study())
    best = findings.analyses[0]
    parts = [best.cells, *(best.cells.assign(batch_size=best.cells["batch_size"] * 32),)]
    parts.append(best.cells.assign(batch_size=best.cells["batch_size"] * 1024))
    wide = replace(findings, analyses=[replace(best, cells=pd.concat(parts, ignore_index=True))])
    latex = tables_of(wide)["surface"].latex
    assert len(rows_of(latex)[0]) == 11
    assert "The 5 largest batch sizes are in the CSV only." in latex
    assert "largest batch size" not in tables_of(findings)["surface"].latex


def test_a_sparse_surface_is_a_list(make_study: MakeStudy) -> None:
    findings = of_study(make_study(seeds=1))
    best = findings.analyses[0]
    cells = best.cells.assign(grid_lr=np.arange(25.0), lr=np.arange(25.0))
    sparse = replace(findings, analyses=[replace(best, cells=cells)])
    head, *rows = rows_of(tables_of(sparse)["surface"].latex)
    assert head == ["batch size", r"base\_lr", "mean"]
    assert len(rows) == 24  # one diverged
    assert len(tables_of(sparse)["surface"].numbers) == 25


def test_previews_and_synthetic_patches_are_called_so(make_study: MakeStudy) -> None:
    preview = of_study(make_study(seeds=1, about={"preview": True}))
    assert all(PREVIEW in table.latex for table in paper_tables(preview))
    drawn = of_study(make_study(seeds=1, changes=[{"dataset": "synthetic"}]))
    assert all("SYNTHETIC PATCHES" in table.latex for table in paper_tables(drawn))


def test_of_several_surfaces_it_is_the_best(make_study: MakeStudy) -> None:
    results = make_study(seeds=1, changes=[{"optimizer": "sgd"}, {"optimizer": "adamw"}])
    tables = tables_of(of_study(results))
    assert "best surface: optimizer=sgd." in tables["surface"].latex
    assert {"sgd", "adamw"} == set(tables["best_configurations"].numbers["optimizer"])


def test_a_table_of_ones_own_has_them_too(tmp_path: Path) -> None:
    rows = [(b, lr, 0.9 - abs(lr - 0.1) / b) for b in (16, 32, 64) for lr in (0.05, 0.1, 0.2)]
    path = tmp_path / "my_runs.csv"
    pd.DataFrame(rows, columns=["bs", "rate", "acc"]).to_csv(path, index=False)
    tables = tables_of(of_table(path, batch_size="bs", lr="rate", metric="acc"))
    assert {"surface", "best_configurations"} <= set(tables)
    assert "peak_lr" not in tables["surface"].numbers
    assert [rows_of(table.latex) for table in tables.values()]


@pytest.mark.draws
def test_the_report_writes_them(make_study: MakeStudy) -> None:
    results = make_study(seeds=2, batch_sizes=(16, 64), lrs=(0.1, 0.3))
    write_report(results)
    folder = Path(results.folder.uri)
    charts = {path.stem for path in (folder / "charts").glob("*.svg")}
    assert charts == {path.stem for path in (folder / "charts").glob("*.pdf")}
    assert "tuning_curve" not in charts  # four settings are too few
    for name in charts:
        assert (folder / "charts" / f"{name}.pdf").read_bytes().startswith(b"%PDF-")
    tables = {path.name for path in (folder / "tables").iterdir()}
    names = {table.name for table in paper_tables(of_study(results))}
    assert tables == {f"{name}.{kind}" for name in names for kind in ("tex", "csv")}
    assert (folder / "methods.md").read_text().startswith("# Methods of made\n")
    assert "tuning_curve" in json.loads((folder / "report.json").read_text())
