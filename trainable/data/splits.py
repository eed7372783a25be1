"""How validation is made: given, or taken from the training images, the same way every time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainable.data.groups import IMAGE, Groups, check_apart, named
from trainable.data.sources import DataError, Division, Labels

VAL_SHARE = 0.2  # of train, if a layout has no validation split
LEAST_GROUPS = round(1 / VAL_SHARE)
OWN_VAL = f"add a validation split of your own, or take split_by={IMAGE} to draw image by image"
GIVEN, BY_IMAGE = "given", "by_image"


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Indices of the images for train and for validation, ascending, and how they were drawn."""

    train: Labels
    val: Labels
    division: Division


def given(splits: Sequence[str], groups: Mapping[str, Groups], where: Path) -> Division:
    """How validation was made, of a data set that has its own splits.

    Raises:
        DataError: two of them have a group in common.
    """
    check_apart(groups, where)
    note = f"{', '.join(splits)} are the data set's own"
    if len(groups) > 1:
        by = next(iter(groups.values())).by
        counts = ", ".join(f"{split} {len(g.names)}" for split, g in groups.items())
        note += f", and no {by} is in two of them ({counts})"
    return Division(kind=GIVEN, note=f"{note}.")


def draw(
    labels_N: Labels,
    where: Path,
    *,
    groups: Groups | None = None,
    classes: Sequence[str] | None = None,
    share: float = VAL_SHARE,
) -> Draw:
    """80 % for training and 20 % for validation, by class, no group in both; always the same.

    Raises:
        DataError: there are too few images or groups.
    """
    if groups is not None:
        return _by_group(labels_N, groups, where, classes)
    train, val = stratified(labels_N, share, where)
    note = (
        f"There is no validation split: {share:.0%} of the training images are taken for it, at "
        f"random by class. Images of one slide or patient may be in both, which makes scores too "
        f"good; split_by keeps them together."
    )
    return Draw(train=train, val=val, division=Division(kind=BY_IMAGE, note=note))


def stratified(labels_N: Labels, share: float, where: Path) -> tuple[Labels, Labels]:
    """Indices of the larger and of the smaller part, each in ascending order."""
    from sklearn.model_selection import train_test_split

    try:
        larger, smaller = train_test_split(
            np.arange(len(labels_N)), test_size=share, stratify=labels_N, random_state=0
        )
    except ValueError as error:
        raise DataError(f"{where} cannot be split into train and validation: {error}") from error
    return np.sort(larger), np.sort(smaller)


def _by_group(labels_N: Labels, groups: Groups, where: Path, classes: Sequence[str] | None) -> Draw:
    names, number_N = np.unique(groups.of_images, return_inverse=True)
    if len(names) < LEAST_GROUPS:
        raise DataError(
            f"{where}: split_by={groups.by} gives too few groups: {named(names.tolist())}. "
            f"At least {LEAST_GROUPS} are needed to take {VAL_SHARE:.0%} of them for validation: "
            f"{OWN_VAL}"
        )
    _check_classes(labels_N, number_N, groups, where, classes)
    val = _best_fold(labels_N, number_N)
    if val is None:
        raise DataError(
            f"{where}: no draw of the {len(names)} groups of split_by={groups.by} leaves every "
            f"class in train and in validation: {OWN_VAL}"
        )
    note = (
        f"There is no validation split: {len(np.unique(number_N[val]))} of the {len(names)} groups "
        f"of split_by={groups.by} are taken for it, with {len(val) / len(labels_N):.0%} of the "
        f"training images. No group is in both."
    )
    return Draw(
        train=np.setdiff1d(np.arange(len(labels_N)), val),
        val=val,
        division=Division(kind=f"by_{groups.by}", note=note),
    )


def _check_classes(
    labels_N: Labels,
    number_N: Labels,
    groups: Groups,
    where: Path,
    classes: Sequence[str] | None,
) -> None:
    """Raises DataError for a class whose images are all in one group."""
    for label in np.unique(labels_N):
        of_class = np.unique(number_N[labels_N == label])
        if len(of_class) < 2:
            name = classes[label] if classes else label
            group = np.unique(groups.of_images)[of_class[0]]
            raise DataError(
                f"{where}: all images of class {name} are in one group of split_by={groups.by} "
                f"({group}), so train or validation would have none: {OWN_VAL}"
            )


def _best_fold(labels_N: Labels, number_N: Labels) -> Labels | None:
    """Of scikit-learn's folds the one whose share of each class is nearest to validation's.

    Groups differ in size, so that folds do. None if no fold has, and leaves, every class.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(LEAST_GROUPS, shuffle=True, random_state=0)
    counts = np.bincount(labels_N)
    present = counts > 0
    best, smallest = None, np.inf
    with warnings.catch_warnings():  # of a class with fewer images than folds
        warnings.simplefilter("ignore", UserWarning)
        try:
            drawn = [val for _, val in folds.split(labels_N, labels_N, number_N)]
        except ValueError:  # every class has fewer images than folds
            return None
    for val in drawn:
        in_val = np.bincount(labels_N[val], minlength=len(counts))[present]
        deviation = np.abs(in_val / counts[present] - VAL_SHARE).max()
        if (in_val > 0).all() and (in_val < counts[present]).all() and deviation < smallest:
            best, smallest = np.sort(val), deviation
    return best
