"""The sentences of a whole study or table, word for word, and what it may not be made of."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_tables import Cells, findings_of, table
from made_tables import analysed as of

from search.analysis.leaderboard import ablation
from search.report import page
from search.report.findings import (
    Findings,
    cautions_of,
    conclusions_of,
    mode_of,
    numbers,
    of_study,
    of_table,
)
from search.report.report import write_report
from search.report.sentences.caveats import cautions
from search.report.sentences.conclusions import conclusions
from search.report.sentences.confounds import confounds
from search.results.tables import Results, ResultsError, commit_study, trials
from trainable.config import SCORES
from trainable.host.storage import Folder

MakeStudy = Callable[..., Results]
# Each sentence once, so that another wording is one edit.
NO_STUDY_JSON = "there is no study.json, so how these results were made is unknown."
BAD_STUDY_JSON = "study.json cannot be read ({why}): how these were made is not known."
NOTHING_THERE = (
    "{folder} is not a study's results: it has no study.json and no trials/; give a folder such as "
    "results/pcam_grid"
)
DAMAGED = "{name} cannot be read and is left out ("
AGAIN = "): run the study again."
UNKNOWN_METRIC = "--metric {metric} is not in the tables: take one of "
INTERRUPTED = "{n} trials were interrupted and are left out: the same command continues the study."
POPULATION = (
    "A population's trials change batch size and lr as they train, so none is a cell of the "
    "surface: the best configurations below name what the members ended with."
)
FROM_TO = "From {first} to {last}{at} {metric} went from {before} to {after}{most}."
MOST_PAIRED = "; {step} changed it most, by {change} (deviation {std} over {n} paired seeds)"
MOST_ALONE = "; {step} changed it most, by {change} (one seed)"
NO_STEPS = "Fewer than two steps have scores{at}: nothing to compare."
BEST_TRIAL = (
    "The best configuration is {had}: {metric} {score}. No trial stands for one cell of the "
    "surface, so the study cannot show how batch size and learning rate interact."
)
COUNTS = "{counts}; metric {metric} ({mode} is best){of}."
OF = "; charts and conclusions are of the best surface, {of}"
LOUD = (
    "dataset=synthetic: trained on synthetic patches, not on real images. These results say "
    "nothing about real data."
)
CELLS: Cells = {
    (b, lr): [0.5, 0.52 + b / 1000, 0.55 + lr] for b in (16, 32) for lr in (0.1, 0.2, 0.4)
}


def findings(trials: pd.DataFrame, **more: Any) -> Findings:
    return findings_of(CELLS, trials, **more)


def stepped(scores: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """The table of an ablation whose seeds have these scores, NaN where one has none."""
    rows = [
        (step, seed, score, "completed")
        for step, each in scores.items()
        for seed, score in enumerate(each)
        if math.isfinite(score)
    ]
    trials = pd.DataFrame(rows, columns=["step", "seed", "val_auroc", "status"])
    trials["test_auroc"] = trials["val_auroc"]
    return ablation(trials, steps=list(scores), metric="val_auroc")


def test_of_several_steps_the_ends_and_the_greatest_change_are_told() -> None:
    """By hand: b is 0.1 and 0.14 above a, of two seeds that both have; c is 0.2 below b."""
    steps = stepped({"a": [0.5, 0.6], "b": [0.6, 0.74, 0.9], "c": [0.4, 0.54, 0.7]})
    said = conclusions_of(findings(table(CELLS), steps={"lr=1": steps}))
    assert said == [
        FROM_TO.format(
            first="a", last="c", at=" at lr=1", metric="val_auroc", before=0.55, after=0.5467,
            most=MOST_PAIRED.format(step="c", change="-0.2000", std=show_zero(steps), n=3),
        ),
        *conclusions(of(CELLS)),
    ]  # fmt: skip


def show_zero(steps: pd.DataFrame) -> str:
    """Of three equal changes the deviation is nothing but the error of floats."""
    assert steps.loc["c", "change_std"] == pytest.approx(0, abs=1e-12)
    return f"{steps.loc['c', 'change_std']:.4g}"


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (
            {"a": [0.5, 0.6], "b": [0.6, 0.74, 0.9]},
            # Two seeds have a pair, and the third has none.
            ("a", "b", "0.55", f"{(0.6 + 0.74 + 0.9) / 3:.4g}",
             MOST_PAIRED.format(step="b", change="+0.1200",
                                std=f"{0.04 / math.sqrt(2):.4g}", n=2)),
        ),
        ({"a": [0.5], "b": [0.4]},
         ("a", "b", "0.5", "0.4", MOST_ALONE.format(step="b", change="-0.1000"))),
        ({"a": [0.5, math.nan], "b": [math.nan, 0.4]}, ("a", "b", "0.5", "0.4", "")),
        ({"a": [0.5], "b": [math.nan], "c": [0.7]}, ("a", "c", "0.5", "0.7", "")),
        ({"a": [0.5], "b": [0.8], "c": [0.7]},
         ("a", "c", "0.5", "0.7", MOST_ALONE.format(step="b", change="+0.3000"))),
        ({"a": [0.5], "b": [math.nan]}, None),
        ({"a": [math.nan], "b": [math.nan]}, None),
    ],
)  # fmt: skip
def test_steps_are_compared_over_the_seeds_that_both_have(
    scores: Mapping[str, Sequence[float]], said: tuple[str, str, str, str, str] | None
) -> None:
    empty = of({})
    made = findings(table({}), steps={"": stepped(scores)}, analyses=[empty])
    if said is None:
        assert conclusions_of(made) == [NO_STEPS.format(at="")]
    else:
        first, last, before, after, most = said
        assert conclusions_of(made) == [
            FROM_TO.format(
                first=first, last=last, at="", metric="val_auroc", before=before, after=after,
                most=most,
            )
        ]  # fmt: skip
    # Of an ablation that crosses nothing the report's own cautions and the playbook's are all.
    assert cautions_of(replace(made, cautions=["mine"])) == ["mine", cautions(empty)[0]]


def test_a_step_that_has_no_table_of_its_own_says_where() -> None:
    steps = {"lr=1": stepped({"a": [0.5], "b": [math.nan]})}
    made = findings(table({}), steps=steps, analyses=[of({})])
    assert conclusions_of(made) == [NO_STEPS.format(at=" at lr=1")]


def test_where_no_trial_is_a_cell_the_best_configuration_is_named() -> None:
    leaders = pd.DataFrame(
        [[32, 0.12345, None, 0.87654, 0.9], [16, 0.1, None, 0.8, 0.9]],
        columns=["batch_size", "base_lr", "train_blocks", "mean", "test_auroc"],
    )
    lost = of({(16, 0.1): ["stopped"]})
    made = findings(table({(16, 0.1): ["stopped"]}), leaders=leaders, analyses=[lost])
    assert conclusions_of(made) == [
        BEST_TRIAL.format(
            had="batch_size 32, base_lr 0.1235, train_blocks -", metric="val_auroc", score=0.8765
        )
    ]
    assert conclusions_of(replace(made, leaders=pd.DataFrame())) == conclusions(lost)
    assert conclusions_of(replace(made, analyses=[of(CELLS)])) == conclusions(of(CELLS))


def test_the_reports_own_cautions_come_first() -> None:
    made = findings(table(CELLS), cautions=["mine", "yours"])
    assert cautions_of(made) == ["mine", "yours", *cautions(of(CELLS))]
    assert numbers(made)["cautions"] == cautions_of(made)
    assert numbers(made)["conclusions"] == conclusions_of(made)


@pytest.mark.parametrize("metric", SCORES)
def test_a_test_score_is_best_where_its_validation_twin_is(metric: str) -> None:
    assert mode_of(metric) == SCORES[metric]
    assert mode_of(metric.replace("val_", "test_")) == SCORES[metric]


def test_a_metric_that_is_none_of_ours_is_answered_with_those_that_are() -> None:
    with pytest.raises(ResultsError) as error:
        mode_of("val_nope")
    said = str(error.value)
    assert said.startswith(UNKNOWN_METRIC.format(metric="val_nope"))
    names = said.removeprefix(UNKNOWN_METRIC.format(metric="val_nope")).replace(" and ", ", ")
    both = {*SCORES, *(name.replace("val_", "test_") for name in SCORES)}
    assert len(names.split(", ")) == len(both)
    assert set(names.split(", ")) == both


def test_a_study_without_its_declaration_or_a_whole_file_says_so(make_study: MakeStudy) -> None:
    results = make_study(seeds=1, batch_sizes=[16], lrs=[0.1, 0.2])
    folder = Path(results.folder.uri)
    about = json.loads((folder / "study.json").read_text())
    assert of_study(results).cautions == []
    (folder / "study.json").write_text("{")
    with pytest.raises(ValueError, match=r".") as why:
        json.loads("{")
    (folder / "epochs" / "torn.parquet").write_bytes(b"no parquet")
    bad, torn = of_study(results).cautions
    assert bad == BAD_STUDY_JSON.format(why=why.value)
    assert torn.startswith(DAMAGED.format(name="epochs/torn.parquet"))
    assert torn.endswith(AGAIN)
    (folder / "epochs" / "torn.parquet").unlink()
    (folder / "study.json").unlink()
    found = of_study(results)
    assert found.cautions == [NO_STUDY_JSON]
    assert (found.name, found.metric, found.mode) == ("made", "val_auroc", "max")
    (folder / "study.json").write_text(
        json.dumps(about | {"name": "its own", "metric": "val_loss"})
    )
    found = of_study(results)
    assert (found.name, found.metric, found.mode) == ("its own", "val_loss", "min")
    assert of_study(results, metric="test_auroc").metric == "test_auroc"


def test_a_folder_of_nothing_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(ResultsError) as error:
        of_study(Results("x", Folder(str(tmp_path))))
    assert str(error.value) == NOTHING_THERE.format(folder=tmp_path)
    (tmp_path / "study.json").write_text('{"name": "y"}')
    assert of_study(Results("x", Folder(str(tmp_path)))).name == "y"


@pytest.mark.parametrize(
    ("explore", "said"), [("Pbt(size=4)", [POPULATION]), ("Grid(widen=0)", [])]
)
def test_trials_that_are_no_cells_are_cautioned_about(
    make_study: MakeStudy, explore: str, said: list[str]
) -> None:
    settings: dict[str, Any] = {"seeds": 1, "batch_sizes": [16], "lrs": [0.1, 0.2]}
    made = make_study(**settings, about={"explore": explore})
    assert of_study(made).cautions == said
    made = make_study(**settings, about={"explore": explore}, status="interrupted")
    assert of_study(made).cautions == [INTERRUPTED.format(n=2), *said]


@pytest.mark.parametrize(
    ("more", "searched"), [(["momentum"], False), (["momentum", "dropout"], True)]
)
def test_of_four_fields_that_vary_or_more_it_is_told_which_mattered(
    more: list[str], searched: bool, make_study: MakeStudy
) -> None:
    cells: dict[str, Any] = {"seeds": 1, "batch_sizes": [16, 32], "lrs": [0.1, 0.2]}
    varied = ["batch_size", "base_lr", *more]
    vary = {name: {"grid_search": [0, 1]} for name in varied}
    found = of_study(make_study(**cells, about={"vary": vary}))
    assert found.fields == (varied if searched else [])
    assert list(found.importance.columns)[:2] == ["field", "importance"]


def test_a_table_of_ones_own_has_its_findings(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    rows = [(16 * 2**i, 0.1 * 2**j, 0.5 + (i + j) / 10) for i in range(2) for j in range(3)]
    own = pd.DataFrame([*rows, rows[0]], columns=["bs", "rate", "q"])
    own.assign(state="done").to_csv(file, index=False)
    for mode, best in (("max", [0.8, 0.7]), ("min", [0.5, 0.6])):
        found = of_table(file, batch_size="bs", lr="rate", metric="q", mode=mode)
        assert (found.name, found.metric, found.mode) == ("own.csv", "q", mode)
        assert found.about == {
            "table": "own.csv",
            "columns": {"batch_size": "bs", "lr": "rate"},
        }
        assert [each.lr_name for each in found.analyses] == ["lr"]
        assert [each.mode for each in found.analyses] == [mode]
        assert found.leaders["mean"].tolist()[:2] == pytest.approx(best)
        assert found.leaders.columns.tolist()[:2] == ["batch_size", "lr"]
        assert found.importance.empty
        assert found.fields == []
        assert not found.synthetic


@pytest.mark.parametrize(
    ("statuses", "counts"),
    [
        (["completed"] * 3 + ["failed"], "3 completed, 1 failed"),
        (["diverged"], "1 diverged"),
        ([], "no trial finished yet"),
    ],
)
def test_the_pages_first_line_counts_trials(
    statuses: list[str], counts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "bundle", lambda: "")
    trials = pd.DataFrame({"status": statuses, "batch_size": 16, "dataset": "pcam"})
    made = findings(trials)
    shown = page.render(made, {}, {})
    assert f">{COUNTS.format(counts=counts, metric='val_auroc', mode='max', of='')}<" in shown
    assert LOUD not in shown
    variant = replace(of(CELLS), of={"optimizer": "adam", "momentum": 0.123456, "epochs": 5})
    said = OF.format(of="optimizer=adam, momentum=0.1235, epochs=5")
    made = replace(made, analyses=[variant], metric="val_loss", mode="min")
    shown = page.render(replace(made, trials=trials.assign(dataset="synthetic")), {}, {})
    assert f">{COUNTS.format(counts=counts, metric='val_loss', mode='min', of=said)}<" in shown
    assert (f'<p class="loud">{LOUD}</p>' in shown) == bool(statuses)


def test_what_is_not_finite_is_null_in_the_numbers() -> None:
    made = findings(table(CELLS), steps={"s": stepped({"a": [0.5], "b": [0.7]})})
    said = numbers(made)
    assert said["study"] == "made"
    assert said["ablation"]["s"][0]["change"] is None
    assert said["ablation"]["s"][1]["change"] == pytest.approx(0.2)
    assert said["status_counts"] == {"completed": 18}
    assert len(said["groups"]) == 1
    assert said["exponent"]["value"] is None
    assert np.isfinite(said["noise_std"])
    json.dumps(said, allow_nan=False)


def test_trials_that_the_last_command_did_not_ask_for_have_a_section_of_their_own(
    make_study: MakeStudy,
) -> None:
    """One seed of another momentum scored higher, and was called best of the study."""
    changes = [{"momentum": 0.9}, {"momentum": 0.5}]
    results = make_study(seeds=2, changes=changes)
    keys = trials(results).query("momentum == 0.5")["trial_key"]
    about = json.loads(Path(results.folder.uri, "study.json").read_text())
    commit_study(results, about | {"planned": list(keys)})
    found = of_study(results)
    assert set(found.trials["momentum"]) == {0.5}
    assert set(found.epochs["trial_key"]) == set(keys)
    assert len(found.analyses) == 1
    assert set(found.unplanned["momentum"]) == {0.9}
    assert any(caution.startswith("50 other trials in this folder: ") for caution in found.cautions)
    written = Path(write_report(results)).read_text()
    assert "Other trials in this folder" in written
    commit_study(results, {k: v for k, v in about.items() if k != "planned"})  # an older study
    assert len(of_study(results).analyses) == 2


def test_a_results_root_in_place_of_a_study_names_its_studies(tmp_path: Path) -> None:
    for name in ("b_grid", "a_grid"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.json").write_text("{}")
    with pytest.raises(ResultsError) as refused:
        of_study(Results("root", Folder(str(tmp_path))))
    assert str(refused.value) == (
        f"{tmp_path} has results of 2 studies (a_grid and b_grid): give the folder of one, such as "
        f"{tmp_path / 'a_grid'}"
    )


AVERAGING = {  # of which no column may be missing in a study's table
    "weight_decay": [0.05] * 2,
    "weight_decay_scaling": ["constant"] * 2,
    "optimizer": ["adamw"] * 2,
    "ema_decay": [0.99] * 2,
    "ema_scaling": ["constant"] * 2,
    "batch_size": [16, 256],
    "base_lr": [0.1, 0.1],
    "peak_lr": [0.025, 0.1],  # the square-root rule
    "updates": [None, None],
}
DECAY = (
    "weight_decay is the same at every batch size (weight_decay_scaling=constant). At one base_lr "
    "the weights of adamw then average over {}: part of the difference between batch sizes may be "
    "that of the decay. weight_decay_scaling={} keeps the number of {}."
)
EMA = (
    "ema_decay averages the weights of as many updates at every batch size (ema_scaling=constant), "
    "and so over 16 times as many images at batch size 256 as at 16. ema_scaling=half_life keeps "
    "the number of images."
)
EPOCHS = DECAY.format("4 times as many epochs at batch size 256 as at 16", "timescale", "epochs")
UPDATES = DECAY.format(
    "4 times as many updates at batch size 16 as at 256", "inverse_lr", "updates"
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, [EPOCHS, EMA]),
        ({"weight_decay_scaling": [None] * 2, "ema_scaling": [None] * 2}, [EPOCHS, EMA]),  # old
        ({"optimizer": ["sgd"] * 2}, [EMA]),
        ({"weight_decay": [0.0] * 2}, [EMA]),
        ({"weight_decay_scaling": ["timescale"] * 2}, [EMA]),
        ({"peak_lr": [0.1 / 16, 0.1]}, [EMA]),  # under the linear rule the epochs are the same
        ({"ema_decay": [0.0] * 2}, [EPOCHS]),
        ({"ema_scaling": ["half_life"] * 2}, [EPOCHS]),
        ({"batch_size": [16, 16], "peak_lr": [0.025] * 2}, []),
        ({"updates": [100, 100]}, [UPDATES]),
        ({"peak_lr": [None, 0.1]}, [EMA]),
    ],
)
def test_what_averages_over_more_images_at_larger_batches_is_said(
    changes: dict[str, Any], said: list[str]
) -> None:
    trials = pd.DataFrame({**AVERAGING, **changes})
    assert confounds(trials, {}, "val_auroc") == said


def test_a_table_without_such_fields_has_no_such_caution() -> None:
    trials = pd.DataFrame({name: AVERAGING[name] for name in ("batch_size", "base_lr")})
    assert confounds(trials, {}, "val_auroc") == []
    assert confounds(trials.iloc[:0], {}, "val_auroc") == []


def test_a_validation_split_drawn_image_by_image_is_cautioned_about(make_study: MakeStudy) -> None:
    caution = (
        "Validation was drawn from the training images one by one (split=by_image): images of one "
        "slide or patient may be in both, which makes scores too good. --set split_by=... keeps "
        "them together."
    )
    for split, times in (("by_image", 1), ("by_slide", 0), ("given", 0), (None, 0)):
        found = of_study(make_study(name=f"{split}", seeds=1, split=split))
        assert cautions_of(found).count(caution) == times


def test_what_else_the_scores_depend_on_is_said(make_study: MakeStudy) -> None:
    found = of_study(make_study(seeds=1, changes=[{"precise_bn_images": 0}]))
    assert any("BatchNorm's running averages lag" in caution for caution in found.cautions)
    about = {"base": {"select_by": "val_loss"}}
    found = of_study(make_study(name="other", seeds=1, about=about))
    assert [c for c in found.cautions if "the best val_loss, while val_auroc ranks" in c]
    assert not any("BatchNorm" in caution for caution in found.cautions)
    found = of_study(make_study(name="third", seeds=1, about={"base": {"select_by": "val_auroc"}}))
    assert not any("ranks the trials" in caution for caution in found.cautions)
