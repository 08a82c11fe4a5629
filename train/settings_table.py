"""A table of all settings: their defaults, the values that they take, and what they decide."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from cusa.train.config import Config
from cusa.train.settings import legal_values, settings_schema

# An entry of a docstring's "Attributes:"; its continuation lines are indented further.
_ATTRIBUTE = re.compile(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)
_ROLE = re.compile(r":\w+:(?=`)")


class SettingRow(NamedTuple):
    """A setting.

    Attributes:
        name: Its full name, as ``--set`` takes it.
        default: Its default without a preset, as YAML.
        legal: The values that it takes, in words.
        description: What it decides.
    """

    name: str
    default: str
    legal: str
    description: str


def setting_rows() -> list[SettingRow]:
    """List all settings of a run, in the order of config.yaml."""
    return list(_rows_below(Config(), settings_schema(Config), "", ""))


def _rows_below(
    section: Any,
    schema: dict[str, Any],
    prefix: str,
    section_description: str,
) -> Iterator[SettingRow]:
    descriptions = _descriptions(schema["description"])
    for name, field in schema["properties"].items():
        default = getattr(section, name)
        description = f"{section_description} {descriptions.get(name, '')}".strip()
        if "properties" in field:
            yield from _rows_below(default, field, f"{prefix}{name}.", description)
            continue
        if isinstance(default, tuple):
            default = list(default)
        text = yaml.safe_dump(default, default_flow_style=True).removesuffix("...\n").strip()
        yield SettingRow(f"{prefix}{name}", text, legal_values(field), description)


def _descriptions(docstring: str) -> dict[str, str]:
    """Read the descriptions of a class's fields from its docstring: a line of Markdown each."""
    docstring = _ROLE.sub("", docstring)
    docstring = docstring.replace("``None``", "`null`").replace("``", "`")
    return {name: " ".join(text.split()) for name, text in _ATTRIBUTE.findall(docstring)}


def settings_markdown() -> str:
    """Format the table as Markdown; docs/training.md contains it."""
    lines = ["| setting | default | takes | decides |", "|---|---|---|---|"]
    for row in setting_rows():
        # A bar would end the cell.
        description = row.description.replace("|", r"\|")
        lines.append(f"| `{row.name}` | `{row.default}` | {row.legal} | {description} |")
    return "\n".join(lines) + "\n"
