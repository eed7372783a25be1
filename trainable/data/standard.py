"""Standard data sets: CIFAR-10, CIFAR-100 and MNIST-like sets, and the embedded digits."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainable.data.groups import IMAGE
from trainable.data.sources import (
    CHUNK_IMAGES,
    DataError,
    Division,
    Images,
    Labels,
    Source,
    SplitSource,
    as_labels,
)
from trainable.data.splits import BY_IMAGE, VAL_SHARE, draw, stratified

ADMINISTRATOR = 0


def find_torchvision(folder: Path, split_by: str | None = None) -> Source | None:
    """CIFAR and MNIST-like files as torchvision stores them; 10 % of train becomes validation."""
    names = ("cifar-10-batches-py", "cifar-100-python", "MNIST", "FashionMNIST", "KMNIST")
    name = next((name for name in names if (folder / name).is_dir()), None)
    if name is None:
        return None
    check_ungrouped(name, split_by)
    from torchvision import datasets  # a second that other layouts need not wait

    kinds = {
        "cifar-10-batches-py": datasets.CIFAR10,
        "cifar-100-python": datasets.CIFAR100,
        "MNIST": datasets.MNIST,
        "FashionMNIST": datasets.FashionMNIST,
        "KMNIST": datasets.KMNIST,
    }
    if name.startswith("cifar"):
        _check_owner(folder / name)
    try:
        train, test = (kinds[name](str(folder), train=t, download=False) for t in (True, False))
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        raise DataError(f"{folder / name} cannot be read: {error}; download it again") from error
    arrays = {
        split: (_as_rgb(np.asarray(part.data)), as_labels(part.targets, folder / name))
        for split, part in (("train", train), ("test", test))
    }
    images, labels = arrays["train"]
    drawn = draw(labels, folder / name, share=VAL_SHARE / 2)
    arrays |= {
        split: (images[index], labels[index])
        for split, index in (("train", drawn.train), ("val", drawn.val))
    }
    return Source(
        layout=name.lower(),
        files=tuple(sorted(p for p in (folder / name).rglob("*") if p.is_file())),
        classes=tuple(train.classes),
        splits={split: in_memory(*arrays[split]) for split in ("train", "val", "test")},
        division=drawn.division,
    )


def check_ungrouped(name: str, split_by: str | None) -> None:
    """Raises DataError where groups are asked for of a data set that names none."""
    if split_by not in (None, IMAGE):
        raise DataError(f"split_by={split_by}: {name} has no groups of images: leave split_by out")


def _check_owner(folder: Path) -> None:
    """CIFAR's files are pickles, and reading a pickle can run any code in it.

    Raises:
        DataError: someone other than this user or the administrator could have written them.
    """
    for path in (folder, *folder.iterdir()):
        status = path.stat()
        if status.st_uid not in (ADMINISTRATOR, os.geteuid()) or status.st_mode & stat.S_IWOTH:
            raise DataError(
                f"{path} belongs to another user or is writable by everyone, and reading it can "
                f"run code: copy {folder} to a folder of your own and use chmod -R o-w"
            )


def _as_rgb(images: Images) -> Images:
    """Repeat the channel of grey images (N, H, W) three times."""
    return images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=-1)


def in_memory(images_NHWC: Images, labels_N: Labels) -> SplitSource:
    """A split of images that are already decoded."""

    def read() -> Iterator[Images]:
        for start in range(0, len(images_NHWC), CHUNK_IMAGES):
            yield images_NHWC[start : start + CHUNK_IMAGES]

    return SplitSource(labels_N=labels_N, read=read)


def digits_source() -> Source:
    """The 1,797 handwritten digits that scikit-learn contains, 8x8 px, ten classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = _as_rgb(np.minimum(bunch.images * 16, 255).astype(np.uint8))
    labels = as_labels(bunch.target, Path("digits"))
    rest, test = stratified(labels, 0.2, Path("digits"))
    kept, val = stratified(labels[rest], 0.25, Path("digits"))
    index = {"train": rest[kept], "val": rest[val], "test": test}
    return Source(
        layout="digits",
        files=(),
        classes=tuple(str(d) for d in range(10)),
        splits={split: in_memory(images[i], labels[i]) for split, i in index.items()},
        division=Division(
            kind=BY_IMAGE,
            note="60%, 20% and 20% of the images are train, val and test, at random by class.",
        ),
    )
