"""The gradient noise scale, from sums done by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from trainable.training.noise import NoiseSums, estimate, measure, probe_images


def test_estimates_are_exact_where_expectations_are() -> None:
    # E|G_B|^2 = |G|^2 + tr(Sigma) / B, with |G|^2 = 3 and tr(Sigma) = 80.
    sums = estimate(3 + 80 / 4, 3 + 80 / 32, small_batch=4, big_batch=32)
    assert (sums.trace_sigma, sums.squared_gradient) == (pytest.approx(80), pytest.approx(3))
    assert sums.scale == pytest.approx(80 / 3)


def test_sums_are_added_before_they_are_divided() -> None:
    both = NoiseSums(10.0, 1.0) + NoiseSums(2.0, 3.0)
    assert both == NoiseSums(12.0, 4.0)
    assert both.scale == 3.0


@pytest.mark.parametrize(("trace", "squared"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (1.0, -1.0)])
def test_a_scale_needs_a_gradient_and_noise(trace: float, squared: float) -> None:
    assert math.isnan(NoiseSums(trace, squared).scale)


@pytest.mark.parametrize(
    ("train", "probed"),
    [
        (7, 0),
        (15, 8),
        (63, 56),
        (64, 64),
        (2048, 64),
        (2400, 72),  # 75, in whole parts
        (2559, 72),
        (2560, 80),
        (32 * 1024, 1024),
        (10**6, 1024),
    ],
)
def test_a_probe_is_a_thirty_second_of_the_images_in_whole_parts(train: int, probed: int) -> None:
    assert probe_images(train) == probed


class Recorded(nn.Module):
    """A linear model with a dropout and a weight that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(3, 2, bias=False)
        self.unused = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.linear(self.drop(x))
        return out


@pytest.mark.parametrize(("microbatch_size", "parts"), [(6, [6]), (100, [6]), (4, [4, 2])])
def test_a_measurement_is_of_eight_parts_and_of_the_whole(
    microbatch_size: int, parts: list[int]
) -> None:
    torch.manual_seed(0)
    model = Recorded().train()
    images, labels = torch.randn(48, 3), torch.arange(48) % 2
    sizes: list[int] = []

    def loss(some: Tensor, of: Tensor) -> Tensor:
        sizes.append(len(some))
        assert not model.training  # dropout would tie the examples of a part together
        return nn.functional.cross_entropy(model(some), of)

    got = measure(
        model,
        list(model.parameters()),
        lambda first, last: (images[first:last], labels[first:last]),
        loss,
        num_images=48,
        microbatch_size=microbatch_size,
    )
    assert sizes == parts * 8
    # The gradient of each image by hand: (p - y) x.
    p = model(images).softmax(1).detach() - nn.functional.one_hot(labels, 2)
    each_NKC = p[:, :, None] * images[:, None]
    small = float(each_NKC.view(8, 6, 6).mean(1).square().sum(1).mean())
    big = float(each_NKC.view(48, 6).mean(0).square().sum())
    squared = (48 * big - 6 * small) / 42
    trace = (small - big) / (1 / 6 - 1 / 48)
    assert got.squared_gradient == pytest.approx(squared, rel=1e-4)
    assert got.trace_sigma == pytest.approx(trace, rel=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_no_measurement(spoilt: float) -> None:
    model = Recorded()
    images, labels = torch.full((16, 3), spoilt), torch.arange(16) % 2

    def loss(some: Tensor, of: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(some), of)

    got = measure(
        model,
        list(model.parameters()),
        lambda first, last: (images[first:last], labels[first:last]),
        loss,
        num_images=16,
        microbatch_size=16,
    )
    assert got == NoiseSums()
