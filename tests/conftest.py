"""What tests share: a cache of their own, small data sets, the real patches where they are."""

import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from search.results.tables import EPOCHS, TRIALS, Results, commit_study, open_results
from trainable.config import TrialConfig
from trainable.data.cache import Dataset, Split
from trainable.data.resident import forget
from trainable.data.synthetic import draw_patches

pytest_plugins = ["commands", "faulty_study"]  # fixtures that are written there


# --- how the suite is shared between two processes ------------------------------------------------


def pytest_configure() -> None:
    """Ray reads it when it is imported."""
    os.environ["RAY_AUTH_MODE"] = "token"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for the whole suite, one where files or names are given: it starts sooner."""
    whole_suite = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return 2 if whole_suite and not config.option.keyword else 0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start Ray run first, since they take the longest: faults in the other process.

    A fault mostly waits until it is noticed. Other tests with Ray take both cores: two of them at
    once would only wait for each other. Those that start a cluster of their own come before those
    that share one, which then stays until the end.
    """
    for item in items:
        if item.get_closest_marker("faults"):
            item.add_marker(pytest.mark.xdist_group("faults"))
        elif item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3600))
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    if item.get_closest_marker("xdist_group") is None:
        return 2
    return int(bool({"shared_cluster", "two_gpu_nodes"} & set(getattr(item, "fixturenames", ()))))


# --- what each test gets --------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees the user's cache or data, nor joins a cluster that runs on this machine."""
    torch.set_num_threads(1)  # two threads on a busy machine of two cores wait for each other
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        for name in ("DATA_DIR", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True)
def seeded_networks() -> None:
    """Networks begin alike in each run, so that what fails, fails again."""
    torch.manual_seed(20_261_124)  # no seed that a test sets


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    """No test finds the images and features of the one before."""
    forget()


@pytest.fixture(scope="session")
def tiny_data() -> Dataset:
    """160 synthetic patches in memory."""

    def split(n: int, seed: int) -> Split:
        labels = np.arange(n, dtype=np.int64) % 2
        images = draw_patches(labels, np.random.default_rng(seed))
        return Split(images_NHWC=images, labels_N=labels)

    return Dataset(
        name="tiny",
        layout="memory",
        classes=("normal", "tumour"),
        fingerprint="tiny",
        mean=(0.9, 0.7, 0.9),
        std=(0.1, 0.15, 0.06),
        train=split(96, 0),
        val=split(32, 1),
        test=split(32, 2),
    )


@pytest.fixture
def tiny_config() -> TrialConfig:
    """A trial of a second or less."""
    return TrialConfig(
        dataset="tiny",
        model="plain",
        pretrained="none",
        width=4,
        image_size=48,
        batch_size=16,
        base_lr=0.5,
        momentum=0.9,
        dropout=0.2,
        augment="hflip+vflip+shift",
        warmup_epochs=0.5,
        weight_decay=1e-3,
        epochs=4,
        precision="fp32",
    )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data."""
    folder = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data: set SHARED_DATA")
    return folder


MATRIX = pytest.StashKey[list[dict[str, Any]]]()


@pytest.fixture(scope="session")
def fault_matrix(pytestconfig: pytest.Config) -> list[dict[str, Any]]:
    """What each fault cost, printed when all tests have ended."""
    return pytestconfig.stash.setdefault(MATRIX, [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the fault matrix from the process that ran the faults to the one that prints."""
    rows = session.config.stash.get(MATRIX, [])
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = rows
    elif path := os.environ.get("FAULT_ROWS"):  # of benchmarks/faults.py
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a process sent at its end."""
    rows = getattr(node, "workeroutput", {}).get("faults", [])
    node.config.stash.setdefault(MATRIX, []).extend(rows)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the fault matrix."""
    rows = config.stash.get(MATRIX, [])
    if not rows:
        return
    table = pd.DataFrame(rows)
    by = table.groupby("fault", sort=False)
    shown = by.mean().round(1)
    shown.insert(0, "times", by.size())
    terminalreporter.section("faults (seconds; means)")
    terminalreporter.write_line(shown.to_string(na_rep="-"))


# --- tables, as trials write them -----------------------------------------------------------------


@pytest.fixture(scope="session")
def make_study(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Results]:
    """Writes the folder of a study whose best peak lr is 0.001 B, in one Parquet file a table."""

    def make(
        name: str = "made",
        *,
        batch_sizes: Sequence[int] = (16, 32, 64, 128, 256),
        lrs: Sequence[float] = (0.03, 0.1, 0.3, 1.0, 3.0),
        seeds: int = 3,
        epochs: int = 4,
        changes: Sequence[Mapping[str, object]] = ({},),
        noise: float = 0.004,
        about: Mapping[str, object] | None = None,
        **row: object,
    ) -> Results:
        rng = np.random.default_rng(0)
        out = tmp_path_factory.mktemp("studies")
        trials, evaluations = [], []
        cells = itertools.product(changes, batch_sizes, lrs, range(seeds))
        for at, (change, batch_size, base_lr, seed) in enumerate(cells):
            fields: dict[str, Any] = {
                "batch_size": batch_size,
                "base_lr": base_lr,
                "lr_scaling": "linear",
                "seed": seed,
                "epochs": epochs,
            }
            config = TrialConfig(**{**fields, **change})
            best = 0.9 - 0.05 * np.log10(base_lr / 0.256) ** 2 + rng.normal(0, noise)
            best -= 0.01 * at / len(batch_sizes) / len(lrs) / seeds
            diverged = base_lr == max(lrs) and batch_size == max(batch_sizes) and seed == 0
            scores = best - 0.2 * 0.5 ** np.arange(1, epochs + 1)
            updates = 2**14 // batch_size
            key = f"{name}{at:013d}"
            identity = {"study": name, "trial_key": key, "seed": seed, "attempt": 1}
            ended = {
                "status": "diverged" if diverged else "completed",
                "reason": "the loss is NaN at epoch 2" if diverged else "",
                "val_auroc": None if diverged else float(scores.max()),
                "val_loss": None if diverged else float(1 - scores.max()),
                "test_auroc": None if diverged else float(scores.max() - 0.01),
                "epochs_completed": epochs,
                "train_wall_s": 1.5 * epochs,
                "images_per_s": 1000.0 + batch_size,
                "peak_memory_gib": 1.0,
                "noise_scale": 90.0,
                "num_gpus": 0.0,
                "device": "cpu",
                "data_fingerprint": "abc",
            }
            trials.append({**asdict(config), **identity, **ended, **row})
            evaluations += [
                {
                    **identity,
                    "epoch": epoch,
                    "updates": updates * epoch,
                    "examples_seen": updates * epoch * batch_size,
                    "lr": base_lr,
                    "val_auroc": float(score),
                    "val_loss": float(1 - score),
                    "epoch_wall_s": 1.5,
                }
                for epoch, score in enumerate(scores, 1)
            ]
        results = open_results(str(out), name)
        varied = {"batch_size": list(batch_sizes), "base_lr": list(lrs)}
        commit_study(
            results,
            {
                "name": name,
                "metric": "val_auroc",
                "base": asdict(TrialConfig(lr_scaling="linear", epochs=epochs)),
                "vary": {field: {"grid_search": values} for field, values in varied.items()},
                "explore": "Grid(widen=0, refine=0)",
                "versions": {"python": "3"},
                "commit": "c0ffee",
                **(about or {}),
            },
        )
        for table, schema, rows in (("trials", TRIALS, trials), ("epochs", EPOCHS, evaluations)):
            folder = out / name / table
            folder.mkdir(exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "all.parquet")
        return results

    return make


@pytest.fixture(scope="session")
def draw_trials() -> Callable[..., pd.DataFrame]:
    """Draws trials of a known surface: a parabola in log lr about a best of 0.16 (B / 64)^exponent.

    Grids of five batch sizes and nine lrs, a factor of two apart. `lost` trials are stopped by a
    scheduler that lets the better half go on, or diverge above 5.6 lr*, more of them the higher.
    """

    def draw(
        rng: np.random.Generator,
        *,
        exponent: float = 0.7,
        noise: float = 0.003,
        fall: float = 0.004,
        seeds: int = 3,
        lost: bool = False,
    ) -> pd.DataFrame:
        grid = itertools.product([16, 32, 64, 128, 256], 0.01 * 2.0 ** np.arange(9), range(seeds))
        table = pd.DataFrame(grid, columns=["batch_size", "base_lr", "seed"])
        best = 0.16 * (table["batch_size"] / 64) ** exponent
        octaves = np.log2(table["base_lr"] / best).to_numpy()
        score = 0.9 - fall * octaves**2 + noise * rng.standard_normal(len(table))
        status = np.full(len(table), "completed", dtype=object)
        if lost:
            half_way = score + noise * rng.standard_normal(len(table))
            status[half_way < np.median(half_way)] = "stopped"
            status[rng.random(len(table)) < 1 / (1 + np.exp((2.5 - octaves) / 0.3))] = "diverged"
            score = np.where(status == "diverged", np.nan, score)
        return table.assign(best=best, status=status, val_auroc=score)

    return draw


@pytest.fixture(scope="session")
def hostile() -> str:
    """Text that breaks out of an element, an attribute or a script, where it is not escaped."""
    return "</script><script>window.broken=1</script><img src=x onerror='window.broken=2'>\"&"


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch, drawn_patches: None) -> Iterator[None]:
    """The command in this process, on two cores that Ray does not start; it times nothing."""
    from cluster.connect import Cluster  # Ray, which most tests do without
    from trainable.probe import Measured

    here = Cluster(address="local", dashboard="", num_nodes=1, num_cpus=2, num_gpus=0)
    speeds = Measured(
        images_per_s=1000.0,
        train_images=2048,
        eval_s=0.5,
        test_s=0.5,
        start_s=0.1,
        save_s=0.1,
        checkpoint_bytes=100_000,
        weights_bytes=30_000,
        device="a device",
    )
    monkeypatch.setattr("cluster.connect.connect", lambda address, **_: here)
    monkeypatch.setattr("cluster.connect.disconnect", lambda: None)
    monkeypatch.setattr("search.execution.dry_run._time", lambda *about: (speeds, 0.0))
    monkeypatch.setenv("COLUMNS", "200")
    before = signal.getsignal(signal.SIGTERM)  # the command puts its own there
    yield
    signal.signal(signal.SIGTERM, before)
