"""What a study's source reports, as data: the report shows it beside what was measured.

It decides nothing about trials or keys. A value of a field that has numbers may be "lowest" or
"highest": a preview has other values than the source.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from trainable.config import SCORES, TrialConfig
from trainable.fields import checked

if TYPE_CHECKING:
    from search.study.study import Study

Fields = Mapping[str, object]
ENDS = ("lowest", "highest")
STEPS = ("step", "variant")  # stand for the name of an ablation's step, or of a variant
DIRECTIONS = ("rises", "falls")
TRIAL_FIELD_OF = {declared.name: declared for declared in fields(TrialConfig)}
REPORTED = (*SCORES, *(name.replace("val_", "test_") for name in SCORES))


@dataclass(frozen=True)
class Exponent:
    """The best peak lr grows as batch_size to a power from `low` to `high`.

    Raises:
        ValueError: an end is no number, or they are in the wrong order.
    """

    low: float
    high: float
    source: str
    where: Fields = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without the study."""
        _check_common(self)
        for name in ("low", "high"):
            _check_number(f"Exponent: {name}", getattr(self, name))
        if self.low > self.high:
            raise ValueError(f"Exponent: low must be <= high, got {self.low} and {self.high}")


@dataclass(frozen=True)
class Better:
    """With `field=value` the best score is better than with `field=than`.

    Each value is compared at its own best lr. `by` is the size of the effect that the source
    reports, in units of the study's metric. For an ablation `field` is "step", for variants
    "variant", and the values are their names.

    Raises:
        ValueError: both values are the same, or `by` is no positive number.
    """

    field: str
    value: object
    than: object
    source: str
    by: float | None = None
    where: Fields = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without the study."""
        _check_common(self)
        if self.value == self.than:
            raise ValueError(f"Better: value and than must differ, got {self.value!r} twice")
        if self.by is not None:
            _check_number("Better: by", self.by)
            if self.by <= 0:
                raise ValueError(f"Better: by must be > 0, got {self.by}: exchange value and than")


@dataclass(frozen=True)
class Order:
    """The values of a field from best to worst, each at its own best lr.

    Raises:
        ValueError: there are fewer than two values, or one is repeated.
    """

    field: str
    values: Sequence[object]
    source: str
    where: Fields = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without the study."""
        _check_common(self)
        if not isinstance(self.values, list | tuple) or len(self.values) < 2:
            raise ValueError(
                f"Order: values must be a list of two or more, best first, got {self.values!r}"
            )
        if len(set(map(repr, self.values))) < len(self.values):
            raise ValueError(f"Order: values repeats a value: {list(self.values)}")
        object.__setattr__(self, "values", tuple(self.values))


@dataclass(frozen=True)
class Trend:
    """The score "rises" (gets better) or "falls" (gets worse) as the field grows.

    Name the lr in `where`; otherwise each value of the field is taken at its own best lr.

    Raises:
        ValueError: there is no such direction.
    """

    direction: Literal["rises", "falls"]
    source: str
    where: Fields = dataclasses.field(default_factory=dict)
    field: str = "batch_size"

    def __post_init__(self) -> None:
        """Check what can be checked without the study."""
        from search.study.study import unknown  # which imports this file

        _check_common(self)
        if self.direction not in DIRECTIONS:
            raise ValueError(f"Trend: {unknown('direction', self.direction, DIRECTIONS)}")


@dataclass(frozen=True)
class Reported:
    """A table of the source: rows of fields, and the score under the metric's name.

    Raises:
        ValueError: a row has no score, or no field that says what it is the score of.
    """

    metric: str
    rows: Sequence[Fields]
    source: str

    def __post_init__(self) -> None:
        """Check what can be checked without the study."""
        from search.study.study import unknown  # which imports this file

        _check_common(self)
        if self.metric not in REPORTED:
            raise ValueError(f"Reported: {unknown('metric', self.metric, REPORTED)}")
        if not isinstance(self.rows, list | tuple) or not self.rows:
            raise ValueError(f"Reported: rows must be a list of dicts, got {self.rows!r}")
        for number, row in enumerate(self.rows, 1):
            if not isinstance(row, Mapping) or self.metric not in row or len(row) < 2:
                raise ValueError(
                    f"Reported: row {number} must be a dict of fields and {self.metric}, such as "
                    f"{{'batch_size': 16, '{self.metric}': 0.9}}, got {row!r}"
                )
            _check_number(f"Reported: {self.metric} of row {number}", row[self.metric])
        object.__setattr__(self, "rows", tuple(dict(row) for row in self.rows))


Expectation = Exponent | Better | Order | Trend | Reported
KINDS: Mapping[str, type] = {kind.__name__: kind for kind in get_args(Expectation)}


def check_expected(study: "Study") -> None:
    """Raises ValueError where an expectation names a field or a value that cannot be."""
    if not isinstance(study.expect, list | tuple):
        raise ValueError(
            f"expect must be a tuple, such as expect=(Trend('rises', 'Goyal 2017'),) with its "
            f"comma, got {study.expect!r}"
        )
    for expectation in study.expect:
        if not isinstance(expectation, get_args(Expectation)):
            raise ValueError(f"expect must contain {', '.join(KINDS)}, got {expectation!r}")
        kind = type(expectation).__name__
        for name, values in _named_values(expectation):
            try:
                _check_field(study, name, values)
            except ValueError as error:
                raise ValueError(f"{kind}: {error}") from error
        if isinstance(expectation, Trend) and not _has_numbers(expectation.field):
            raise ValueError(
                f"Trend: {expectation.field} has no numbers, so nothing can rise or fall with it; "
                f"write Order({expectation.field!r}, [...])"
            )


def _named_values(expectation: Expectation) -> list[tuple[str, list[object]]]:
    """Each field that an expectation names, with the values that it names."""
    if isinstance(expectation, Reported):
        return [
            (name, [value])
            for row in expectation.rows
            for name, value in row.items()
            if name != expectation.metric
        ]
    named: list[tuple[str, list[object]]] = [(n, [v]) for n, v in expectation.where.items()]
    if isinstance(expectation, Better):
        named.append((expectation.field, [expectation.value, expectation.than]))
    elif isinstance(expectation, Order):
        named.append((expectation.field, list(expectation.values)))
    elif isinstance(expectation, Trend):
        named.append((expectation.field, []))
    return named


def _check_field(study: "Study", name: str, values: Sequence[object]) -> None:
    """Raises ValueError for a field that does not exist, or a value that it cannot have."""
    from search.study.study import unknown  # which imports this file

    if name in STEPS:
        known = _step_names(study)
        if not known:
            raise ValueError(f"the study has no {name}s: name a field of the trial, got {name!r}")
        for value in values:
            if value not in known:
                raise ValueError(unknown(name, value, known))
        return
    if name == "seed":
        raise ValueError("seed cannot be named: seeds are what the noise is measured by")
    if name not in TRIAL_FIELD_OF:
        raise ValueError(unknown("field", name, [*TRIAL_FIELD_OF, *STEPS]))
    for value in values:
        if isinstance(value, str) and value not in ENDS and _has_numbers(name):
            raise ValueError(f"{name} must be a number, 'lowest' or 'highest', got {value!r}")
        if value not in ENDS:
            checked(TRIAL_FIELD_OF[name], value)
        elif not _has_numbers(name):
            raise ValueError(f"{name} has no {value} value: name one of its values")


def _step_names(study: "Study") -> tuple[str, ...]:
    """The names of an ablation's steps, or of the variants; other studies have none."""
    explore = study.explore
    return tuple(getattr(explore, "steps", None) or getattr(explore, "each", None) or ())


def _has_numbers(name: str) -> bool:
    """Whether the values of a field have an order; steps have that of the study."""
    if name in STEPS:
        return True
    kinds = get_args(TRIAL_FIELD_OF[name].type) or (TRIAL_FIELD_OF[name].type,)
    return bool({int, float} & set(kinds))


def _check_common(expectation: Any) -> None:
    """Raises ValueError for a source that is no line of text, or a `where` that is no dict."""
    kind, source = type(expectation).__name__, expectation.source
    if not isinstance(source, str) or not source.strip() or "\n" in source:
        raise ValueError(
            f"{kind}: source must be a short citation, such as 'Goyal 2017, Table 1', got "
            f"{source!r}"
        )
    where = getattr(expectation, "where", {})
    if not isinstance(where, Mapping):
        raise ValueError(
            f"{kind}: where must be a dict of fields, such as {{'optimizer': 'sgd'}}, got {where!r}"
        )


def _check_number(name: str, value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"{name} must be a finite number, got {value!r}")
