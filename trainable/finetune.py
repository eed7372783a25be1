"""The training loop: a generator that yields an EpochResult after each evaluation.

for result in finetune(TrialConfig(dataset="synthetic", model="plain", pretrained="none")):
    print(result)
"""

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import torch

from trainable.config import TrialConfig
from trainable.data.cache import Dataset, open_data
from trainable.host.device import claim_device, pick_device
from trainable.host.ranks import ALONE, Ranks
from trainable.host.storage import Folder
from trainable.pack import Member, Terms, train_pack
from trainable.record import EpochResult, TrialResult


def finetune(
    config: TrialConfig,
    *,
    data: Dataset | str | Path | None = None,
    checkpoint_folder: Folder | None = None,
    start_folder: Folder | None = None,
    keep_weights: bool = False,
    checkpoint_every_s: float = 0.0,
    device: torch.device | None = None,
    ranks: Ranks = ALONE,
) -> Generator[EpochResult, None, TrialResult]:
    """Train one model; yield after each evaluation and return a summary.

    `data` is an open data set, or the folder of the config's; without it, that is in `$DATA_DIR` or
    `data/`. With `checkpoint_folder`, the state is saved there before each yield; with
    `checkpoint_every_s`, only after so many seconds, while training goes on, and at the end. If it
    already contains a state of the trial, the trial is resumed: the evaluations in the state are
    yielded first, and all numbers equal those of an uninterrupted trial. `start_folder` is the
    checkpoint folder of the trial that the config `begins_from`. `keep_weights` saves the best
    weights in `checkpoint_folder`. A loss that is not finite ends the trial with status `diverged`.
    `ranks` are the processes that train it together: the others do `follow` meanwhile.

    Raises:
        DataError: the data is missing, broken, or too small for the batch.
        ValueError: the config does not fit its network, weights, teacher or device.
    """
    if not isinstance(data, Dataset):
        folder = Path(data) if data else None
        data = open_data(config.dataset, folder, split_by=config.split_by, task=config.task)
    member = Member(config=config, checkpoint_folder=checkpoint_folder, start_folder=start_folder)
    terms = Terms(
        data=data,
        device=device or pick_device(),
        keep_weights=keep_weights,
        checkpoint_every_s=checkpoint_every_s,
        ranks=ranks,
    )
    with closing(train_pack([member], terms)) as outcomes:
        for _, outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
            if isinstance(outcome, TrialResult):
                return outcome
            yield outcome
    raise AssertionError("a trial ends with a TrialResult or an error")


def follow(ranks: Ranks, config: TrialConfig, data: Dataset | str | None, num_threads: int) -> None:
    """What the other ranks do while the first one does `finetune`: the same, on their parts.

    Only the first one reads and writes checkpoints and yields evaluations.
    """
    claim_device(num_threads)
    for _ in finetune(config, data=data, ranks=ranks):
        pass
