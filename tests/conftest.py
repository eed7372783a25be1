"""What tests share: a cache of their own, small data sets, the real patches where they are."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from trainable.config import TrialConfig
from trainable.data.cache import Dataset, Split
from trainable.data.synthetic import draw_patches

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees the user's cache or data, nor joins a cluster that runs on this machine."""
    torch.set_num_threads(1)  # two threads on a busy machine of two cores wait for each other
    changed = {"DATA_CACHE_DIR": str(tmp_path_factory.mktemp("cache")), "RAY_AUTH_MODE": "token"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changed.items():
            patch.setenv(name, value)
        for name in ("DATA_DIR", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        yield


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
    folder = Path(os.environ.get("SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data: set SHARED_DATA")
    return folder


MATRIX = pytest.StashKey[list[dict[str, Any]]]()


@pytest.fixture(scope="session")
def fault_matrix(pytestconfig: pytest.Config) -> list[dict[str, Any]]:
    """What each fault cost, printed when all tests have ended."""
    return pytestconfig.stash.setdefault(MATRIX, [])


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
