"""Values and errors as people read them."""

import math
from collections.abc import Iterable
from statistics import median

from rich.console import Console

WRONG_INPUT = 2  # exit status
SMALL = 0.01  # where all scores are below it, three decimals would show too little of them


def show(value: object) -> str:
    """Four significant digits of a number, a dash for a missing value."""
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def decimals(values: Iterable[float], *, digits: int) -> int:
    """Decimal places that give the median of a column so many digits; at least three."""
    sizes = [abs(value) for value in values if math.isfinite(value)]
    known = [size for size in sizes if size > 1e-12]  # equal scores differ by rounding only
    return max(3, digits - 1 - math.floor(math.log10(median(known)))) if known else 3


def score(value: float | None) -> str:
    """Four decimals, or two digits of a value that has fewer in them; a dash without a value."""
    if value is None or value != value:
        return "-"
    return f"{value:.4f}" if abs(value) >= 0.001 or not value else f"{value:.2g}"


def change(value: float | None) -> str:
    """As a score, with its sign."""
    return f"+{score(value)}" if value is not None and value >= 0 else score(value)


def number_of(count: object, noun: str, plural: str = "") -> str:
    """`1 trial`, `2 trials`; `plural` where it is not the noun with an s."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def duration(seconds: float) -> str:
    """`1 h 02 m`, `3 m 10 s`, `12 s` or `0.8 s`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02} m"


def print_error(command: str, error: BaseException) -> int:
    """Print an error of the user's input as one red line; returns the command's exit status."""
    Console(stderr=True).print(
        f"{command}: {error}", style="red", soft_wrap=True, highlight=False, markup=False
    )
    return WRONG_INPUT
