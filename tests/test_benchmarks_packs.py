"""Both sides of benchmarks.packs train the same trials and come to the same numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import packs
from benchmarks.packs import SMALL, WORKS, Work, configs_of, train

TINY = Work("tiny", 3, 64, 64, 1, SMALL | {"batch_size": 32, "width": 4, "image_size": 32})


def test_the_trials_of_a_work_differ_in_their_rate_alone(tmp_path: Path) -> None:
    for name, work in WORKS.items():
        weights = tmp_path / "vgg16.pt"
        torch.save({}, weights)
        configs = configs_of(work, weights)
        assert len({config.base_lr for config in configs}) == work.count == int(name[-1])
        assert len({replace(config, base_lr=1.0) for config in configs}) == 1


def test_packs_and_trials_one_by_one_come_to_the_same_losses(tmp_path: Path) -> None:
    configs = configs_of(TINY, tmp_path)
    threads = torch.get_num_threads()
    try:
        one_s, one_by_one = train(configs, 1, 1)
        pack_s, packed = train(configs, 3, 1)
    finally:
        torch.set_num_threads(threads)
    assert one_by_one == packed
    assert len(set(packed)) == 3
    assert min(one_s, pack_s) > 0


def test_an_error_of_a_trial_ends_the_benchmark(tmp_path: Path) -> None:
    configs = [replace(config, image_size=4096) for config in configs_of(TINY, tmp_path)]
    with pytest.raises(ValueError, match="image_size"):
        packs.train(configs, 3, 1)
