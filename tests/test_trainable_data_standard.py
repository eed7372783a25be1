"""Standard data sets, and the embedded ones."""

from pathlib import Path

import numpy as np
import pytest
from made_data import write_cifar, write_mnist
from sklearn.datasets import load_digits

from trainable.data.cache import EMBEDDED, open_data
from trainable.data.synthetic import CENTRE_PX, draw_patches


def test_synthetic_patches_depend_on_the_seed_alone() -> None:
    labels = np.array([0, 1, 1, 0])
    first, second = (draw_patches(labels, np.random.default_rng(5)) for _ in range(2))
    other = draw_patches(labels, np.random.default_rng(6))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert first.shape == (4, 96, 96, 3)


def test_synthetic_label_is_about_the_centre() -> None:
    n = 400
    low, high = CENTRE_PX
    darkness = {}
    for label in (0, 1):
        patches = draw_patches(np.full(n, label), np.random.default_rng(1)).astype(float)
        centre = patches[:, low:high, low:high].mean()
        corner = patches[:, :20, :20].mean()
        darkness[label] = centre, corner
    # Tumour nuclei are larger and darker: only the centre's mean tells the classes apart.
    assert darkness[0][0] - darkness[1][0] > 3.0
    assert abs(darkness[0][1] - darkness[1][1]) < 1.0


def test_cifar10_is_read_through_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path)
    # torchvision knows the checksums of the real files, which these are not.
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = open_data("cifar", tmp_path)
    assert (data.layout, data.classes) == ("cifar-10-batches-py", tuple("abcdefghij"))
    assert data.train.images_NHWC.shape[1:] == (32, 32, 3)
    assert [len(s.labels_N) for s in (data.train, data.val)] == [180, 20]
    assert data.test is not None
    assert data.test.labels_N.tolist() == list(range(10)) * 4


def test_mnist_is_read_through_torchvision(tmp_path: Path) -> None:
    images = write_mnist(tmp_path)
    data = open_data("mnist", tmp_path)
    assert data.test is not None
    assert data.classes[0] == "0 - zero"
    assert np.array_equal(data.test.images_NHWC[..., 1], images["t10k"])
    assert data.test.labels_N.tolist() == [i % 10 for i in range(20)]
    assert np.bincount(data.val.labels_N).tolist() == [2] * 10


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_embedded_set_needs_no_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = EMBEDDED[name]()
    for split in ("train", "val", "test"):
        labels = source.splits[split].labels_N
        assert set(labels.tolist()) == set(range(len(source.classes)))


def test_digits_are_scikit_learns() -> None:
    data = open_data("digits")
    assert data.test is not None
    parts = (data.train, data.val, data.test)
    assert [len(part.labels_N) for part in parts] == [1077, 360, 360]
    pixels = np.concatenate([part.images_NHWC[..., 0] for part in parts]).astype(float)
    assert (
        np.sort(pixels.sum((1, 2))).tolist()
        == np.sort(np.minimum(load_digits().images * 16, 255).sum((1, 2))).tolist()
    )
    assert len(data.classes) == 10
