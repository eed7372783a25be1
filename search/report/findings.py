"""All that a report states: the tables, an analysis a surface, the best configurations."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from search.analysis.analysis import Analysis, analyse
from search.analysis.chance import nothing_beat_chance
from search.analysis.declared import choices_of
from search.analysis.expected import Verdict, verdicts
from search.analysis.foreign_table import TableError, own_table
from search.analysis.groups import (
    CROSSED,
    RIDGE,
    analyses,
    branches,
    exploration_of,
    others_of,
    varied_fields,
)
from search.analysis.humps.by_model import ByModel, by_model
from search.analysis.humps.scored import has_repeats
from search.analysis.importance import COLUMNS, importance
from search.analysis.leaderboard import ablations, leaderboard
from search.analysis.metric_name import mode_by_name
from search.analysis.stopping import deciding_rung, stopping, verdict
from search.analysis.surface import USABLE
from search.report.markup import cell_text
from search.report.numbers import as_json, expected_as_json, plain
from search.report.sentences.ablation import ablation_sentences
from search.report.sentences.by_model import (
    by_model_sentences,
    scattered_sentences,
    smooth_sentences,
)
from search.report.sentences.caveats import cautions
from search.report.sentences.conclusions import conclusions
from search.report.sentences.confounds import confounds
from search.report.sentences.expected import summary
from search.report.sentences.scaling import scaling
from search.report.sentences.search import importance_sentence, stopping_sentence
from search.report.sentences.wording import listed
from search.report.sources.opened import open_source
from search.results import files
from search.results.tables import TABLES, Results, ResultsError, named_alike
from search.study.shown import number_of, show
from trainable.config import SCORES, TrialConfig
from trainable.host import storage

LEADERS = 20
KEYS = ("planned", "step_trials")  # of study.json: keys of all trials, which nobody reads
TRIAL_FIELDS = tuple(declared.name for declared in fields(TrialConfig))


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What is known of a study or of a table.

    `analyses` has the surface with the best score first, and at least one, which may be of nothing.
    `steps` maps each setting of an ablation to its table. `about` is study.json, or what is known
    of a table. `cautions` come beside those of the analyses. `unplanned` are the best settings of
    trials in the folder that the study, as it was last run, does not ask for. `stopping` is whether
    it was safe, by rung. `expected` is what the study's source reports, beside what was measured.
    `by_model` has the ridge of each surface where trials were chosen to find it (`Ridge`), and that
    of a table whose cells have one seed. `folder` is where a study's results are.
    """

    name: str
    metric: str
    mode: str
    about: Mapping[str, Any]
    trials: pd.DataFrame
    epochs: pd.DataFrame | None
    analyses: Sequence[Analysis]
    steps: Mapping[str, pd.DataFrame]
    fields: Sequence[str]
    leaders: pd.DataFrame
    importance: pd.DataFrame
    cautions: Sequence[str]
    unplanned: pd.DataFrame = field(default_factory=pd.DataFrame)
    stopping: pd.DataFrame = field(default_factory=pd.DataFrame)
    expected: Sequence[Verdict] = ()
    by_model: Sequence[ByModel] = ()
    folder: str = ""

    @property
    def synthetic(self) -> bool:
        """Whether any of it was trained on drawn patches."""
        return "dataset" in self.trials and bool((self.trials["dataset"] == "synthetic").any())


def mode_of(metric: str) -> str:
    """`max` or `min`; of a test score as of its validation twin.

    Raises:
        ResultsError: it is no metric of ours.
    """
    known = SCORES | {name.replace("val_", "test_"): mode for name, mode in SCORES.items()}
    if metric not in known:
        raise ResultsError(
            f"--metric {metric} is not in the tables: take one of {listed([*known])}"
        )
    return known[metric]


def of_study(
    folder: Results, *, metric: str | None = None, margin: float | None = None
) -> Findings:
    """From a study's folder. A file that cannot be read is left out, and a caution names it.

    `margin` is the difference in the metric that does not matter; by default a hundredth of its
    range.

    Raises:
        ResultsError: the metric is none of ours, or there is neither study.json nor a table.
    """
    about, cautions = _about(folder)
    metric = metric or str(about.get("metric") or "val_auroc")
    mode = mode_of(metric)
    trials, epochs, damages = _tables(folder)
    cautions += damages
    if not about and trials.empty and epochs.empty and len(cautions) < 2:
        raise ResultsError(_no_results(folder))
    whole, trials, epochs = trials, _of_plan(trials, about), _of_plan(epochs, about)
    unplanned = whole.drop(trials.index)
    trials = branches(trials)
    exploration = exploration_of(about)
    steps = ablations(trials, about, metric=metric, mode=mode)
    surfaces = not steps or all(name in about.get("vary", {}) for name in CROSSED)
    how: dict[str, Any] = {"metric": metric, "mode": mode, "margin": margin}
    surface_analyses = analyses(trials, epochs, about, **how) if surfaces else []
    varied = [] if steps else [name for name in about.get("vary", {}) if name in trials]
    varied = varied or varied_fields(trials)
    ranked_by = list(dict.fromkeys([*varied, *others_of(trials, about)]))
    cautions += _mixed(trials, exploration.kind, num_unplanned=len(unplanned))
    cautions += confounds(trials, about, metric)
    search = exploration.is_search or len(varied) > 3
    weights = pd.DataFrame(columns=COLUMNS)
    if search and exploration.kind not in ("Pbt", RIDGE):
        weights = importance(trials, fields=varied, metric=metric, mode=mode)
    return Findings(
        name=str(about.get("name") or folder.study),
        folder=folder.folder.uri,
        metric=metric,
        mode=mode,
        about=about,
        trials=trials,
        epochs=epochs,
        analyses=surface_analyses or [analyse(trials.iloc[:0], metric=metric, mode=mode)],
        steps=steps,
        fields=varied if search else [],
        leaders=_leaders(trials, ranked_by, metric, mode),
        importance=weights,
        cautions=cautions,
        unplanned=_leaders(unplanned, varied_fields(whole), metric, mode),
        stopping=stopping(trials, epochs, about, metric=metric),
        expected=verdicts(trials, about, surface_analyses, metric=metric, mode=mode),
        by_model=_by_model(trials, about, metric, mode),
    )


def _by_model(
    trials: pd.DataFrame, about: Mapping[str, Any], metric: str, mode: str
) -> list[ByModel]:
    """Of a study that chose its trials by the model."""
    if exploration_of(about).kind != RIDGE or nothing_beat_chance(trials, metric=metric):
        return []
    sizes = choices_of(about, "batch_size")
    return by_model(trials, others=_others(about), metric=metric, mode=mode, batch_sizes=sizes)


def _others(about: Mapping[str, Any]) -> list[str]:
    """What varies beside batch size and lr."""
    return [name for name in about.get("vary", {}) if name not in CROSSED]


def _of_plan(rows: pd.DataFrame, about: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of trials that the study, as it was last run, asked for."""
    planned = about.get("planned")  # of searches earlier versions noted none
    return rows[rows["trial_key"].isin(set(planned))] if planned else rows


def _no_results(folder: Results) -> str:
    """What is wrong with a folder that has no results itself, and which of its folders have."""
    where = folder.folder.uri
    studies = sorted(Path(where).glob("*/study.json")) if folder.folder.is_local else []
    if studies:
        names = listed([file.parent.name for file in studies[:9]])
        return (
            f"{where} has results of {number_of(len(studies), 'study', 'studies')} ({names}): give "
            f"the folder of one, such as {studies[0].parent}"
        )
    return (
        f"{where} is not a study's results: it has no study.json and no trials/; give a folder "
        f"such as results/pcam_grid"
    )


def _tables(folder: Results) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """The trials, the epochs, and a caution for each file that cannot be read."""
    tables, cautions = {}, []
    for name, schema in TABLES.items():
        read, damaged = files.read_parts(folder / name, schema)
        tables[name] = read.to_pandas()
        cautions += [
            f"{name}/{part} cannot be read and is left out ({why}): run the study again."
            for part, why in damaged.items()
        ]
    return named_alike(tables["trials"]), tables["epochs"], cautions


def of_table(
    where: Path | str,
    *,
    batch_size: str,
    lr: str,
    metric: str,
    fields: Sequence[str] = (),
    seed: str = "seed",
    mode: str | None = None,
    margin: float | None = None,
    runs: Sequence[str] = (),
    study: str | None = None,
) -> Findings:
    """From anyone's results: a table, or what another tool recorded.

    Without `mode` the tool's record tells which values are best, else the metric's name. `fields`
    are columns that differ from run to run beside batch size and lr; `runs` tell which run a row is
    of, where a run has several; `study` is one of several in a storage.

    Raises:
        TableError: it cannot be read, or the name does not tell.
    """
    source = open_source(str(where), study=study)
    mode = mode or source.modes.get(metric) or mode_by_name(metric)
    table = own_table(
        source.rows,
        file=source.where,
        batch_size=batch_size,
        lr=lr,
        metric=metric,
        fields=fields,
        seed=seed,
        runs=runs or source.runs,
        mode=mode,
    )
    fields = table.fields
    if mode is None:
        raise TableError(
            f"--metric {metric} does not tell whether higher or lower is better: add --mode max or "
            f"--mode min"
        )
    trials = table.trials
    best: dict[str, Any] = {"metric": table.metric, "mode": mode}
    return Findings(
        name=source.name,
        metric=table.metric,
        mode=mode,
        about={"table": source.origin, "columns": {"batch_size": batch_size, "lr": lr}},
        trials=trials,
        epochs=table.epochs,
        analyses=[analyse(trials, metric=table.metric, mode=mode, lr="lr", margin=margin)],
        steps={},
        fields=["batch_size", "lr", *fields] if fields else [],
        leaders=_leaders(trials, ["batch_size", "lr", *fields], table.metric, mode),
        importance=importance(trials, fields=["batch_size", "lr", *fields], **best)
        if fields
        else pd.DataFrame(columns=COLUMNS),
        cautions=table.cautions,
        by_model=by_model(trials.assign(peak_lr=trials["lr"]), others=(), columns=fields, **best)
        if (fields or not has_repeats(trials, "lr"))
        and not nothing_beat_chance(trials, metric=table.metric)
        else [],
    )


def _about(folder: Results) -> tuple[dict[str, Any], list[str]]:
    try:
        about: dict[str, Any] = json.loads(storage.read(folder.folder, "study.json"))
        return about, []
    except FileNotFoundError:
        return {}, ["there is no study.json, so how these results were made is unknown."]
    except ValueError as error:
        return {}, [f"study.json cannot be read ({error}): how these were made is not known."]


def _leaders(trials: pd.DataFrame, by: Sequence[str], metric: str, mode: str) -> pd.DataFrame:
    scored = trials[trials["status"].isin(USABLE) & np.isfinite(trials[metric].astype(float))]
    if scored.empty or not by:
        return pd.DataFrame()
    return leaderboard(scored, by=by, metric=metric, mode=mode, rows=LEADERS)


def _mixed(trials: pd.DataFrame, kind: str, *, num_unplanned: int) -> list[str]:
    warnings = []
    if num_unplanned:
        warnings.append(
            f"{number_of(num_unplanned, 'other trial')} in this folder: the study as it was last "
            f"run does not ask for them. They have a section of their own."
        )
    left = int((trials["status"] == "interrupted").sum())
    if left:
        warnings.append(
            f"{number_of(left, 'trial')} {'was' if left == 1 else 'were'} interrupted and "
            f"{'is' if left == 1 else 'are'} left out: the same command continues the study."
        )
    if kind == "Pbt":
        warnings.append(
            "A population's trials change batch size and lr as they train, so none is a cell of "
            "the surface: the best configurations below name what the members ended with."
        )
    return warnings


def conclusions_of(findings: Findings) -> list[str]:
    """The report's sentences: of the ablation, the best surface, the search, the literature."""
    beside = summary(findings.expected)
    return [*_main_conclusions(findings), *_search_sentences(findings), *filter(None, [beside])]


def _main_conclusions(findings: Findings) -> list[str]:
    """Those of the ablation, and of the surface with the best score."""
    sentences = ablation_sentences(findings.steps, findings.metric)
    if sentences and findings.analyses[0].cells.empty:
        return sentences
    if not findings.analyses[0].cells["mean"].notna().any() and len(findings.leaders):
        return [*sentences, _best_trial(findings)]
    best = findings.analyses[0]
    how = {"metric": findings.metric, "mode": findings.mode}
    if "table" in findings.about and findings.fields and findings.by_model:
        return scattered_sentences(findings.by_model)
    if _is_ridge(findings):
        others = conclusions(best, whole_grid=False)
        return [*by_model_sentences(findings.by_model, **how), *others]
    first: list[str] = as_json(best)["conclusions"]
    if findings.by_model:  # the model's exponent, not a second one from the scatter about a line
        first = [text for text in first if text != scaling(best)]
    return [*sentences, *first, *smooth_sentences(findings.by_model, metric=findings.metric)]


def _is_ridge(findings: Findings) -> bool:
    """Whether trials were chosen by the model, and are enough for it."""
    return exploration_of(findings.about).kind == RIDGE and bool(findings.by_model)


def _search_sentences(findings: Findings) -> list[str]:
    """Which fields stand out, and whether stopping was safe."""
    stop = findings.about.get("stop")
    by_batch_size = isinstance(stop, dict) and bool(stop.get("by_batch_size"))
    sentences = [
        importance_sentence(findings.importance),
        stopping_sentence(findings.stopping, by_batch_size=by_batch_size),
    ]
    return [sentence for sentence in sentences if sentence]


def _best_trial(findings: Findings) -> str:
    """Of a search none of whose trials stands for a cell."""
    best = findings.leaders.iloc[0]
    fields = [name for name in findings.leaders if name in TRIAL_FIELDS]
    had = ", ".join(f"{name} {cell_text(best[name])}" for name in fields)
    return (
        f"The best configuration is {had}: {findings.metric} {show(best['mean'])}. No trial stands "
        f"for one cell of the surface, so the study cannot show how batch size and learning rate "
        f"interact."
    )


def cautions_of(findings: Findings) -> list[str]:
    """The report's own cautions before those of the surface with the best score."""
    first = cautions(findings.analyses[0], whole_grid=not _is_ridge(findings))
    nothing = findings.analyses[0].cells.empty and bool(findings.steps)
    return [*findings.cautions, *(first[:1] if nothing else first)]


def numbers(findings: Findings) -> dict[str, Any]:
    """Every number of the report for scripts: those of the best surface, and `groups` with all."""
    groups = [as_json(analysis) for analysis in findings.analyses]
    best = dict(groups[0])
    best["conclusions"], best["cautions"] = conclusions_of(findings), cautions_of(findings)
    figures: dict[str, Any] = plain(
        {
            "study": findings.name,
            **best,
            "groups": groups,
            "ablation": {
                setting: table.rename_axis("step").reset_index().to_dict("records")
                for setting, table in findings.steps.items()
            },
            "leaderboard": findings.leaders.to_dict("records"),
            "importance": findings.importance.to_dict("records"),
            "stopping": _stopping_numbers(findings),
            "by_model": [
                {
                    **asdict(answer),
                    "rows": answer.rows.to_dict("records"),
                    "columns": answer.columns.to_dict("records"),
                }
                for answer in findings.by_model
            ],
            **expected_as_json(findings.expected, findings.about),
            "status_counts": findings.trials["status"].value_counts().to_dict(),
            "about": {k: v for k, v in findings.about.items() if k not in KEYS},
        }
    )
    return figures


def _stopping_numbers(findings: Findings) -> dict[str, Any] | None:
    """Whether stopping was safe, and the correlations by rung; None if no trial was stopped."""
    rungs = findings.stopping
    if rungs.empty:
        return None
    deciding = deciding_rung(rungs)
    return {
        "verdict": verdict(deciding),
        "deciding_rung": deciding["rung"].iloc[0],
        "rungs": rungs.to_dict("records"),
    }
