"""The fields of TrialConfig: meaning, unit, source, and the rules that check a value.

python -m trainable.fields > docs/fields.md
"""

import math
import sys
import types
from collections.abc import Mapping
from dataclasses import Field, field, fields
from numbers import Integral, Real
from typing import Any, get_args


def setting(
    default: object,
    meaning: str,
    *,
    unit: str = "",
    choices: tuple[str, ...] = (),
    above: float | None = None,
    low: float | None = None,
    high: float | None = None,
    source: str = "",
) -> Any:
    """A field of TrialConfig with its meaning and the rules that check its value."""
    return field(
        default=default,
        metadata={
            "meaning": meaning,
            "unit": unit,
            "choices": choices,
            "above": above,
            "low": low,
            "high": high,
            "source": source,
        },
    )


def checked(declared: Field[Any], value: object) -> object:
    """The value in its field's type (1 becomes 1.0 in a float field), or ValueError."""
    name = declared.name
    is_union = isinstance(declared.type, types.UnionType)
    types_of_field = get_args(declared.type) if is_union else (declared.type,)
    if value is None and types.NoneType in types_of_field:
        return None
    value = _converted(name, value, types_of_field[0])
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        choices = declared.metadata["choices"]
        if choices and value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if not value:
            raise ValueError(f"{name} must not be empty")
        return value
    _check_bounds(name, value, declared.metadata)
    return value


def _converted(name: str, value: object, wanted: object) -> bool | int | float | str:
    """The value in the type `wanted`, if it is of that kind."""
    if wanted is bool and isinstance(value, bool):
        return value
    if wanted in (int, float) and type(value) is not bool and isinstance(value, Real):
        number = float(value)
        if wanted is float:
            return number
        if isinstance(value, Integral):
            return int(value)
        if number.is_integer():  # 1e2 is a whole number too
            return int(number)
    if wanted is str and isinstance(value, str):
        return value
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}
    raise ValueError(f"{name} must be {words[wanted]}, got {value!r}")  # type: ignore[index]


def _check_bounds(name: str, value: float, rules: Mapping[str, Any]) -> None:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    if rules["above"] is not None and number <= rules["above"]:
        raise ValueError(f"{name} must be > {rules['above']:g}, got {value!r}")
    if rules["low"] is not None and number < rules["low"]:
        raise ValueError(f"{name} must be >= {rules['low']:g}, got {value!r}")
    if rules["high"] is not None and number > rules["high"]:
        raise ValueError(f"{name} must be <= {rules['high']:g}, got {value!r}")


def fields_table() -> str:
    """The page docs/fields.md."""
    from trainable.config import TrialConfig  # which is declared with what is above

    rows = [_row(declared) for declared in fields(TrialConfig)]
    head = ["field", "values", "unit", "default", "meaning", "source"]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(
        [
            "# The fields of a trial",
            "",
            "Every field of `TrialConfig`. A space file sets them in `base` and varies them in",
            "`vary`; `--set FIELD=VALUE` changes one on the command line. They are also columns of",
            "the `trials` table. [Studies](studies.md) has examples.",
            "",
            "This page is generated from trainable/config.py by",
            "`uv run python -m trainable.fields > docs/fields.md`; a test checks that they agree.",
            "",
            *lines,
            "",
        ]
    )


def _row(declared: Field[Any]) -> list[str]:
    rules = declared.metadata
    return [
        f"`{declared.name}`",
        _values(declared),
        rules["unit"],
        f"`{declared.default}`",
        rules["meaning"],
        rules["source"],
    ]


def _values(declared: Field[Any]) -> str:
    rules = declared.metadata
    if rules["choices"]:
        return ", ".join(rules["choices"])
    kind = getattr(declared.type, "__name__", str(declared.type))
    bounds = [f"> {rules['above']:g}"] if rules["above"] is not None else []
    bounds += [f">= {rules['low']:g}"] if rules["low"] is not None else []
    bounds += [f"<= {rules['high']:g}"] if rules["high"] is not None else []
    return f"{kind} {', '.join(bounds)}".strip().replace("|", "or")


if __name__ == "__main__":
    sys.stdout.write(fields_table())
