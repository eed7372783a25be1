"""Recognizes secrets: everything that a study declares is written to its results."""

import re

_IN_URI = re.compile(r"://[^/?#\s]*@|(secret|password|access_key|token)\w*=", re.IGNORECASE)
_NAME = re.compile(
    r"passw(or)?d|passphrase|token|secret|credential|(api|access|private)_?key", re.IGNORECASE
)
REFUSED = (
    "looks like a secret, and would be written to the results, where others can read it: remove it "
    "and set environment variables such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a "
    "role"
)


def in_uri(text: str) -> bool:
    """Whether the text has a URI with a user or password, as in `s3://user:password@bucket`."""
    return "://" in text and _IN_URI.search(text) is not None


def is_secret_name(name: str) -> bool:
    """Whether a field of this name probably contains a secret."""
    return _NAME.search(name) is not None
