"""Errors of libraries as one line for people."""

LONGEST = 200  # characters


def one_line(error: BaseException) -> str:
    """The beginning of an error's message on one line; its type's name if it has no message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < LONGEST else text[:LONGEST] + " ..."
