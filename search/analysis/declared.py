"""What a field of a study varies over, as its study.json has it."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Values, or a range from `low` to `high`, both included.

    `is_grid`: every value is trained; else trials choose from them. `scale` of a range is `linear`
    or `log`, and empty where an older study.json does not say it. `step` is that of a range that
    has one.
    """

    values: tuple[Any, ...] = ()
    is_grid: bool = False
    low: float | None = None
    high: float | None = None
    scale: str = ""
    is_whole: bool = False
    step: float | None = None


def domain_of(declared: object) -> Domain | None:
    """A field's domain; None for a value that is fixed."""
    if isinstance(declared, Mapping):
        if "grid_search" in declared:
            return Domain(values=tuple(declared["grid_search"]), is_grid=True)
        if "choice" in declared:
            return Domain(values=tuple(declared["choice"]))
        if "range" in declared:
            low, high = declared["range"]
            return Domain(
                low=low,
                high=high,
                scale=declared.get("scale", ""),
                is_whole=declared.get("whole", False),
                step=declared.get("step"),
            )
    return _from_text(declared) if isinstance(declared, str) else None


def _from_text(declared: str) -> Domain | None:
    """From `[16, 32] Categorical` or `(0.001, 1) Float`, as study.json said it once."""
    words, _, kind = declared.rpartition(" ")
    try:
        if kind == "Categorical":
            return Domain(values=tuple(ast.literal_eval(words)))
        if kind in ("Float", "Integer"):
            low, high = ast.literal_eval(words)
            is_whole = kind == "Integer"
            return Domain(low=low, high=high - is_whole, is_whole=is_whole)
    except (SyntaxError, TypeError, ValueError):
        pass
    return None


def choices_of(about: Mapping[str, Any], name: str) -> list[Any]:
    """The values that a study chooses a field from; none for a range."""
    domain = domain_of(about.get("vary", {}).get(name))
    return list(domain.values) if domain else []


def differing_fields(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that two studies set differently: name to both values, from their study.json."""
    both = [{**about.get("base", {}), **about.get("vary", {})} for about in (first, second)]
    names = dict.fromkeys([*both[0], *both[1]])
    pairs = {name: (both[0].get(name), both[1].get(name)) for name in names if name != "seed"}
    return {name: pair for name, pair in pairs.items() if not _is_same(*pair)}


def _is_same(first: object, second: object) -> bool:
    """Whether two declarations are equal, however each is written."""
    domain = domain_of(first)
    return first == second or (domain is not None and domain == domain_of(second))
