"""Ray Tune's domains as a study reads them, value by value."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from ray import tune

from search.study.domains import as_searched, as_values, draw, is_log, perturbed, probes, step_of


@pytest.mark.parametrize("values", [[1, 2], (1, 2)])
def test_a_grids_values_are_a_list(values: Any) -> None:
    found = as_values("x", {"grid_search": values})
    assert found == {"grid_search": [1, 2]}
    assert type(found["grid_search"]) is list


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (tune.uniform(0, 1), r"x: a grid goes through values, not .*: write tune\.grid_search"),
        ({"grid_search": "abc"}, "x: tune.grid_search takes a list of values, got 'abc'"),
        ({"grid_search": {1, 2}}, "x: tune.grid_search takes a list of values"),
        ({"grid_search": 3}, "x: tune.grid_search takes a list of values, got 3"),
        ({"grid_search": ()}, "x: tune.grid_search takes a list of values"),
        ({"grid_search": [0.1, 0.2, 0.1]}, "x: tune.grid_search repeats a value"),
        ({"grid_search": [1], "more": 2}, "x: what varies is given as tune.grid_search"),
        ({}, "x: what varies is given as tune.grid_search"),
        (3, r"got 3; a fixed value belongs in base=TrialConfig\(x=\.\.\.\)"),
        ("grid_search", "x: what varies is given as tune.grid_search"),
        (None, "x: what varies is given as tune.grid_search"),
    ],
)
def test_what_is_no_grid_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_values("x", value)


def test_a_search_takes_ranges_as_they_are_and_grids_as_choices() -> None:
    domain = tune.loguniform(0.1, 1.0)
    assert as_searched("x", domain) is domain
    choice: Any = as_searched("x", tune.grid_search([3, 5]))
    assert choice.categories == [3, 5]
    rng = np.random.RandomState(0)
    counts = Counter(draw({"x": choice}, rng)["x"] for _ in range(400))
    assert set(counts) == {3, 5}
    assert 160 < counts[3] < 240  # four standard deviations
    with pytest.raises(
        ValueError, match=r"x: take tune\.choice, uniform, loguniform, randint or q"
    ):
        as_searched("x", tune.sample_from(lambda _: 1))
    with pytest.raises(ValueError, match="x: what varies is given as"):
        as_searched("x", 0.1)


@pytest.mark.parametrize(
    ("domain", "log", "step", "ends"),
    [
        (tune.uniform(0.5, 2.0), False, None, [0.5, 2.0]),
        (tune.loguniform(0.5, 2.0), True, None, [0.5, 2.0]),
        (tune.quniform(0.5, 2.0, 0.5), False, 0.5, [0.5, 2.0]),
        (tune.qloguniform(0.5, 2.0, 0.5), True, 0.5, [0.5, 2.0]),
        (tune.randint(2, 9), False, None, [2, 8]),
        (tune.lograndint(2, 9), True, None, [2, 8]),
        (tune.qrandint(2, 9, 4), False, 4, [4, 8]),
        (tune.qrandint(2, 9, 1), False, 1, [2, 8]),
        (tune.qlograndint(2, 8, 2), True, 2, [2, 8]),
        (tune.choice([4, 2, 3]), False, None, [4, 2, 3]),
    ],
)
def test_a_domain_says_how_it_is_searched(
    domain: Any, log: bool, step: float | None, ends: list[float]
) -> None:
    assert (is_log(domain), step_of(domain)) == (log, step)
    assert probes(domain) == ends


def test_a_grid_is_probed_at_all_its_values() -> None:
    assert probes({"grid_search": [3, 1, 2]}) == [3, 1, 2]


def steps_from(domain: Any, value: Any) -> Counter[Any]:
    rng = np.random.RandomState(0)
    changed = (perturbed(domain, value, rng, resample=0.0) for _ in range(400))
    return Counter(round(float(str(each)), 9) for each in changed)


@pytest.mark.parametrize(
    ("domain", "value", "low", "high"),
    [
        (tune.uniform(0.0, 10.0), 5.0, 4.0, 6.0),
        (tune.uniform(4.5, 5.5), 5.0, 4.5, 5.5),
        (tune.loguniform(0.1, 10.0), 5.0, 4.0, 6.0),
        (tune.quniform(0.0, 10.0, 0.5), 3.0, 2.5, 3.5),  # 2.4 and 3.6, to the nearest step
        (tune.randint(1, 100), 50, 40, 60),
        (tune.randint(1, 100), 7, 6, 8),  # 5.6 and 8.4
        (tune.randint(45, 56), 50, 45, 55),
        (tune.qrandint(8, 64, 8), 32, 24, 40),  # 25.6 and 38.4
        (tune.qrandint(8, 64, 8), 64, 48, 64),
        (tune.choice([1, 2, 4, 8]), 2, 1, 4),
        (tune.choice([1, 2, 4, 8]), 8, 4, 8),
        (tune.choice([1, 2, 4, 8]), 1, 1, 2),
    ],
)
def test_a_change_is_up_or_down_as_often(domain: Any, value: Any, low: float, high: float) -> None:
    counts = steps_from(domain, value)
    assert set(counts) == {low, high}
    assert 160 < counts[low] < 240  # of 400, four standard deviations


def test_changed_values_keep_their_kind() -> None:
    rng = np.random.RandomState(0)
    kinds: list[tuple[Any, Any, type]] = [
        (tune.uniform(0.0, 1.0), 0.5, float),
        (tune.quniform(0.0, 1.0, 0.5), 0.5, float),
        (tune.randint(1, 9), 5, int),
        (tune.qrandint(2, 8, 2), 4, int),
        (tune.choice(["a", "b"]), "a", str),
    ]
    for domain, value, kind in kinds:
        for resample in (0.0, 1.0):
            changed = [perturbed(domain, value, rng, resample=resample) for _ in range(20)]
            assert {type(each) for each in changed} == {kind}
        assert type(draw({"x": domain}, rng)["x"]) is kind


def test_draws_are_the_given_generators_alone() -> None:
    domain = tune.uniform(0.0, 1.0)
    for resample in (0.0, 0.5, 1.0):
        first, again = (
            [perturbed(domain, 0.5, rng, resample=resample), *draw({"x": domain}, rng).values()]
            for rng in (np.random.RandomState(3), np.random.RandomState(3))
        )
        assert first == again


def test_so_many_are_drawn_anew() -> None:
    rng = np.random.RandomState(0)
    domain = tune.uniform(0.0, 1.0)
    changed = [perturbed(domain, 0.5, rng, resample=0.25) for _ in range(400)]
    near = sum(value in (0.4, 0.6) for value in changed)
    assert 265 < near < 335  # 300 of 400, four standard deviations
    assert min(changed) < 0.1  # type: ignore[type-var, operator]
    assert max(changed) > 0.9  # type: ignore[type-var, operator]
