"""The tables of a report as HTML: each function returns a part of a section, or an empty text."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from search.analysis.analysis import Analysis
from search.analysis.leaderboard import best_by_batch_size
from search.analysis.surface import best_cell
from search.report.charts.gallery import surface_name
from search.report.facts import trained_hours
from search.report.findings import Findings
from search.report.markup import cell_text, details, pairs, paragraph, table, text
from search.report.sentences.domains import domain_words
from search.report.sentences.scaling import RULE_WORDS
from search.report.sentences.search import place_of
from search.study.shown import change, show

CELL = {
    "batch_size": "batch size",
    "grid_lr": "lr",
    "lr": "peak lr",
    "mean": "mean",
    "std": "std",
    "n": "n",
    "low": "95 % from",
    "high": "to",
    "collapsed": "collapsed",
    "diverged": "diverged",
    "stopped": "stopped",
    "failed": "failed",
}
REASONS = 12  # different reasons of diverged or failed trials
FORMS = {"a=0": "constant", "a=0.5": "square root", "a=1": "linear", "power": "free power"}


def groups_table(findings: Findings) -> str:
    """One row per surface, if there are several."""
    if len(findings.analyses) < 2:
        return ""
    rows = []
    for analysis in findings.analyses:
        mixed = analysis.interaction
        row = {"of": surface_name(analysis), "exponent": _span(analysis), "p": mixed.p_value}
        share = mixed.share_interaction
        row["share"] = f"{share:.0%}" if math.isfinite(share) else "-"
        if analysis.cells["mean"].notna().any():
            best = best_cell(analysis.cells, mode=analysis.mode)
            row |= best[["mean", "batch_size", "grid_lr", "n"]].to_dict()
        rows.append(row)
    columns = {
        "of": "surface",
        "mean": f"best {findings.metric}",
        "batch_size": "at batch size",
        "grid_lr": f"and {findings.analyses[0].lr_name}",
        "n": "n",
        "exponent": "exponent [95 %]",
        "share": "interaction's share",
        "p": "p",
    }
    surfaces = table("Surfaces, best first", pd.DataFrame(rows), columns)
    return surfaces + _best_by_batch_size(findings)


def _best_by_batch_size(findings: Findings) -> str:
    """A row a surface: which setting is best at which batch size."""
    ridges = {surface_name(analysis): analysis.ridge for analysis in findings.analyses}
    scores = best_by_batch_size(ridges).rename(columns=str)
    columns = {"surface": "surface"} | {size: f"batch {size}" for size in scores}
    caption = f"Best mean {findings.metric} by batch size, each at its own best learning rate"
    return table(caption, scores.rename_axis("surface").reset_index(), columns)


def _span(analysis: Analysis) -> str:
    fit = analysis.exponent
    if not math.isfinite(fit.value):
        return "-"
    if not math.isfinite(fit.low):
        return f"{fit.value:.2f}"
    return f"{fit.value:.2f} [{fit.low:.2f}, {fit.high:.2f}]"


def surface_table(analysis: Analysis) -> str:
    """The numbers of every cell, hidden until opened."""
    cells = analysis.cells.sort_values("mean", ascending=analysis.mode == "min")
    key = pd.MultiIndex.from_frame(cells[["batch_size", "lr"]])
    best = key.isin(pd.MultiIndex.from_frame(analysis.best_set[["batch_size", "lr"]]))
    columns = CELL | {"grid_lr": analysis.lr_name}
    if np.allclose(cells["lr"], cells["grid_lr"]):
        del columns["grid_lr"]
    rows = table(
        f"{analysis.metric} of all settings, by mean",
        cells,
        columns,
        best=list(best),
        cell_lr=list(cells["lr"]),
    )
    return details("The numbers of all settings", rows)


def ridge_table(analysis: Analysis) -> str:
    """The best lr of each batch size."""
    columns = {
        "batch_size": "batch size",
        "vertex": "best peak lr",
        "lr_low": "95 % from",
        "lr_high": "to",
        "bracketed": "bracketed",
        "lr": "best peak lr tried",
        "mean": f"its {analysis.metric}",
    }
    return table("Best learning rate of each batch size", analysis.ridge, columns)


def lr_table(analysis: Analysis) -> str:
    """The lr to use at each batch size, by the line through all of them."""
    columns = {
        "batch_size": "batch size",
        "lr": "peak lr to use",
        "low": "95 % from",
        "high": "to",
        "tried": "tried",
    }
    return table("Learning rate to use, from all batch sizes", analysis.lr_to_use, columns)


def rules_table(analysis: Analysis) -> str:
    """What the exponent's interval says about each scaling rule, and other forms by AICc."""
    fit = analysis.exponent
    parts = []
    if math.isfinite(fit.value):
        rules = pd.DataFrame(
            [(words, fit.verdict(rule)) for rule, words in RULE_WORDS.items()],
            columns=["rule", "verdict"],
        )
        headings = {"rule": "rule", "verdict": "verdict"}
        parts.append(table(f"The exponent is {_span(analysis)}", rules, headings))
    if fit.left_out:
        left = pd.DataFrame(list(fit.left_out.items()), columns=["batch_size", "why"])
        headings = {"batch_size": "batch size", "why": "why the exponent does not include it"}
        parts.append(table("Batch sizes left out", left, headings, long=["why"]))
    forms = analysis.forms.assign(form=analysis.forms["form"].replace(FORMS))
    headings = {"form": "form", "parameters": "parameters", "delta": "AICc above the best"}
    parts.append(table("Forms fitted to the best lr against batch size", forms, headings))
    return "".join(parts)


def interaction_table(analysis: Analysis) -> str:
    """The analysis of variance, and the rank correlation at each lr."""
    mixed = analysis.interaction
    parts = []
    if math.isfinite(mixed.share_interaction):
        shares = pd.DataFrame(
            [
                ("batch size", mixed.share_batch_size),
                (analysis.lr_name, mixed.share_lr),
                ("their interaction", mixed.share_interaction),
            ],
            columns=["part", "share"],
        )
        shares["share"] = shares["share"].map("{:.1%}".format)
        headings = {"part": "part", "share": "share"}
        parts.append(table("Variance between settings", shares, headings))
    if math.isfinite(mixed.share_interaction) or math.isfinite(mixed.p_value):
        tests = {
            "p of the interaction (permutations)": _p(mixed.p_value),
            "p of any difference (permutations)": _p(mixed.p_flat),
            "F": cell_text(mixed.f) if math.isfinite(mixed.f) else None,
            "batch sizes used": ", ".join(map(show, mixed.batch_sizes)),
            "learning rates used": ", ".join(map(show, mixed.lrs)),
            "scored settings left out": mixed.left_out or None,
            "fewest seeds of a setting": mixed.replicates,
        }
        parts.append(pairs("Test of the interaction", tests))
    if mixed.why:
        parts.append(paragraph(f"What is unknown, and why: {mixed.why}."))
    known = [(lr, rho) for lr, rho in sorted(analysis.spearman.items()) if math.isfinite(rho)]
    spearman = pd.DataFrame(known, columns=["lr", "rho"]).assign(
        rho=[f"{rho:+.2f}" for _, rho in known]
    )
    headings = {"lr": analysis.lr_name, "rho": "Spearman's rho"}
    parts.append(table(f"Rank correlation of batch size and {analysis.metric}", spearman, headings))
    return "".join(parts)


def _p(value: float) -> str | None:
    return cell_text(value) if math.isfinite(value) else None


def equal_table(analysis: Analysis) -> str:
    """The best score of each batch size after equal images, updates and seconds."""
    titles = {"examples_seen": "images", "updates": "updates", "train_s": "seconds"}
    merged: pd.DataFrame | None = None
    columns = {"batch_size": "batch size"}
    for name, unit in titles.items():
        if name not in analysis.equal:
            continue
        scores = analysis.equal[name]
        spent = float(scores["spent"].iloc[0])
        renamed = scores[["batch_size", "mean", "lr"]].rename(
            columns={"mean": f"mean_{name}", "lr": f"lr_{name}"}
        )
        merged = renamed if merged is None else merged.merge(renamed, on="batch_size", how="outer")
        shown = float(f"{spent:.4g}") if unit == "seconds" else spent
        columns[f"mean_{name}"] = f"at {cell_text(shown)} {unit}"
        columns[f"lr_{name}"] = "at peak lr"
    if merged is None:
        return ""
    caption = f"Best mean {analysis.metric} of each batch size at equal cost"
    return table(caption, merged.sort_values("batch_size"), columns) + paragraph(
        "The best score so far, when every batch size had spent the same. A longer schedule had "
        "not decayed yet at that point, so its score is a lower bound.",
        kind="soft",
    )


def target_table(analysis: Analysis) -> str:
    """The cost of the target."""
    columns = {
        "batch_size": "batch size",
        "lr": "peak lr",
        "updates": "updates",
        "examples_seen": "images",
        "train_s": "seconds",
        "n": "seeds",
    }
    # Columns that say nothing of most tables; `updates` is at most so many where seeds were early.
    more = {"early": "at or before their first evaluation", "unreached": "that never reach it"}
    is_used = {name: name in analysis.needed and analysis.needed[name].any() for name in more}
    columns |= {name: words for name, words in more.items() if is_used[name]}
    rows = analysis.needed.round({"updates": 0, "examples_seen": 0, "train_s": 1})
    return table(f"To reach {analysis.metric} {show(analysis.target)}", rows, columns)


def noise_table(analysis: Analysis) -> str:
    """The measured noise scale."""
    columns = {
        "batch_size": "batch size",
        "noise_scale": "median noise scale (images)",
        "least": "smallest",
        "most": "largest",
        "n": "trials",
    }
    return table("Gradient noise scale", analysis.noise_scales, columns)


def cost_table(findings: Findings) -> str:
    """Speed by batch size, and the total time of all trials."""
    columns = {
        "batch_size": "batch size",
        "images_per_s": "images/s",
        "train_wall_s": "seconds per trial",
        "peak_memory_gib": "peak memory (GiB)",
        "n": "trials",
    }
    parts = [table("Medians", findings.analyses[0].throughput, columns)]
    rows = findings.trials
    trained = trained_hours(rows)
    if trained is not None:
        hours, gpu_hours = trained
        devices = ", ".join(sorted({str(d) for d in rows["device"].dropna()}))
        time = f"{show(hours)} hours" if hours >= 1 else f"{show(60 * hours)} minutes"
        together = f"All {len(rows)} trials together" if len(rows) > 1 else "The trial"
        words = f"{together} trained for {time}"
        words += f", {show(gpu_hours)} GPU-hours" if gpu_hours else ""
        parts.append(paragraph(f"{words}{' on ' + devices if devices else ''}."))
    return "".join(parts)


def ablation_tables(findings: Findings) -> str:
    """One table per setting: each step, and its change from the previous one over paired seeds."""
    columns = {
        "step": "step",
        "mean": f"mean {findings.metric}",
        "std": "std",
        "n": "seeds",
        "change": "change",
        "change_std": "std of change",
        "test": "test",
        "base_lr": "best base_lr",
    }
    if "base_lr" not in findings.about.get("vary", {}):
        del columns["base_lr"]
    parts = []
    for setting, steps in findings.steps.items():
        rows = steps.rename_axis("step").reset_index()
        rows["change"] = rows["change"].map(change)
        parts.append(table(f"Step by step {setting}".strip(), rows, columns))
    if parts:
        parts.append(
            paragraph("Change: from the previous step, over seeds that both have.", kind="soft")
        )
    return "".join(parts)


def leaders_table(findings: Findings) -> str:
    """The best configurations with intervals."""
    rows, cells = findings.leaders, findings.analyses[0].cells
    by = ["batch_size", findings.analyses[0].lr_name]
    cell_lr: list[float] = []
    if set(by) <= set(rows) and not cells.duplicated(["batch_size", "grid_lr"]).any():
        known = cells.rename(columns={"lr": "cell_lr", "grid_lr": by[1]})[[*by, "cell_lr"]]
        cell_lr = list(rows[by].merge(known, on=by, how="left")["cell_lr"])
    return _ranked("Best configurations", rows, findings.metric, cell_lr=cell_lr)


def unplanned_table(findings: Findings) -> str:
    """The best settings of other trials in the folder."""
    if findings.unplanned.empty:
        return ""
    why = "These trials are in this folder, and the study as it was last run does not ask for them."
    title = "Best settings of the other trials"
    return paragraph(why, kind="soft") + _ranked(title, findings.unplanned, findings.metric)


def _ranked(title: str, rows: pd.DataFrame, metric: str, *, cell_lr: Sequence[float] = ()) -> str:
    figures = ("mean", "std", "n", "low", "high")
    headings = {"mean": f"mean {metric}", "low": "95 % from", "high": "to", "n": "n"}
    rows = rows.rename(columns={metric: "again"})
    columns = {n: n for n in rows if n not in (*figures, "again")}
    test = [n for n in columns if n.startswith("test_")]
    by = {n: n for n in columns if n not in test}
    shown_columns = by | {n: headings.get(n, n) for n in figures} | {n: f"mean {n}" for n in test}
    ranked = rows.assign(rank=range(1, len(rows) + 1))
    return table(title, ranked, {"rank": "", **shown_columns}, cell_lr=cell_lr)


def troubles(findings: Findings) -> str:
    """Statuses by batch size, the largest stable lr, and the first reasons."""
    trials = findings.trials
    if trials.empty:
        return ""
    counts = trials.groupby(["batch_size", "status"]).size().unstack(fill_value=0).reset_index()
    columns = {"batch_size": "batch size"} | {str(n): str(n) for n in counts if n != "batch_size"}
    stable = findings.analyses[0].stable
    headings = {
        "batch_size": "batch size",
        "stable_lr": "stable up to",
        "diverges_at": "diverges at",
    }
    parts = [
        table("How the trials ended", counts, columns),
        table("Largest peak lr with stable training", stable, headings)
        if stable["diverges_at"].notna().any()
        else "",
    ]
    if "reason" in trials:
        bad = trials[trials["status"].isin(("diverged", "failed")) & trials["reason"].notna()]
        alike = bad["reason"].str.replace(r" \(traceback.*", "", regex=True)
        first = bad[~alike.duplicated()].head(REASONS)
        headings = {
            "batch_size": "batch size",
            "base_lr": "base_lr",
            "seed": "seed",
            "status": "status",
            "reason": "reason",
        }
        parts.append(table("The first reasons", first, headings, long=["reason"]))
    return "".join(parts)


def provenance(findings: Findings) -> str:
    """How the results were made, from study.json."""
    about = findings.about
    trials = findings.trials
    hardware = about.get("hardware", {})
    devices = sorted({str(d) for d in trials["device"].dropna()}) if "device" in trials else []
    dates = trials["ended_at"].dropna() if "ended_at" in trials else pd.Series(dtype=object)
    seeds = sorted(trials["seed"].dropna().unique()) if "seed" in trials else []
    facts = {
        "table": about.get("table"),
        "columns": ", ".join(f"{k} is {v}" for k, v in about.get("columns", {}).items()),
        "dataset": ", ".join(sorted({str(d) for d in trials.get("dataset", [])})),
        "split": ", ".join(sorted({str(s) for s in trials.get("split", []) if isinstance(s, str)})),
        "data fingerprint": about.get("data_fingerprint"),
        "preview": "yes: small network, few images, few epochs" if about.get("preview") else None,
        "metric": f"{findings.metric}, {findings.mode} is best",
        "explored by": _declared(about.get("explore")),
        "stopped by": None if about.get("stop") == "None" else _declared(about.get("stop")),
        "varied": "; ".join(f"{k}: {domain_words(v)}" for k, v in about.get("vary", {}).items()),
        "seeds": ", ".join(map(str, seeds)),
        "space file": about.get("space_file"),
        "its SHA-256": about.get("space_sha256"),
        "settings": " ".join(about.get("settings", [])),
        "commit": about.get("commit"),
        "versions": ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items()),
        "hardware": ", ".join(f"{v} {k}" for k, v in hardware.items()),
        "device": ", ".join(devices),
        "trained": f"{dates.min():%Y-%m-%d %H:%M} to {dates.max():%Y-%m-%d %H:%M} UTC"
        if len(dates)
        else None,
    }
    base = json.dumps(about.get("base", {}), indent=1)
    folded = details("The study's base trial", f"<pre>{text(base)}</pre>" if len(base) > 2 else "")
    return pairs("How it was made", facts) + folded


def _declared(part: object) -> str | None:
    """An explorer or a stopper as in a space file; older studies contain it as text."""
    if not isinstance(part, dict):
        return None if part is None else str(part)
    values = ", ".join(f"{name}={value!r}" for name, value in part.items() if name != "kind")
    return f"{part.get('kind')}({values})"


def stopping_table(findings: Findings) -> str:
    """How well each rung's order agrees with the final order, by batch size."""
    rungs = findings.stopping
    if rungs.empty:
        return ""
    rows = []
    for _, rung in rungs.iterrows():
        row = {"where": place_of(rung), "size": "all", **rung.round(2)}
        if math.isfinite(rung["batch_size"]):
            row["size"] = f"{rung['batch_size']:.0f}"
        place = f"{rung['best_place']:.0f} of {rung['of']}" if rung["of"] else "-"
        row["best"] = f"{place}, below the cut" if rung["best_below"] else place
        rows.append(row)
    columns = {
        "where": "at",
        "size": "batch size",
        "reached": "trials there",
        "stopped": "stopped",
        "n": "finished",
        "rho": "Spearman's rho",
        "low": "95 % from",
        "high": "to",
        "best": "place of the best finisher",
    }
    caption = f"Order at each rung against the final order by {findings.metric}"
    return table(caption, pd.DataFrame(rows), columns) + paragraph(
        "Rank correlation of the scores at the rung with the final ones. A stopped trial has no "
        "final score, so it is among the trials that finished: these were the better ones there, "
        "and among all trials it would usually be higher. Below the cut: by all trials that came "
        "there, the trial that finished best would have been stopped.",
        kind="soft",
    )
