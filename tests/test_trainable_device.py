"""A trial's part of a device: memory that is waited for and limited, threads. CUDA is faked."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from commands import ROOT

from trainable import probe
from trainable.config import TrialConfig
from trainable.data import batches
from trainable.data.batches import to_device
from trainable.data.cache import Dataset
from trainable.host import device
from trainable.host.device import GIB, limit_memory, memory_held_gib, room_bytes, wait_for_memory

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


class FakeGpu:
    """24 GiB, of which each look at it finds the next number free."""

    def __init__(self, free_gib: list[float]) -> None:
        self.free_gib, self.looks = free_gib, 0
        self.reserved = self.allocated = self.most_reserved = 0.0
        self.fractions: list[float] = []

    def mem_get_info(self, _: torch.device) -> tuple[int, int]:
        free = self.free_gib[min(self.looks, len(self.free_gib) - 1)]
        self.looks += 1
        return int(free * GIB), 24 * GIB


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    fake = FakeGpu([23.5])
    answers = {
        "mem_get_info": fake.mem_get_info,
        "memory_reserved": lambda _: int(fake.reserved * GIB),
        "memory_allocated": lambda _: int(fake.allocated * GIB),
        "max_memory_allocated": lambda _: int(fake.allocated * GIB),
        "max_memory_reserved": lambda _: int(fake.most_reserved * GIB),
        "current_device": lambda: 0,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    # Torch's own function, which checks what it is given, down to the call of its library.
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    take = "_cuda_setMemoryFraction"
    monkeypatch.setattr(torch._C, take, lambda f, _: fake.fractions.append(f), raising=False)
    ask = "_cuda_getMemoryFraction"
    monkeypatch.setattr(torch._C, ask, lambda _: fake.fractions[-1], raising=False)
    monkeypatch.setattr(device, "POLL_S", 0.01)
    return fake


def test_memory_is_waited_for_until_the_trial_before_has_died(gpu: FakeGpu) -> None:
    gpu.free_gib = [2.0, 2.0, 2.0, 23.5]
    wait_for_memory(CUDA, 1.0, timeout_s=10)
    assert gpu.looks == 4


def test_memory_that_stays_taken_is_an_error_with_both_numbers(gpu: FakeGpu) -> None:
    gpu.free_gib = [10.0]
    with pytest.raises(
        RuntimeError, match=r"^only 10\.0 of the GPU's 24\.0 GiB are free after 0\.05 s"
    ):
        wait_for_memory(CUDA, 1.0, timeout_s=0.05)
    with pytest.raises(RuntimeError, match=r"needs 19\.2: stop other programs on the GPU, or set"):
        wait_for_memory(CUDA, 1.0, timeout_s=0.05)
    wait_for_memory(CUDA, 0.5, timeout_s=0.05)  # half of it is there


def test_what_this_process_has_counts_as_free(gpu: FakeGpu) -> None:
    gpu.free_gib, gpu.reserved = [15.0], 5.0
    wait_for_memory(CUDA, 1.0, timeout_s=0.0)
    gpu.allocated = 5.0  # the data, which the next trial has already
    wait_for_memory(CUDA, 1.0, timeout_s=0.0)
    gpu.reserved = 4.0
    with pytest.raises(RuntimeError, match="needs"):
        wait_for_memory(CUDA, 1.0, timeout_s=0.0)


def test_a_share_is_a_limit_and_a_whole_gpu_lifts_it(gpu: FakeGpu) -> None:
    for share in (0.25, 1.0, 0.02, 0.0):
        limit_memory(CUDA, share)
    # CUDA's own memory is of the share too, but for a share that is hardly larger than that.
    assert gpu.fractions == [pytest.approx(0.25 - 0.5 / 24), 1.0, 0.01, 1.0]


def test_n_processes_at_their_limits_fit_the_gpu(gpu: FakeGpu) -> None:
    for n in (2, 3, 4, 10):
        limit_memory(CUDA, 1 / n)
        assert n * (gpu.fractions[-1] * 24 + 0.5) <= 24 + 1e-9


def test_what_was_measured_stays_below_the_limit_of_its_share(gpu: FakeGpu) -> None:
    from search.execution.resources import share_that_fits

    for peak_gib in (0.1, 1.0, 5.0, 9.5):
        gpu.most_reserved, gpu.reserved, gpu.free_gib = peak_gib, 0.1, [23.6]
        need_gib, total_gib = memory_held_gib(CUDA)
        share = share_that_fits(need_gib, total_gib, most=100)
        limit_memory(CUDA, share)
        assert gpu.fractions[-1] * 24 > peak_gib


def test_held_memory_is_the_peak_and_what_torch_does_not_count(gpu: FakeGpu) -> None:
    gpu.most_reserved, gpu.reserved, gpu.free_gib = 8.0, 2.0, [21.0]
    assert memory_held_gib(CUDA) == (pytest.approx(8.0 + 1.0), 24.0)
    gpu.free_gib = [22.0]  # nothing seen outside: what a context takes is counted all the same
    assert memory_held_gib(CUDA) == (pytest.approx(8.0 + 0.5), 24.0)
    gpu.free_gib, gpu.allocated = [21.6], 7.0  # less than a context, and what is in use is no more
    assert memory_held_gib(CUDA) == (pytest.approx(8.0 + 0.5), 24.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_held_memory_is_what_was_taken_and_given_back() -> None:
    torch.cuda.empty_cache()
    device.reset_peak_memory(CUDA)
    held_gib, total_gib = memory_held_gib(CUDA)
    room = room_bytes(CUDA)
    taken = torch.empty(GIB, dtype=torch.uint8, device=CUDA)
    assert room - room_bytes(CUDA) == pytest.approx(GIB / 2, rel=0.1)
    del taken
    torch.cuda.empty_cache()
    later_gib, _ = memory_held_gib(CUDA)
    assert later_gib == pytest.approx(held_gib + 1, abs=0.2)  # the peak, given back or not
    assert device.peak_memory_gib(CUDA) >= 1
    assert held_gib >= 0.5
    assert torch.cuda.get_device_properties(0).total_memory / GIB == pytest.approx(
        total_gib, rel=0.05
    )
    limit_memory(torch.device("cuda", 0), 4 / total_gib)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(4 * GIB, dtype=torch.uint8, device=CUDA)
        torch.empty(3 * GIB, dtype=torch.uint8, device=CUDA)
    finally:
        limit_memory(torch.device("cuda", 0), 1.0)
        torch.cuda.empty_cache()


def test_data_may_take_half_of_what_is_left_to_this_process(gpu: FakeGpu) -> None:
    gpu.fractions = [1.0]
    gpu.free_gib, gpu.reserved, gpu.allocated = [20.0], 3.0, 1.0
    assert room_bytes(CUDA) == pytest.approx((20 + 3 - 1) / 2 * GIB)
    gpu.fractions = [0.25]  # a quarter of 24 GiB, of which 1 is in use
    assert room_bytes(CUDA) == pytest.approx((6 - 1) / 2 * GIB)
    gpu.allocated = 7.0
    assert room_bytes(CUDA) == 0


def test_images_without_room_on_the_gpu_stay_where_they_are(tiny_data: Dataset) -> None:
    needed = tiny_data.train.images_NHWC.nbytes
    meta = torch.device("meta")  # a device that is not the CPU
    settings: dict[str, Any] = {"num_images": None, "image_size": None, "device": meta}
    fits = to_device(tiny_data.train, **settings, room_bytes=needed)
    too_large = to_device(tiny_data.train, **settings, room_bytes=needed - 1)
    assert fits.images_NHWC.device == meta
    assert too_large.images_NHWC.device == CPU
    assert too_large.labels_N.device == meta


def test_images_that_stayed_are_sent_batch_by_batch(
    tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = torch.device("meta")
    split = to_device(tiny_data.val, num_images=None, image_size=48, device=meta, room_bytes=0)
    sent: list[torch.Tensor] = []

    def send(images: torch.Tensor, to: torch.device) -> torch.Tensor:
        sent.append(images)
        return images.to(to)

    monkeypatch.setattr(batches, "_sent", send)
    constants = {"mean_C": torch.ones(3, device=meta), "std_C": torch.ones(3, device=meta)}
    images = torch.tensor(tiny_data.val.images_NHWC[:, 24:72, 24:72])
    config = TrialConfig(augment="none", batch_size=8)
    for images_BCHW, labels_B in batches.training_batches(
        split, config, batches.Place(), batch_size=8, **constants
    ):
        assert images_BCHW.device == labels_B.device == meta
        assert images_BCHW.shape == (8, 3, 48, 48)
    order = batches.training_order(32, seed=0, epoch=1)
    assert torch.equal(torch.cat(sent), images[order])
    sent.clear()
    for images_BCHW, labels_B in batches.evaluation_batches(split, batch_size=12, **constants):
        assert images_BCHW.device == labels_B.device == meta
    assert [len(each) for each in sent] == [12, 12, 8]
    assert torch.equal(torch.cat(sent), images)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("room", [0, 2**40])
def test_on_a_gpu_batches_are_the_cpus_wherever_the_images_lie(
    room: int, tiny_data: Dataset
) -> None:
    config = TrialConfig(augment="hflip+vflip+shift", batch_size=8)

    def all_batches(to: torch.device) -> torch.Tensor:
        split = to_device(tiny_data.val, num_images=None, image_size=48, device=to, room_bytes=room)
        on_host = room == 0 or to == CPU
        assert split.images_NHWC.device.type == ("cpu" if on_host else "cuda")
        constants = {"mean_C": torch.ones(3, device=to), "std_C": torch.ones(3, device=to)}
        place = batches.Place()
        made = list(batches.training_batches(split, config, place, batch_size=8, **constants))
        assert all(x.device.type == y.device.type == to.type for x, y in made)
        return torch.cat([images.cpu() for images, _ in made])

    torch.testing.assert_close(all_batches(CUDA), all_batches(CPU))


def test_a_cpu_is_not_asked(gpu: FakeGpu) -> None:
    wait_for_memory(CPU, 1.0, timeout_s=0.0)
    limit_memory(CPU, 0.5)
    assert gpu.looks == 0
    assert gpu.fractions == []


def test_threads_are_the_trials_whatever_the_environment_says() -> None:
    code = """
import scipy.linalg, sklearn, torch
from threadpoolctl import threadpool_info
from trainable.host.device import set_threads
def used():
    return {i["num_threads"] for i in threadpool_info()} | {torch.get_num_threads()}
print(max(used()))
set_threads(1)
print(max(used()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"},
        check=True,
    )
    assert done.stdout.split() == ["2", "1"]


@pytest.mark.parametrize("decay", ["cosine", "batch_growth"])
def test_memory_is_measured_over_updates_evaluation_and_the_largest_batch(
    decay: str,
    gpu: FakeGpu,
    tiny_config: TrialConfig,
    tiny_data: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the CPU as if it were a GPU, so that all of it runs but what CUDA answers."""
    from dataclasses import replace

    seen: list[int] = []
    trials: list[probe.Trial] = []

    class Watched(probe.Trial):
        def train_on(self) -> object:  # type: ignore[override]
            trials.append(self)
            update = self.step.update
            self.step.update = lambda x, y, lr: (seen.append(len(y)), update(x, y, lr))[1]  # type: ignore
            return super().train_on()

    class Device:
        type = "cuda"

    monkeypatch.setattr(probe, "pick_device", lambda: Device)
    monkeypatch.setattr(probe, "Trial", lambda c, d, _, f: Watched(c, d, CPU, f))
    gpu.most_reserved, gpu.free_gib = 3.0, [23.0]
    config = replace(tiny_config, batch_size=4, decay=decay, warmup_epochs=0, step_factor=0.5)
    used = probe.measure_memory(config, tiny_data, num_threads=1)
    assert used == probe.MemoryUse(need_gib=4.0, total_gib=24.0)
    # 96 training images: a batch grows to a tenth of them.
    assert seen == [9 if decay == "batch_growth" else 4] * probe.MEMORY_UPDATES
    assert not trials[0].feed.keeps_features
    assert len(trials[0].results) == 1  # evaluated, and the noise scale measured


def test_measuring_without_a_gpu_is_refused(tiny_config: TrialConfig, tiny_data: Dataset) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="PyTorch finds none"):
        probe.measure_memory(tiny_config, tiny_data, num_threads=1)
