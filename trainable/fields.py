"""docs/fields.md from the code: every field of TrialConfig, with meaning, unit and source.

python -m trainable.fields > docs/fields.md
"""

import sys
from dataclasses import Field, fields
from typing import Any

from trainable.config import TrialConfig


def fields_table() -> str:
    """The page as Markdown."""
    rows = [_row(setting) for setting in fields(TrialConfig)]
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


def _row(setting: Field[Any]) -> list[str]:
    rules = setting.metadata
    return [
        f"`{setting.name}`",
        _values(setting),
        rules["unit"],
        f"`{setting.default}`",
        rules["meaning"],
        rules["source"],
    ]


def _values(setting: Field[Any]) -> str:
    rules = setting.metadata
    if rules["choices"]:
        return ", ".join(rules["choices"])
    kind = getattr(setting.type, "__name__", str(setting.type))
    bounds = [f"> {rules['above']:g}"] if rules["above"] is not None else []
    bounds += [f">= {rules['low']:g}"] if rules["low"] is not None else []
    bounds += [f"<= {rules['high']:g}"] if rules["high"] is not None else []
    return f"{kind} {', '.join(bounds)}".strip().replace("|", "or")


if __name__ == "__main__":
    sys.stdout.write(fields_table())
