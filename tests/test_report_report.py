import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from commands import ROOT, until
from rich.console import Console

from search.analysis.analysis import analyse
from search.report.__main__ import main, parser
from search.report.charts.surface import heat_map
from search.report.findings import of_study
from search.report.report import other_pictures, write, write_report
from search.results.tables import TRIALS, Results, epochs, trials
from trainable.host.storage import folder_at

pytestmark = pytest.mark.usefixtures("no_drawing")
MakeStudy = Callable[..., Results]
# The command, without drawing charts each time.
WATCH = (
    f"import sys; sys.path.append({str(Path(__file__).parent)!r})"
    """
import search.report.report
from no_drawing import draw_nothing
search.report.report.drawing = draw_nothing
from search.report.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
)


def page(results: Results) -> str:
    return Path(results.folder.uri, "report.html").read_text()


def numbers(results: Results) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(results.folder.uri, "report.json").read_text())
    return found


def bare(html: str) -> str:
    """The page without what is in its scripts and styles."""
    return re.sub(r"(<(script|style)[^>]*>).*?</\2>", r"\1</\2>", html, flags=re.DOTALL)


def visible(html: str) -> str:
    """The page's own text."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", bare(html)))


def section(html: str, identity: str) -> str:
    (found,) = re.findall(rf'<section [^>]*id="{identity}">.*?</section>', html, flags=re.DOTALL)
    return visible(found)


def test_flags_are_the_contracts() -> None:
    flags = {option for action in parser()._actions for option in action.option_strings}
    assert flags == {
        *("-h", "--help", "--metric", "--watch", "--table", "--batch-size", "--lr", "--mode"),
        *("--out", "--margin", "--fields", "--seed-column", "--run-column", "--study"),
        *("--serve", "--port"),
    }


@pytest.mark.draws
def test_a_grid_has_page_numbers_and_charts(
    make_study: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    results = make_study()
    assert main([results.folder.uri]) == 0
    assert "report.html" in capsys.readouterr().out
    said = numbers(results)
    analysis = analyse(trials(results), epochs(results), metric="val_auroc", mode="max")
    assert len(said["surface"]) == 25
    keys = {"batch_size", "lr", "lr_low", "lr_high", "bracketed"}
    assert all(keys <= set(row) for row in said["ridge"])
    assert {"value", "low", "high", "scope"} <= set(said["exponent"])
    assert said["exponent"]["value"] == analysis.exponent.value
    assert said["exponent"]["value"] == pytest.approx(1.0, abs=0.1)  # as the tables are made
    assert set(said["collapse"]["r2_at"]) == {"0", "0.5", "1"}
    shares = [said["interaction"][f"share_{n}"] for n in ("batch_size", "lr", "interaction")]
    assert sum(shares) == pytest.approx(1)
    assert said["best_set"]
    assert said["cautions"]
    text = visible(page(results))
    for sentence in said["conclusions"]:
        assert sentence in text
    names = {f.stem for f in Path(results.folder.uri, "charts").glob("*.svg")}
    assert names == {
        *("surface", "lr_curves", "ridge", "learning_curves", "collapse", "updates_to_target"),
        *("noise_scale", "throughput", "tuning_curve"),
    }
    for name in names:
        png = Path(results.folder.uri, "charts", f"{name}.png").read_bytes()
        assert png[:4] == b"\x89PNG"
    # The diamond's best cell has its mean on the drawing.
    best = max(row["mean"] for row in said["surface"] if row["mean"] is not None)
    assert f">{best:.3f}<" in Path(results.folder.uri, "charts", "surface.svg").read_text()


def test_the_page_loads_nothing_from_elsewhere(make_study: MakeStudy) -> None:
    results = make_study(seeds=1)
    write_report(results)
    html = page(results)
    assert "default-src 'none'" in html
    loaded = re.findall(r'<(?:script|img|iframe|link)[^>]*(?:src|href)="([^"]*)"', bare(html))
    assert loaded == ["data:,"]
    assert len(html.encode()) < 8e6


def test_text_of_the_tables_stays_text(make_study: MakeStudy, hostile: str) -> None:
    results = make_study(
        seeds=1,
        status="failed",
        val_auroc=None,
        reason=hostile,
        about={"space_file": hostile, "name": hostile},
    )
    write_report(results)
    html = page(results)
    assert hostile not in html
    assert "<img" not in bare(html)
    assert html.count("&lt;/script&gt;&lt;script&gt;window.broken=1") >= 3
    results = make_study("other", changes=[{"pretrained": "none"}, {"pretrained": hostile}])
    write_report(results)
    html = page(results)
    assert "</script><script>window.broken" not in html
    assert r"\u003c/script\u003e\u003cscript\u003ewindow.broken=1" in html  # a chart's description


def test_what_varies_beside_has_a_surface_each(make_study: MakeStudy) -> None:
    results = make_study(seeds=1, changes=[{"optimizer": "sgd"}, {"optimizer": "adamw"}])
    write_report(results)
    said = numbers(results)
    assert [each["of"] for each in said["groups"]] == [{"optimizer": "sgd"}, {"optimizer": "adamw"}]
    assert said["of"] == {"optimizer": "sgd"}
    assert len(said["surface"]) == 25
    assert said["surface"] == said["groups"][0]["surface"]
    assert "optimizer=adamw" in section(page(results), "groups")
    assert Path(results.folder.uri, "charts", "ridge-optimizer=adamw.png").exists()
    low = make_study("low", seeds=1, changes=[{"optimizer": "adamw"}, {"optimizer": "sgd"}])
    assert [a.of["optimizer"] for a in of_study(low, metric="val_loss").analyses] == [
        *("adamw", "sgd"),
    ]


def test_variants_are_named(make_study: MakeStudy) -> None:
    each = {"short": {"epochs": 4}, "long": {"epochs": 8}}
    about = {"explore": f"Variants(each={each!r})"}
    results = make_study(seeds=2, changes=[{"epochs": 4}, {"epochs": 8}], about=about)
    found = of_study(results).analyses
    assert [dict(one.of) for one in found] == [{"step": "short"}, {"step": "long"}]
    assert [len(one.trials) for one in found] == [50, 50]


def test_an_ablation_is_a_table_of_steps(make_study: MakeStudy) -> None:
    steps = {
        "plain": {},
        "+ decay <b>": {"weight_decay": 0.5},
        "+ smooth": {"label_smoothing": 0.1},
    }
    results = make_study(
        lrs=[0.3],
        batch_sizes=[32, 64],
        changes=[{}, {"weight_decay": 0.5}, {"weight_decay": 0.5, "label_smoothing": 0.1}],
        noise=0.02,
        about={
            "explore": f"Ablation(steps={steps!r})",
            "vary": {"batch_size": {"grid_search": [32, 64]}},
        },
    )
    write_report(results)
    said = numbers(results)
    assert list(said["ablation"]) == ["batch_size=32", "batch_size=64"]
    rows = said["ablation"]["batch_size=32"]
    table = trials(results)
    table = table[table["batch_size"] == 32]
    means = table.groupby(["weight_decay", "label_smoothing"])["val_auroc"].mean()
    plain, decay = means[(0.0, 0.0)], means[(0.5, 0.0)]
    assert [row["step"] for row in rows] == list(steps)
    assert rows[0]["mean"] == pytest.approx(plain)
    assert rows[1]["change"] == pytest.approx(decay - plain)
    assert f"{decay - plain:+.4f}" in section(page(results), "ablation")
    assert "From plain to + smooth at batch_size=32" in said["conclusions"][0]
    assert said["surface"] == []
    assert said["exponent"]["value"] is None
    assert "+ decay &lt;b&gt;" in page(results)


def test_a_search_has_importance(make_study: MakeStudy) -> None:
    about = {"explore": "Optuna(num_configs=25)", "vary": {"batch_size": "", "base_lr": ""}}
    results = make_study(seeds=1, about=about)
    write_report(results)
    found = {row["field"]: row["importance"] for row in numbers(results)["importance"]}
    assert found["base_lr"] > 0.6 > found["batch_size"]  # the tables depend on the rate alone
    names = {f.stem for f in Path(results.folder.uri, "charts").glob("*.svg")}
    assert {"importance", "parallel_coordinates"} <= names


def test_a_broken_file_is_named_and_the_rest_reported(make_study: MakeStudy) -> None:
    results = make_study()
    folder = Path(results.folder.uri)
    (folder / "trials" / "broken.parquet").write_bytes(b"no parquet")
    write_report(results)
    assert len(numbers(results)["surface"]) == 25
    assert any("trials/broken.parquet cannot be read" in c for c in numbers(results)["cautions"])
    assert "trials/broken.parquet cannot be read" in visible(page(results))
    (folder / "study.json").write_text("{")
    write_report(results)
    assert "study.json cannot be read" in visible(page(results))


def test_an_empty_study_and_one_of_divergence_alone_have_a_report(make_study: MakeStudy) -> None:
    results = make_study(batch_sizes=[])
    write_report(results)
    assert "No trial has a score" in visible(page(results))
    assert numbers(results)["surface"] == []
    results = make_study("all", seeds=1, status="diverged", val_auroc=None)
    write_report(results)
    assert "No trial has a score" in visible(page(results))
    assert "the loss is NaN" in section(page(results), "troubles")
    assert {row["diverged"] for row in numbers(results)["surface"]} == {1}


def test_synthetic_is_said_loudly(make_study: MakeStudy) -> None:
    results = make_study(seeds=1, dataset="synthetic")
    write_report(results)
    assert '<p class="loud">dataset=synthetic' in page(results)
    real = make_study("real", seeds=1)
    write_report(real)
    assert 'class="loud"' not in page(real)


def test_trials_of_two_versions_of_the_code_are_cautioned_about(make_study: MakeStudy) -> None:
    results = make_study(seeds=1, code_version="a")
    write_report(results)
    assert "code_version" not in " ".join(numbers(results)["cautions"])
    file = Path(results.folder.uri) / "trials" / "all.parquet"
    rows = pd.read_parquet(file)
    rows.loc[0, "code_version"] = "b"
    rows.to_parquet(file)
    write_report(results)
    assert "2 versions of the code trained these trials" in " ".join(numbers(results)["cautions"])


def test_two_data_sets_in_one_folder_are_not_averaged(make_study: MakeStudy) -> None:
    results = make_study(seeds=1)
    folder = Path(results.folder.uri)
    rows = pd.read_parquet(folder / "trials")
    keys = rows["trial_key"].str.replace("made", "real")
    more = rows.assign(dataset="synthetic", data_fingerprint="def", trial_key=keys)
    more.to_parquet(folder / "trials" / "more.parquet")
    found = of_study(results)
    assert {each.of["dataset"] for each in found.analyses} == {"pcam", "synthetic"}
    assert all(each.cells["n"].max() == 1 for each in found.analyses)
    assert found.leaders["n"].max() == 1
    assert set(found.leaders["dataset"]) == {"pcam", "synthetic"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a study's folder"),
        (["nowhere"], "nowhere does not exist"),
        (["{made}", "--metric", "val_nope"], "--metric val_nope is not in the tables: take one"),
        (["{made}", "--lr", "x"], "--lr is only for --table FILE"),
        (["{empty}"], "is not a study's results"),
        (["--table", "x.csv", "{made}"], "--table cannot be combined with RESULTS"),
        (["--table", "x.csv", "--lr", "lr"], "--table also needs --batch-size COL"),
    ],
)
def test_wrong_input_is_one_line_and_2(
    make_study: MakeStudy,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    made = make_study(seeds=1)
    (tmp_path / "empty").mkdir()
    places = {"made": made.folder.uri, "empty": str(tmp_path / "empty")}
    assert main([each.format(**places) for each in arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not Path(made.folder.uri, "report.html").exists()


@pytest.mark.parametrize("margin", ["0", "-0.01", "nan", "inf"])
def test_a_margin_is_a_number_above_0(margin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["anywhere", f"--margin={margin}", "--watch"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said == f"search.report: --margin must be a number above 0, got {float(margin):g}"


def test_another_metric_and_another_folder(make_study: MakeStudy, tmp_path: Path) -> None:
    results = make_study(seeds=1)
    out = tmp_path / "elsewhere"
    assert main([results.folder.uri, "--metric", "val_loss", "--out", str(out)]) == 0
    said = json.loads((out / "report.json").read_text())
    assert (said["metric"], said["mode"]) == ("val_loss", "min")
    assert not Path(results.folder.uri, "report.html").exists()
    assert main([results.folder.uri, "--metric", "test_auroc"]) == 0
    assert numbers(results)["metric"] == "test_auroc"


def test_watch_writes_anew_until_ctrl_c(make_study: MakeStudy) -> None:
    results = make_study(seeds=1)
    folder = Path(results.folder.uri)
    command = [sys.executable, "-c", WATCH, str(folder), "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        html = folder / "report.html"
        assert until(html.exists)
        assert '<meta http-equiv="refresh"' in html.read_text()
        before = html.stat().st_mtime_ns
        rows = pd.read_parquet(folder / "trials").head(7)
        pq.write_table(
            TRIALS.empty_table().from_pandas(rows, schema=TRIALS), folder / "trials" / "all.parquet"
        )
        assert until(lambda: html.stat().st_mtime_ns > before)
        time.sleep(1)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 0
    assert "refresh" not in html.read_text()[:2000]
    assert sum(json.loads((folder / "report.json").read_text())["status_counts"].values()) == 7


def test_a_report_that_fails_changes_nothing(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from search import session
    from search.report import report

    def fails(results: Results) -> str:
        raise RuntimeError("no room [bold]")

    monkeypatch.setattr(report, "write_report", fails)
    console = Console(record=True, width=200)
    session._write_report(make_study(seeds=1), console)
    assert "could not be written (RuntimeError: no room [bold])" in console.export_text()


def test_the_notebook_way_in(make_study: MakeStudy) -> None:
    out = Path(make_study().folder.uri).parent
    text = (ROOT / "docs" / "report.md").read_text()
    (code,) = re.findall(r"```python\n(from search.analysis .*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace('"results", "pcam_grid"', f'"{out}", "made"'), names)
    assert len(names["analysis"].cells) == 25
    assert names["chart"].to_dict()["layer"]


@pytest.mark.draws
def test_a_large_study_is_quick_and_small(make_study: MakeStudy) -> None:
    results = make_study(
        batch_sizes=[2**k for k in range(3, 13)],
        lrs=[0.001 * 1.6**k for k in range(20)],
        seeds=10,
        epochs=50,
    )
    assert len(trials(results)) == 2000
    assert len(epochs(results)) == 100_000
    began = time.monotonic()
    write_report(results)
    assert time.monotonic() - began < 60  # quiet: 10
    assert Path(results.folder.uri, "report.html").stat().st_size < 8e6


def test_charts_stand_alone(make_study: MakeStudy) -> None:
    results = make_study(seeds=1)
    found = analyse(trials(results), epochs(results), metric="val_auroc", mode="max")
    chart = heat_map(found)
    assert chart is not None
    assert len(chart.to_dict()["datasets"]) >= 1
    assert heat_map(analyse(trials(results).iloc[:0], metric="val_auroc", mode="max")) is None


def test_surfaces_whose_names_give_one_file_name_have_files_of_their_own(
    make_study: MakeStudy,
) -> None:
    findings = of_study(make_study(seeds=1))
    (first,) = findings.analyses
    names = ["", "b/c", "b c", "B_c", "b_c-2", "b" * 90, "b" * 91]
    several = [replace(first, of={"variant": name}) for name in names]
    pictures = other_pictures(replace(findings, analyses=several))
    files = [file.casefold() for part in pictures.values() for file in part]
    assert len(files) == len(set(files)) == 3 * (len(names) - 1)


def test_a_later_report_removes_what_only_the_earlier_one_had(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    two = of_study(make_study(changes=[{"optimizer": "sgd"}, {"optimizer": "adamw"}], seeds=1))
    out, own = tmp_path / "out", tmp_path / "out" / "charts" / "surface-own.png"
    write(two, folder_at(str(out)))
    earlier = files_in(out)
    assert {"charts/surface.pdf", "charts/surface-optimizer=adamw.png"} <= earlier
    assert {"tables/surface.tex", "tables/scaling.csv"} <= earlier
    own.write_bytes(b"the user's")
    one = make_study(batch_sizes=(16,), seeds=1)
    write(of_study(one), folder_at(str(out)))
    alone = tmp_path / "alone"
    write(of_study(one), folder_at(str(alone)))
    assert files_in(out) == files_in(alone) | {"charts/surface-own.png"}
    assert files_in(out) < earlier | {"charts/surface-own.png"}
    listed = json.loads((out / "report.json").read_text())["files"]
    assert sorted(listed) == sorted(n for n in files_in(alone) if "/" in n)
    (out / "report.json").write_text("damaged")
    write(two, folder_at(str(out)))
    assert files_in(out) == earlier | {"charts/surface-own.png"}


def files_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
