"""What is measured on a GPU: on the CPU, with tiny trials, that it measures what it says."""

import importlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from benchmarks import gpu, gpu_study
from benchmarks.flops import PCAM_PX, random_bytes, vgg16_config
from benchmarks.gpu import BATCH_SIZES, Case, Row, Speed, cases, flop_of, images_of, table_of
from benchmarks.gpu_loops import images_per_s
from search.analysis.foreign_table import read_own_table
from trainable.config import TrialConfig
from trainable.data.cache import Dataset
from trainable.packing import pack_key
from trainable.record import EpochResult
from trainable.training import graph
from trainable.trial import Trial

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "on_gpu.sh"
TINY = TrialConfig(
    model="plain",
    pretrained="none",
    width=4,
    image_size=16,
    batch_size=32,
    epochs=2,
    precise_bn_images=0,
)
CASE = Case(side="ours", batch_size=16, pack=8)
SPEED = Speed(images_per_s=5e4, epoch_s=5.2, utilization=0.4, paths="cuda_graph")


@pytest.fixture(scope="module")
def noise() -> Dataset:
    return random_bytes(64)


def test_every_case_is_measured_once_and_the_important_ones_first() -> None:
    listed = list(cases())
    assert len(set(listed)) == len(listed)
    assert [(c.batch_size, c.pack) for c in listed[:6]] == [
        (size, pack) for size in (16, 256, 1024) for pack in (1, 8)
    ]
    first_of = [
        next(n for n, c in enumerate(listed) if is_kind(c))
        for is_kind in (
            lambda c: not c.graphs,
            lambda c: c.side != "ours",
            lambda c: not c.deterministic,
            lambda c: c.batch_size == 32,
        )
    ]
    assert first_of == sorted(first_of)
    ours = {(c.batch_size, c.pack) for c in listed if c.side == "ours" and c.graphs}
    assert ours == {(size, pack) for size in BATCH_SIZES for pack in (1, 4, 8)}
    # A graph is only tried up to this size: larger ones have nothing to switch off.
    without = {(c.batch_size, c.pack) for c in listed if not c.graphs}
    small = [size for size in BATCH_SIZES if size <= graph.MOST_IMAGES]
    assert without == {(size, pack) for size in small for pack in (1, 4, 8)}
    assert all(images_of(c.batch_size) >= 32 * c.batch_size for c in listed)
    assert all(images_of(c.batch_size) % c.batch_size == 0 for c in listed)


def test_frozen_blocks_are_counted_once_a_pack() -> None:
    """Of 9.714 GFLOP an image (tests/test_benchmarks_trial.py), the forward pass of three blocks:
    two operations for each weight of a 3x3 filter, input and output channel, and pixel.
    """
    sizes = ((96, 3, 64), (96, 64, 64), (48, 64, 128), (48, 128, 128))
    sizes = (*sizes, (24, 128, 256), (24, 256, 256), (24, 256, 256))
    prefix = sum(2 * 9 * side**2 * before * after for side, before, after in sizes)
    config = vgg16_config(Path("a_file"), batch_size=16, augment="none")
    assert PCAM_PX == 96
    whole = flop_of(config, 1)
    assert whole / 1e9 == pytest.approx(9.714, rel=5e-4)
    assert whole - flop_of(config, 8) == pytest.approx(prefix * 7 / 8, rel=1e-6)


@pytest.mark.parametrize("pack", [1, 2])
def test_a_row_of_ours_is_of_its_second_epoch(
    noise: Dataset, pack: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[Any] = []
    most = graph.MOST_IMAGES
    train_pack = gpu.train_pack

    def noted(*about: Any) -> Iterator[tuple[int, Any]]:
        for index, outcome in train_pack(*about):
            assert graph.MOST_IMAGES == 0
            outcomes.append(outcome)
            yield index, outcome

    monkeypatch.setattr(gpu, "train_pack", noted)
    case = Case(side="ours", batch_size=32, pack=pack, graphs=False, deterministic=False)
    speed, paths = gpu.our_images_per_s(TINY, noise, case, CPU)
    second = [o.images_per_s for o in outcomes if isinstance(o, EpochResult) and o.epoch == 2]
    assert len(second) == pack
    assert min(second) <= speed <= max(second)
    assert paths == "data_mapped"
    assert graph.MOST_IMAGES == most > 0  # switched off for this row alone


@pytest.mark.parametrize(("pack", "images_per_s"), [(1, 64 / 6), (2, 64 / 4), (4, 64 / 3)])
def test_seconds_are_those_of_an_epoch_and_trial(
    noise: Dataset, pack: int, images_per_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update takes a second; the first one on a batch three, with what all trials share."""
    now_s = [0.0]
    update = Trial.update

    def timed(trial: Trial) -> bool:
        is_due = update(trial)
        now_s[0] += 3.0 if trial.config.base_lr == TINY.base_lr else 1.0
        return is_due

    monkeypatch.setattr(Trial, "update", timed)
    monkeypatch.setattr(gpu, "flop_of", lambda *_: 2e9)
    monkeypatch.setattr("time.perf_counter", lambda: now_s[0])
    case = Case(side="ours", batch_size=32, pack=pack)
    row = gpu.measured(case, TINY, 1e12, noise)
    assert row.speed is not None, row.error
    # Two updates an epoch: of their rounds each trial has a share.
    assert row.speed.images_per_s == pytest.approx(images_per_s)
    assert row.speed.epoch_s == pytest.approx(262_144 / images_per_s)
    assert row.speed.utilization == pytest.approx(images_per_s * 2e9 / 1e12)


def test_an_error_is_the_rows(noise: Dataset) -> None:
    row = gpu.measured(CASE, replace(TINY, image_size=4096), 1e12, noise)
    assert row.speed is None
    assert "image_size" in row.error
    case = Case(side="ours", batch_size=32, precision="fp32")
    lost = replace(TINY, base_lr=1e30, lr_scaling="constant", decay="constant", norm="none")
    assert "not finite" in gpu.measured(case, lost, 1e12, noise).error


@pytest.mark.parametrize("side", ["torchvision", "timm"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_plain_loops_train(noise: Dataset, side: str, precision: str) -> None:
    config = replace(TINY, precision=precision, image_size=None)
    assert images_per_s(side, config, noise, CPU, workers=0) > 0


def test_rows_are_kept_one_by_one_and_when_the_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    now_s, kept = [0.0], list[int]()

    def measured(case: Case, *_: object) -> Row:
        kept.append(len(json.loads(out.read_text())["rows"]) if out.exists() else 0)
        now_s[0] += 60.0
        return Row(case=case, speed=SPEED) if len(kept) != 2 else Row(case=case, error="no memory")

    monkeypatch.setattr(gpu, "pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(gpu, "device_name", lambda _: "a card")
    monkeypatch.setattr(gpu, "matmul_peak_flop_per_s", lambda _: 7e14)
    monkeypatch.setattr(gpu, "base_config", lambda _: TINY)
    monkeypatch.setattr(gpu, "random_bytes", lambda _: None)
    monkeypatch.setattr(gpu, "measured", measured)
    monkeypatch.setattr("benchmarks.gpu.time.monotonic", lambda: now_s[0])
    monkeypatch.setattr("sys.argv", ["gpu", "--seconds", "150", "--out", str(out)])
    gpu.main()
    assert kept == [0, 1, 2]  # begun after 0, 60 and 120 seconds
    printed = capsys.readouterr()
    written = json.loads(out.read_text())
    assert written == json.loads(printed.out.splitlines()[-1])
    assert (written["device"], written["peak_tflop_per_s"]) == ("a card", 700.0)
    first, second, _ = written["rows"]
    assert first == asdict(next(cases())) | asdict(SPEED)
    assert second["error"] == "no memory"
    assert "epoch_s" not in second
    lines = printed.err.splitlines()
    assert [json.loads(line) for line in lines[:3]] == written["rows"]
    assert "time is up" in lines[3]
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]


def test_a_row_of_a_plain_loop_has_no_settings_of_ours() -> None:
    row = gpu.flat(Row(case=Case(side="timm", batch_size=16, precision="fp32"), speed=SPEED))
    assert row == {"side": "timm", "batch_size": 16, "precision": "fp32"} | asdict(SPEED)


def test_the_table_has_a_line_a_row() -> None:
    rows = [Row(case=CASE, speed=SPEED), Row(case=replace(CASE, pack=1), error="no memory")]
    table = table_of(rows, "a card")
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    assert cells[0] == ("16", "ours", "1", "", "bf16", "failed", "")
    assert cells[1] == ("16", "ours", "8", "yes", "bf16", "5.20", "40.0%")


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.argv", ["gpu"])
    monkeypatch.setattr(gpu, "pick_device", lambda: CPU)
    with pytest.raises(SystemExit) as end:
        gpu.main()
    assert end.value.code == 2
    assert "needs a GPU" in capsys.readouterr().err


# --- the study ------------------------------------------------------------------------------------


WORDS = ("--batch-sizes", "8", "128", "16", "--lrs", "0.01", "0.1", "1", "--pack", "2")


@pytest.fixture
def small_study(tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(TINY, epochs=1, augment="none")
    monkeypatch.setattr(gpu_study, "config_of", lambda *_, **__: small)
    monkeypatch.setattr(gpu_study, "open_data", lambda *_: tiny_data)


@pytest.mark.usefixtures("small_study")
def test_a_study_writes_each_pack_and_the_report_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "results" / "trials.parquet"
    written: list[int] = []
    write = gpu_study.write

    def noted(rows: list[dict[str, Any]], path: Path) -> None:
        write(rows, path)
        written.append(len(pd.read_parquet(path)))

    monkeypatch.setattr(gpu_study, "write", noted)
    monkeypatch.setattr("sys.argv", ["gpu_study", "--out", str(table), "--seeds", "2", *WORDS])
    gpu_study.main()
    assert written == [2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18]
    frame = pd.read_parquet(table)
    assert list(frame["batch_size"]) == sorted([8, 16, 128] * 3, reverse=True) * 2
    assert list(frame["seed"]) == [0] * 9 + [1] * 9
    # More than there are images: failed, and the others go on.
    too_large = frame["batch_size"] == 128
    assert (frame["status"][too_large] == "failed").all()
    assert frame["reason"][too_large].str.contains("larger than the 96").all()
    assert (frame["status"][~too_large] == "completed").all()
    assert list(frame["pack_size"][~too_large]) == [2, 2, 1] * 4
    assert frame["val_auroc"][~too_large].between(0, 1).all()
    for lr in ("base_lr", "peak_lr"):
        trials = read_own_table(table, batch_size="batch_size", lr=lr, metric="val_auroc").trials
        assert trials["status"].value_counts().to_dict() == {"completed": 12, "failed": 6}
        assert list(trials["seed"]) == list(frame["seed"])
        assert list(trials["lr"]) == list(frame[lr])
    assert list(frame["base_lr"] * frame["batch_size"] / 256) == list(frame["peak_lr"])
    assert [path.name for path in table.parent.iterdir()] == [table.name]


def test_a_pack_that_would_not_end_in_time_is_not_begun(
    tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    now_s = [0.0]
    spent_s = {32: 50.0, 16: 100.0, 8: 150.0}

    def train(configs: list[TrialConfig], _: Dataset) -> list[dict[str, Any]]:
        now_s[0] += spent_s[configs[0].batch_size]
        return [asdict(config) | {"status": "completed"} for config in configs]

    monkeypatch.setattr(gpu_study, "train", train)
    monkeypatch.setattr("benchmarks.gpu_study.time.monotonic", lambda: now_s[0])

    def trained(seconds: float) -> list[int]:
        now_s[0] = 0.0
        all_packs = gpu_study.packs(TINY, (8, 16, 32), (0.1,), seeds=2, size=7)
        rows = gpu_study.study(all_packs, tiny_data, tmp_path / "t.parquet", seconds=seconds)
        assert len(pd.read_parquet(tmp_path / "t.parquet")) == len(rows)
        return [row["batch_size"] for row in rows]

    assert trained(149.0) == [32]  # half the batch takes twice as long at most
    assert trained(349.0) == [32, 16]
    assert trained(350.0) == [32, 16, 8, 32]
    assert trained(599.0) == [32, 16, 8, 32, 16]  # a second seed takes as long as the first
    assert trained(1e9) == [32, 16, 8] * 2
    assert "batch size 8 is not begun: it would take 200 s, and 199 are left" in (
        capsys.readouterr().out
    )


def test_what_ends_a_pack_is_the_reason_of_its_trials(
    tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_pack = gpu_study.train_pack

    def ended(*about: Any) -> Iterator[tuple[int, Any]]:
        for index, outcome in train_pack(*about):
            yield index, outcome
            if not isinstance(outcome, EpochResult):
                raise RuntimeError("the GPU is lost")

    monkeypatch.setattr(gpu_study, "train_pack", ended)
    configs = [replace(TINY, base_lr=lr) for lr in (0.01, 0.1)]
    rows = gpu_study.train(configs, tiny_data)
    assert [row["status"] for row in rows] == ["completed", "failed"]
    assert rows[1]["reason"] == "RuntimeError: the GPU is lost"
    named = [row | {"pretrained": "/home/me/weights.pth"} for row in rows]
    gpu_study.write(named, tmp_path / "t.parquet")
    assert set(pd.read_parquet(tmp_path / "t.parquet")["pretrained"]) == {"weights.pth"}


def test_a_diverged_trial_is_a_row_with_its_reason(tiny_data: Dataset) -> None:
    config = replace(TINY, decay="constant", lr_scaling="constant", norm="none")
    rows = gpu_study.train([replace(config, base_lr=lr) for lr in (0.01, 1e30)], tiny_data)
    assert [row["status"] for row in rows] == ["completed", "diverged"]
    assert "not finite" in rows[1]["reason"]
    assert rows[0]["val_auroc"] > 0


def test_the_studys_recipe_fits_its_batch_sizes_and_rates(tmp_path: Path) -> None:
    config = gpu_study.config_of(tmp_path / "weights.pth", epochs=20)
    listed = list(
        gpu_study.packs(config, gpu_study.BATCH_SIZES, gpu_study.BASE_LRS, seeds=1, size=7)
    )
    assert [pack[0].batch_size for pack in listed] == [1024, 512, 256, 128, 64, 32, 16]
    assert all(len({pack_key(c) for c in pack}) == 1 for pack in listed)
    assert all([c.base_lr for c in pack] == list(gpu_study.BASE_LRS) for pack in listed)


# --- the script -----------------------------------------------------------------------------------


def parts_run(tmp_path: Path, *words: str, fails: str = "none") -> tuple[int, list[list[str]]]:
    """The status of the script, and the words of each command it gives to Python."""
    python = tmp_path / "python"
    python.write_text(
        f"""#!/bin/bash
printf "%s\\n" "$*" >> {tmp_path}/commands
echo "a line of $2"
[ "$2" != {fails} ]
"""
    )
    python.chmod(0o755)
    (tmp_path / "commands").write_text("")
    env = os.environ | {"PYTHON": str(python), "OUT": str(tmp_path / "out")}
    done = subprocess.run([SCRIPT, *words], env=env, capture_output=True, text=True, check=False)
    return done.returncode, [x.split() for x in (tmp_path / "commands").read_text().splitlines()]


def test_the_script_gives_words_that_its_modules_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    status, commands = parts_run(tmp_path)
    assert status == 0
    modules = [words[1] for words in commands]
    benchmarks = ["benchmarks.gpu", "benchmarks.packs", "benchmarks.gpu_study", "benchmarks.trial"]
    assert modules == ["pytest", *benchmarks]
    assert all(words[0] == "-m" for words in commands)
    marked = {
        f"tests/{path.name}"
        for path in (ROOT / "tests").glob("test_*.py")
        if "@pytest.mark.gpu" in path.read_text()
    }
    assert {word for word in commands[0] if word.startswith("tests/")} >= marked
    for _, module, *words in commands[1:]:
        monkeypatch.setattr("sys.argv", [module, "--help"])
        with pytest.raises(SystemExit) as end:
            importlib.import_module(module).main()
        assert end.value.code == 0
        shown = capsys.readouterr().out
        assert all(f"{word} " in shown for word in words if word.startswith("--"))
    kept = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert kept == ["packs.log", "study.log", "table.log", "tests.log", "trial.log"]
    assert "a line of benchmarks.gpu\n" in (tmp_path / "out" / "table.log").read_text()


def test_a_part_that_fails_is_the_status_and_the_others_go_on(tmp_path: Path) -> None:
    status, commands = parts_run(tmp_path, fails="benchmarks.packs")
    assert (status, len(commands)) == (1, 5)


def test_parts_end_before_ten_minutes_and_all_in_25() -> None:
    limits_s = [int(limit) for limit in re.findall(r"part \w+ (\d+) -m", SCRIPT.read_text())]
    assert len(limits_s) == 5
    assert max(limits_s) < 600
    assert sum(limits_s) <= 25 * 60


def test_the_script_runs_one_part_and_says_which_there_are(tmp_path: Path) -> None:
    status, commands = parts_run(tmp_path, "packs")
    assert (status, [words[1] for words in commands]) == (0, ["benchmarks.packs"])
    status, commands = parts_run(tmp_path, "pack")
    assert (status, commands) == (2, [])
