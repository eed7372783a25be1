"""Ray Tune's domains, as a study reads them: values to go through, bounds to probe, draws."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray.tune.search.sample import Categorical, Domain, Float, Integer, Quantized

Varied = dict[str, Any]  # {"grid_search": [values]}, or a Domain of Ray Tune's


def as_values(name: str, value: object) -> dict[str, list[object]]:
    """A domain as the values of a grid.

    Raises:
        ValueError: it is no domain, is empty, repeats a value, or is a range that a grid cannot
            go through.
    """
    if isinstance(value, Domain):
        raise ValueError(
            f"{name}: a grid goes through values, not through a range or a random choice: "
            f"write tune.grid_search([...])"
        )
    if isinstance(value, Mapping) and set(value) == {"grid_search"}:
        values = value["grid_search"]
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"{name}: tune.grid_search takes a list of values, got {values!r}")
        if len(set(map(repr, values))) < len(values):
            raise ValueError(f"{name}: tune.grid_search repeats a value: {values!r}")
        return {"grid_search": list(values)}
    raise ValueError(
        f"{name}: what varies is given as tune.grid_search([...]), got {value!r}; a fixed value "
        f"belongs in base=TrialConfig({name}=...)"
    )


def as_searched(name: str, value: object) -> Domain:
    """A domain to draw from; a grid's values are a choice among them.

    Raises:
        ValueError: it is no domain.
    """
    if isinstance(value, Domain):
        if not isinstance(value, Categorical | Float | Integer):
            raise ValueError(f"{name}: take tune.choice, uniform, loguniform, randint or quniform")
        return value
    choice: Domain = Categorical(as_values(name, value)["grid_search"]).uniform()
    return choice


def probes(domain: Any) -> list[object]:
    """Values that must all be possible: every one of a choice, both ends of a range."""
    if isinstance(domain, Categorical):
        return list(domain.categories)
    if isinstance(domain, Integer | Float):
        return list(ends_of(domain))
    values: list[object] = domain["grid_search"]
    return values


def draw(domains: Mapping[str, Domain], rng: np.random.RandomState) -> dict[str, object]:
    """One configuration's values, as plain Python."""
    return {name: _plain(domain.sample(random_state=rng)) for name, domain in domains.items()}


def perturbed(domain: Any, value: Any, rng: np.random.RandomState, *, resample: float) -> object:
    """A value beside another one: times 0.8 or 1.2, or a choice's neighbour (Jaderberg 2017).

    It stays in the domain, and with probability `resample` it is drawn from it anew.
    """
    if rng.uniform() < resample:
        return _plain(domain.sample(random_state=rng))
    up = bool(rng.randint(2))
    if isinstance(domain, Categorical):
        values = list(domain.categories)
        index = values.index(value) + (1 if up else -1)
        return values[min(max(index, 0), len(values) - 1)]
    changed = value * (1.2 if up else 0.8)
    if step := step_of(domain):
        changed = round(changed / step) * step
    low, high = ends_of(domain)
    if isinstance(domain, Integer):
        return int(min(max(round(changed), low), high))
    return float(min(max(changed, low), high))


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def ends_of(domain: Any) -> tuple[Any, Any]:
    """The least and the greatest value of a range: Ray leaves out an upper end without steps."""
    if not isinstance(domain, Integer):
        return domain.lower, domain.upper
    step = step_of(domain) or 1
    if step == 1:
        return domain.lower, domain.upper - 1
    return math.ceil(domain.lower / step) * step, math.floor(domain.upper / step) * step


def is_log(domain: Any) -> bool:
    """Whether a range is searched in its logarithm."""
    return "LogUniform" in type(_sampler(domain)).__name__


def step_of(domain: Any) -> float | None:
    """The step of a quantized range."""
    sampler = domain.get_sampler()
    return sampler.q if isinstance(sampler, Quantized) else None


def _sampler(domain: Any) -> object:
    sampler = domain.get_sampler()
    return sampler.get_sampler() if isinstance(sampler, Quantized) else sampler
