"""Values and errors as people read them."""

from rich.console import Console

WRONG_INPUT = 2  # exit status


def show(value: object) -> str:
    """Four significant digits of a number, a dash for a missing value."""
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def number_of(count: object, noun: str, plural: str = "") -> str:
    """`1 trial`, `2 trials`; `plural` where it is not the noun with an s."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def print_error(command: str, error: BaseException) -> int:
    """Print an error of the user's input as one red line; returns the command's exit status."""
    Console(stderr=True).print(
        f"{command}: {error}", style="red", soft_wrap=True, highlight=False, markup=False
    )
    return WRONG_INPUT
