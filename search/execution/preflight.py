"""A space file and settings -> a study that can run: data there, trials planned, all checked."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from rich.console import Console

import spaces
from search.results.tables import Results, open_results
from search.study.domains import probes
from search.study.preview import as_preview
from search.study.settings import apply_settings
from search.study.space_file import SpaceFileError
from search.study.study import Study
from trainable.config import BUDGETS, SCORES_OF, TrialConfig
from trainable.data.cache import EMBEDDED, Dataset, locate, open_data
from trainable.data.sources import DataError

NO_DATA = (
    "no {} data in {}: this is a preview on the embedded synthetic patches (dataset=synthetic); "
    "--data DIR names the real ones"
)

OF_THE_DATA = ("dataset=", "split_by=")  # settings that mean nothing to embedded patches


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A study whose data is there and whose results can be written."""

    study: Study
    data: Dataset
    data_folder: Path | None
    data_fingerprint: str
    train_images: int
    results: Results


def prepare(
    study: Study,
    *,
    out: str,
    data: Path | None,
    preview: bool,
    settings: Sequence[str],
    console: Console,
    space_file: Path | None = None,
) -> Ready:
    """Check all that takes no network to be built; nothing is trained and no Ray is started.

    Where our own spaces find no data, they run as a preview: they show what the program does. Any
    other study is a question about its own data.

    Raises:
        SpaceFileError, DataError, ResultsError: the study, the data or `out` is wrong.
    """
    dataset = _set_to(settings, "dataset") or study.base.dataset
    asked = _set_to(settings, "split_by") or study.base.split_by or "none"
    split_by = None if asked.lower() == "none" else asked
    folder = data or Path(os.environ.get("DATA_DIR", "data"))
    task = _set_to(settings, "task")
    task = task if task in SCORES_OF else study.base.task  # another one is refused below
    of_data: dict[str, Any] = {"split_by": split_by, "task": task}
    is_there = dataset in EMBEDDED or locate(dataset, folder, **of_data) is not None
    if not is_there:
        shows_itself = dataset == study.base.dataset and _is_ours(space_file)
        if data or not (preview or shows_itself):
            _refuse(dataset, folder, of_data)
        console.print(NO_DATA.format(dataset, folder), style="yellow", markup=False)
        dataset, preview = "synthetic", True
    if preview:
        study = _previewed(study, dataset)
    study = apply_settings(
        study, [text for text in settings if is_there or not text.startswith(OF_THE_DATA)]
    )
    data_folder = folder.resolve() if study.base.dataset not in EMBEDDED else None
    opened = open_data(
        study.base.dataset, data_folder, split_by=study.base.split_by, task=study.base.task
    )
    if not preview:
        _check_size(study, opened)
    study = _with_files(study, opened, console, preview=preview)
    return Ready(
        study=study,
        data=opened,
        data_folder=data_folder,
        data_fingerprint=opened.fingerprint,
        train_images=min(len(opened.train.labels_N), study.base.train_images or sys.maxsize),
        results=open_results(out, study.name),
    )


def _set_to(settings: Sequence[str], field: str) -> str | None:
    """What `--set` gives a field, last; None if it is not set."""
    values = [text.partition("=")[2] for text in settings if text.startswith(f"{field}=")]
    return values[-1] if values else None


def _previewed(study: Study, dataset: str) -> Study:
    if dataset in EMBEDDED:  # which have no groups
        study = replace(study, base=replace(study.base, split_by=None))
    try:
        return as_preview(study, dataset=dataset)
    except ValueError as error:
        raise SpaceFileError(str(error)) from error


def _refuse(dataset: str, folder: Path, of_data: Mapping[str, Any]) -> None:
    """Raises DataError with what was looked for."""
    try:
        open_data(dataset, folder, **of_data)
    except DataError as error:
        raise DataError(
            f"{error}; --data DIR names the folder, --preview takes embedded patches"
        ) from error


def _is_ours(space_file: Path | None) -> bool:
    return space_file is not None and space_file.resolve().parent == Path(spaces.__file__).parent


def _check_size(study: Study, data: Dataset) -> None:
    """Raises SpaceFileError where there are fewer images than the study asks for."""
    splits = {"train_images": data.train, "eval_images": data.val}
    for name, split in splits.items():
        wanted = max(getattr(config, name) or 0 for config in study.configs)
        num_images = len(split.labels_N)
        if wanted > num_images:
            raise SpaceFileError(
                f"{name}={wanted}, but {data.name} has {num_images} such images: take "
                f"--set {name}={num_images}, or --set {name}=none for all"
            )


def check_images(ready: Ready) -> None:
    """Check each configuration against the data's images.

    Raises:
        SpaceFileError: there are too few for a batch, or they are too small.
    """
    num_images = len(ready.data.train.labels_N)
    side = min(ready.data.train.images_NHWC.shape[1:3])
    for config in ready.study.configs:
        n = min(num_images, config.train_images or sys.maxsize)
        if config.batch_size > n:
            raise SpaceFileError(
                f"batch_size {config.batch_size} is larger than the {n} training images: take "
                f"a smaller batch or more images"
            )
        if config.image_size and config.image_size > side:
            raise SpaceFileError(
                f"image_size {config.image_size} is larger than the images ({side} px)"
            )


# What says how a network is trained. A field that is missing here costs time alone.
OF_TRAINING = {
    *("batch_size", "microbatch_size", "base_lr", "lr_scaling", "reference_batch_size"),
    *("optimizer", "momentum", "nesterov", "beta1", "beta2", "eps", "beta_scaling"),
    *("weight_decay", "weight_decay_scaling", "no_bias_decay", "head_lr_factor"),
    *("clip_grad_norm", "warmup_epochs", "warmup_share", "warmup_scaling", "decay", "num_steps"),
    *("step_factor", "power", *BUDGETS, "eval_epochs", "eval_updates", "until_share"),
    *("begins_from", "early_stop_patience", "label_smoothing", "mixup_alpha", "cutmix_alpha"),
    *("ema_decay", "ema_scaling", "train_images", "eval_images", "augment", "seed"),
}


def check_networks(ready: Ready) -> None:
    """Build each network that a configuration has, which imports torch.

    Raises:
        SpaceFileError: there is no such network, or it does not fit the images.
    """
    from trainable.networks.models import check_model

    side = min(ready.data.train.images_NHWC.shape[1:3])
    parts = attrgetter(*(f.name for f in fields(TrialConfig) if f.name not in OF_TRAINING))
    different = {parts(config): config for config in ready.study.configs}  # of many thousand
    for config in different.values():
        try:
            check_model(config, num_classes=len(ready.data.classes), image_size=side)
        except ValueError as error:
            raise SpaceFileError(str(error)) from error


def check_precision(study: Study, *, address: str) -> None:
    """Refuse fp16 on this machine's cores before Ray is started; of a cluster, Ray says more.

    Raises:
        SpaceFileError: there is no GPU here.
    """
    if address != "local" or all(config.precision != "fp16" for config in study.configs):
        return
    from trainable.host.device import pick_device  # torch: only for those who ask for fp16

    if pick_device().type == "cpu":
        raise SpaceFileError("precision=fp16 needs a GPU, and there is none: take bf16 or fp32")


def _with_files(study: Study, data: Dataset, console: Console, *, preview: bool) -> Study:
    """The study with weights and teacher as they can be had here, files with their digests.

    A preview does without ImageNet weights where there are none.

    Raises:
        SpaceFileError: a file is missing, is not weights, or is of another network; or ImageNet
            weights are missing.
    """
    base = study.base
    if base.pretrained == "none" and not base.distill_from and "pretrained" not in study.vary:
        return study
    # torch: not for a command with a typing error
    from trainable.networks.models import available_weights
    from trainable.networks.teacher import load_teacher, resolve_teacher

    try:
        if study.base.distill_from:
            teacher = resolve_teacher(study.base.distill_from)
            load_teacher(teacher, num_classes=len(data.classes))
            study = replace(study, base=replace(study.base, distill_from=teacher))
        if "pretrained" in study.vary:
            files = [
                available_weights(study.base.model, str(weights))
                for weights in probes(study.vary["pretrained"])
            ]
            return replace(study, vary={**study.vary, "pretrained": {"grid_search": files}})
        had = study.base.pretrained
        for model in {config.model for config in study.configs}:
            had = available_weights(model, study.base.pretrained)
            if had == "none" and study.base.pretrained != "none":
                if not preview:
                    raise SpaceFileError(
                        f"the ImageNet weights of {model} are not in torch's cache, and fetching "
                        f"them failed: --set pretrained=PATH gives a file, --set pretrained=none "
                        f"trains from scratch"
                    )
                console.print(
                    f"no ImageNet weights for {model} in torch's cache, and fetching them failed: "
                    f"training from scratch (pretrained=none); --set pretrained=PATH gives a file",
                    style="yellow",
                    markup=False,
                )
                break
        blocks = None if had == "none" else study.base.train_blocks
        return replace(study, base=replace(study.base, pretrained=had, train_blocks=blocks))
    except ValueError as error:
        raise SpaceFileError(str(error)) from error
