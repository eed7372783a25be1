"""A space file's path -> its Study, or a SpaceFileError that says what to change."""

import ast
import hashlib
import re
import runpy
import traceback
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ray import tune

from search.study.study import TRIAL_FIELDS, Study, unknown
from trainable.host import credentials

SETTABLE = ("name", "seeds", "metric", "gpus_per_trial", "cpus_per_trial", "keep_weights")


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
        raise SpaceFileError(f"{path}{where}: {_said(error)}") from error
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


def _said(error: BaseException) -> str:
    """The error in one line; for a misspelt field, the right one."""
    if isinstance(error, TypeError):
        found = re.search(
            r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
        )
        if found:
            owner, name = found.groups()
            if credentials.is_secret_name(name):
                return f"{owner}: {name} {credentials.REFUSED}"
            known = TRIAL_FIELDS if owner == "TrialConfig" else [f.name for f in fields(Study)]
            return f"{owner}: {unknown('field', name, known)}"
    if isinstance(error, ValueError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def apply_settings(study: Study, settings: Sequence[str]) -> Study:
    """The study with `FIELD=VALUE` of the command applied, each checked as in a space file.

    A field of the study is set; a field of the trial is fixed, or given the values of a comma
    list to try.

    Raises:
        SpaceFileError: one does not parse, or names or gives something impossible.
    """
    for setting in settings:  # before any is said again in an error
        name, _, text = setting.partition("=")
        if credentials.is_secret_name(name) or credentials.in_uri(text):
            raise SpaceFileError(f"--set {name} {credentials.REFUSED}")
    own: dict[str, Any] = {}
    fixed: dict[str, Any] = {}
    vary = dict(study.vary)
    try:
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals or not name or not text:
                raise ValueError("--set takes FIELD=VALUE, such as seeds=3")
            if name in SETTABLE:
                own[name] = text if name in ("name", "metric") else _value(text)
            elif name not in TRIAL_FIELDS or name == "seed":
                known = [*SETTABLE, *(each for each in TRIAL_FIELDS if each != "seed")]
                raise ValueError(unknown("field", name, known))
            elif "," in text:
                vary[name] = tune.grid_search([_value(each) for each in text.split(",") if each])
            else:
                vary.pop(name, None)
                fixed[name] = _value(text)
        # All at once: two settings may be right only together.
        return replace(study, **own, base=replace(study.base, **fixed), vary=vary)
    except ValueError as error:
        raise SpaceFileError(f"--set {' --set '.join(settings)}: {error}") from error


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
