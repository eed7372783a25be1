"""A space file's path -> its Study, or a SpaceFileError that says what to change."""

import hashlib
import re
import runpy
import traceback
from dataclasses import fields
from pathlib import Path

from search.study.expected import KINDS
from search.study.study import TRIAL_FIELDS, Study, unknown
from trainable.host import credentials


class SpaceFileError(ValueError):
    """The space file, or a `--set`, cannot be used; the message is one line to show a user."""


def load_study(path: Path) -> Study:
    """Run a space file and take its `study`.

    The file is Python and is executed: run only files that you trust.

    Raises:
        SpaceFileError: it is missing, is not Python, raises, or declares no study.
    """
    if not path.is_file():
        raise SpaceFileError(f"there is no space file {path}{_nearby(path)}")
    try:
        names = runpy.run_path(str(path))
    except SyntaxError as error:
        raise SpaceFileError(f"{path}, line {error.lineno}: not Python: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise SpaceFileError(f"{path} is not Python: it is not text ({error})") from error
    except (Exception, SystemExit) as error:
        where = _line_in(path, error)
        raise SpaceFileError(f"{path}{where}: {_sentence(error)}") from error
    study = names.get("study")
    if not isinstance(study, Study):
        got = "nothing of that name" if study is None else f"a {type(study).__name__}"
        raise SpaceFileError(f"{path} must end with `study = Study(...)`; it has {got}")
    return study


def space_sha256(path: Path) -> str:
    """The SHA-256 of the file, for the record."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _nearby(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    others = sorted(p.name for p in path.parent.glob("*.py") if p.name != "__init__.py")
    return f"; {path.parent} has {', '.join(others)}" if others else ""


def _line_in(path: Path, error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
    return f", line {lines[-1]}" if lines else ""


def _sentence(error: BaseException) -> str:
    """The error in one line; for a misspelt field, the right one."""
    if isinstance(error, TypeError):
        unexpected = re.search(
            r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
        )
        if unexpected:
            owner, name = unexpected.groups()
            if credentials.is_secret_name(name):
                return f"{owner}: {name} {credentials.REFUSED}"
            kind = KINDS.get(owner, Study)
            known = TRIAL_FIELDS if owner == "TrialConfig" else [f.name for f in fields(kind)]
            return f"{owner}: {unknown('field', name, known)}"
    if isinstance(error, ValueError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
