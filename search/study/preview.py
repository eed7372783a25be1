"""The small study that `--preview` runs in place of a study."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray import tune
from ray.tune.search.sample import Domain

from search.study.study import EXPLORE, Study

# What a preview changes in any study; the study's own `preview` goes on top.
PREVIEW: Mapping[str, object] = {
    "model": "plain",
    "pretrained": "none",
    "train_blocks": None,
    "image_size": 48,
    "train_images": 2048,
    "eval_images": 1000,
    "epochs": 5,
    "updates": None,
    "examples": None,
    "seconds": None,
    "eval_epochs": 1,
    "eval_updates": None,
    "warmup_epochs": 0.0,
    "warmup_share": 0.0,
    "precision": "fp32",
}


def as_preview(study: Study, *, dataset: str) -> Study:
    """The same shape of study with a small network, few images and few epochs.

    Raises:
        ValueError: the study's `preview` gives a field that varies a single value.
    """
    changes = {**PREVIEW, **study.preview, "dataset": dataset}
    explore: Any = changes.pop(EXPLORE, study.explore)
    vary = dict(study.vary)
    fixed: dict[str, Any] = {}
    for name, value in changes.items():
        if isinstance(value, list | tuple):
            vary[name] = tune.grid_search(list(value))
        elif isinstance(value, Domain):
            vary[name] = value
        elif name not in vary:
            fixed[name] = value
        else:
            raise ValueError(f"preview: {name} varies, so give a list of values, got {value!r}")
    base = replace(study.base, **fixed)
    return replace(study, base=base, vary=vary, explore=explore, preview={})
