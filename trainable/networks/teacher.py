"""The teacher for distillation: a network with weights, or the best trial of another study."""

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainable.config import CLASSIFICATION, OWN_MODELS, TrialConfig, file_of
from trainable.host import storage
from trainable.host.messages import one_line
from trainable.host.storage import Folder
from trainable.networks.models import (
    bare_network,
    build_model,
    drop_auxiliary_heads,
    load_weights,
    replace_head,
    with_digest,
)

KEPT = "weights.pt"


# Mean and standard deviation of the channels of images.
Normalization = tuple[tuple[float, ...], tuple[float, ...]]


def keep_weights(
    folder: Folder,
    config: TrialConfig,
    model: nn.Module,
    num_classes: int,
    normalization: Normalization,
) -> None:
    """Write a trained network to a file from which alone it can be built and used again."""
    packed = io.BytesIO()
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    kept = {
        "config": asdict(config),
        "num_classes": num_classes,
        "model": state,
        "normalization": normalization,
    }
    torch.save(kept, packed)
    storage.write(folder, KEPT, packed.getvalue())


def kept_network(path: Path) -> tuple[nn.Module, int]:
    """The network in a file of `keep_weights`, and its number of classes.

    Raises:
        ValueError: `keep_weights` did not write the file.
    """
    try:
        kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        fields = kept["config"] | {"pretrained": "none", "train_blocks": None, "zero_gamma": False}
        frozen_norm = fields["norm"] == "frozen"
        config = TrialConfig(**fields | ({"norm": "batch"} if frozen_norm else {}))
        model = build_model(config, num_classes=kept["num_classes"])
        model.load_state_dict(kept["model"], strict=not frozen_norm)
    except Exception as error:  # the unpickler fails on broken files in many ways
        raise ValueError(
            f"{path} does not contain a trial's kept weights: {one_line(error)}"
        ) from error
    return model, kept["num_classes"]


def resolve_teacher(distill_from: str) -> str:
    """`distill_from` as the absolute path of its file with a digest; the driver calls this.

    Raises:
        ValueError: the file does not exist, or a study's folder has no kept weights.
    """
    network, colon, path = distill_from.rpartition(":")
    if colon and network and not Path(distill_from).exists():
        return f"{network}:{with_digest(path, 'distill_from')}"
    folder = Path(distill_from)
    if folder.is_dir():
        return with_digest(str(_best_kept(folder)), "distill_from")
    return with_digest(distill_from, "distill_from")


def _best_kept(results: Path) -> Path:
    if not (results / "trials").is_dir():
        raise ValueError(f"distill_from: {results} is not a study's results: it has no trials/")
    import pyarrow.parquet as pq

    rows = pq.read_table(results / "trials", columns=["trial_key", "status", "val_auroc"])
    kept = [
        (row["val_auroc"], results / "checkpoints" / row["trial_key"] / KEPT)
        for row in rows.to_pylist()
        if row["status"] == "completed" and row["val_auroc"] is not None
        if storage.is_name(row["trial_key"])
    ]
    kept = [(score, path) for score, path in kept if path.is_file() and score == score]
    if not kept:
        raise ValueError(
            f"distill_from: {results} has no trial with kept weights: run that study with "
            f"--set keep_weights=True"
        )
    best: Path = max(kept)[1]
    return best


def load_teacher(distill_from: str, *, num_classes: int) -> nn.Module:
    """The teacher in evaluation mode with frozen parameters.

    Raises:
        ValueError: it cannot be built, or has another number of classes.
    """
    source = file_of(distill_from)
    network, colon, path = source.rpartition(":")
    if colon and network and not Path(source).exists():
        if network in OWN_MODELS:
            raise ValueError(f"distill_from: for a {network} teacher give a trial's kept weights")
        model = bare_network(network)
        drop_auxiliary_heads(model)
        try:
            load_weights(model, Path(path))
        except ValueError:  # the file may have our head
            replace_head(model, num_classes=num_classes, dropout=0.0)
            load_weights(model, Path(path))
        classes = _outputs(model)
    else:
        model, classes = kept_network(Path(source))
        task = taught_as(distill_from)[0].task
        if task != CLASSIFICATION:
            raise ValueError(f"distill_from: the teacher {source} was trained for task={task}")
    if classes != num_classes:
        raise ValueError(
            f"the teacher {source} has {classes} classes, but the data has {num_classes}"
        )
    return model.requires_grad_(False).eval()


def taught_as(distill_from: str) -> tuple[TrialConfig, Normalization | None]:
    """A config that names the teacher's network and weights; the normalization kept with them.

    A state_dict is taken to expect images as ImageNet's weights do, as `pretrained=PATH` is.
    Weights that an older version kept have no normalization: it is that of their config.
    """
    source = file_of(distill_from)
    network, colon, path = source.rpartition(":")
    if colon and network and not Path(source).exists():
        return TrialConfig(model=network, pretrained=path), None
    kept: dict[str, Any] = torch.load(source, map_location="cpu", weights_only=True)
    return TrialConfig(**kept["config"]), kept.get("normalization")


class Renormalized(nn.Module):
    """A network that is given images normalized for another one."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, *, images: Normalization, wanted: Normalization) -> None:
        """`images` is the normalization of the images, `wanted` that of the network."""
        super().__init__()
        self.network = network
        (mean, std), (wanted_mean, wanted_std) = (
            [torch.tensor(values)[:, None, None] for values in pair] for pair in (images, wanted)
        )
        self.register_buffer("scale", std / wanted_std)
        self.register_buffer("shift", (mean - wanted_mean) / wanted_std)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The network's logits."""
        logits: Tensor = self.network(torch.addcmul(self.shift, images_BCHW, self.scale))
        return logits


def _outputs(model: nn.Module) -> int:
    last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    return last.out_features if isinstance(last, nn.Linear) else last.out_channels
