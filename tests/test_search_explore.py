"""The declarations of explorers, stoppers and leaders: what each takes, refuses and defaults to."""

import re
from typing import Any

import pytest

from search.explore import Asha, Grid, HyperBand, Leaders, Median, Optuna, Pbt, Random
from search.explore.optuna import OBJECTIVES, SAMPLERS
from search.study.study import check_number

# Each whole number with the least that it may be, and the rest of what the declaration needs.
WHOLE: list[tuple[type, str, int]] = [
    (Grid, "widen", 0),
    (Grid, "refine", 0),
    (Random, "num_configs", 1),
    (Optuna, "num_configs", 1),
    (Median, "min_trials", 1),
    (Pbt, "size", 2),
    (Pbt, "generations", 2),
    (Leaders, "top", 1),
    (Leaders, "seeds", 2),
]


@pytest.mark.parametrize(("kind", "name", "low"), WHOLE)
def test_counts_are_whole_and_not_too_small(kind: Any, name: str, low: int) -> None:
    assert getattr(kind(**{name: low}), name) == low
    assert getattr(kind(**{name: low + 1}), name) == low + 1
    for wrong in (low - 1, low + 0.5, True, "3", None, float("nan")):
        message = f"{name} must be a whole number >= {low}, got {wrong!r}"
        with pytest.raises(ValueError, match=re.escape(message)):
            kind(**{name: wrong})


@pytest.mark.parametrize("kind", [Asha, HyperBand, Median])
def test_a_first_rung_is_from_a_tenth_to_before_the_end(kind: Any) -> None:
    for share in (0.1, 0.5, 0.999):
        assert kind(grace_share=share).grace_share == share
    for share in (0.0999, 0.0, 1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"grace_share must be from 0\.1 to below 1"):
            kind(grace_share=share)
    assert kind().grace_share == pytest.approx(0.1111, abs=1e-4)
    assert kind().by_batch_size is False


@pytest.mark.parametrize("kind", [Asha, HyperBand])
def test_a_factor_reduces(kind: Any) -> None:
    assert kind().reduction_factor == 3
    assert kind(reduction_factor=1.01).reduction_factor == 1.01
    for factor in (1, 0.5, -2, float("nan")):
        with pytest.raises(ValueError, match=f"reduction_factor must be > 1, got {factor!r}"):
            kind(reduction_factor=factor)


def test_shares_of_a_population_are_shares() -> None:
    for quantile in (0.01, 0.5):
        assert Pbt(quantile=quantile).quantile == quantile
    for quantile in (0, -0.1, 0.51, float("nan")):
        with pytest.raises(ValueError, match="quantile must be above 0 and at most"):
            Pbt(quantile=quantile)
    for resample in (0, 1, 0.5):
        assert Pbt(resample=resample).resample == resample
    for resample in (-0.01, 1.01, float("nan")):
        with pytest.raises(ValueError, match="resample must be from 0 to 1"):
            Pbt(resample=resample)


def test_names_are_of_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=f"sampler must be one of {', '.join(SAMPLERS)}, got 'x'"):
        Optuna(num_configs=1, sampler="x")
    said = f"objectives must be of {', '.join(OBJECTIVES)}, beside the study's metric, got 'speed'"
    with pytest.raises(ValueError, match=said):
        Optuna(num_configs=1, objectives=["train_wall_s", "speed"])
    for name in SAMPLERS:
        assert Optuna(num_configs=1, sampler=name).sampler == name
    assert Optuna(num_configs=1, objectives=list(OBJECTIVES)).objectives == list(OBJECTIVES)
    assert set(OBJECTIVES.values()) == {"min"}


def test_what_is_not_said_is_as_the_readme_and_the_papers_have_it() -> None:
    assert (Grid().widen, Grid().refine) == (0, 0)
    search = Optuna(num_configs=1)
    assert (search.sampler, search.warm_start, search.space) == ("auto", None, None)
    assert (tuple(search.points), tuple(search.objectives), search.sampling_seed) == ((), (), 0)
    assert (Random(num_configs=1).sampling_seed, tuple(Random(num_configs=1).points)) == (0, ())
    # Jaderberg 2017: a quarter is replaced, and a value is drawn anew with probability 1/4.
    pbt = Pbt()
    assert (pbt.size, pbt.generations, pbt.quantile, pbt.resample) == (8, 5, 0.25, 0.25)
    assert pbt.sampling_seed == 0
    assert Median().min_trials == 3
    assert (Leaders().top, Leaders().seeds) == (5, 5)
    assert check_number("n", 3, whole=True, low=3) is None  # type: ignore[func-returns-value]
    assert check_number("n", 3.5, whole=False, low=3) is None  # type: ignore[func-returns-value]
