"""What looks like a secret: what a study declares is in its results, for all to read."""

import re

_IN_URI = re.compile(r"://[^/?#\s]*@|(secret|password|access_key|token)\w*=", re.IGNORECASE)
_NAME = re.compile(
    r"passw(or)?d|passphrase|token|secret|credential|(api|access|private)_?key", re.IGNORECASE
)
REFUSED = (
    "is written to the results for all to read, and looks like a secret: leave it out and set the "
    "environment's variables, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a role"
)


def in_uri(text: str) -> bool:
    """Whether a URI in it has a user or password, as in `s3://user:password@bucket`."""
    return "://" in text and _IN_URI.search(text) is not None


def is_secret_name(name: str) -> bool:
    """Whether a field of such a name would hold a secret."""
    return _NAME.search(name) is not None
