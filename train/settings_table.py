"""Tables of all settings and presets; ``python -m cusa.train.settings_table`` prints the page."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from cusa.train.config import Config
from cusa.train.config_building import SHORT, by_full_name
from cusa.train.preset_files import load_preset, presets
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
        yield SettingRow(
            name=f"{prefix}{name}",
            default=_as_yaml(default),
            legal=legal_values(field),
            description=description,
        )


def _as_yaml(value: Any) -> str:
    """Format a setting's value as ``--set`` takes it."""
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True)
    return text.removesuffix("...\n").strip()


def _descriptions(docstring: str) -> dict[str, str]:
    """Read the descriptions of a class's fields from its docstring: a line of Markdown each."""
    docstring = _ROLE.sub("", docstring)
    docstring = docstring.replace("``None``", "`null`").replace("``", "`")
    descriptions = {}
    for name, text in _ATTRIBUTE.findall(docstring):
        descriptions[name] = " ".join(text.split())
    return descriptions


def preset_settings(preset: str) -> dict[str, str]:
    """Return what a preset sets, as YAML by the settings' full names."""
    settings = {}
    for name, value in by_full_name(load_preset(preset)).items():
        settings[name] = _as_yaml(value)
    return settings


def settings_text() -> str:
    """Format all settings and presets for the screen."""
    lines = []
    for row in setting_rows():
        lines += [f"{row.name}: {row.default}", f"    {row.description}", f"    Takes {row.legal}."]
    for preset in presets():
        pairs = map("=".join, preset_settings(preset).items())
        lines.append(f"--preset {preset}: {' '.join(pairs)}")
    return "\n".join(lines)


_PAGE = """\
# All settings of cusa-train

This page is made from the code, by `python -m cusa.train.settings_table > docs/settings.md`;
`cusa-train settings` prints the same.

From weakest to strongest, settings come from the preset, the student of `--init`, `--config FILE`,
`--set NAME=VALUE`, and the other options. Names are as `--set` takes them; in a file, they are
nested as in a run's `config.yaml`, which holds the values that the run was trained with. An option
sets the setting of the same last name (`--batch-size` is `train.batch_size`); these names are short
for others, as options and as axes of `--sweep`: {short}.

## Presets

Without `--preset`, the data set and the student decide: `demo` for the data set of that name,
`adapter` for `--student adapter`, `towers` where `student.image` or `student.text` is given, and
for other students the paper's setting for Flickr30K or, on any other data set, for COCO.

{presets}
## Settings

Defaults are those without a preset.

{settings}"""


def settings_page() -> str:
    """Format docs/settings.md."""
    short_names = []
    for short, full_name in SHORT.items():
        if short != full_name.rpartition(".")[2]:
            short_names.append(f"`{short}` (`{full_name}`)")
    return _PAGE.format(
        short=", ".join(short_names),
        presets=_presets_markdown(),
        settings=_settings_markdown(),
    )


def _presets_markdown() -> str:
    head = ["setting"]
    columns = []
    names: dict[str, None] = {}
    for preset in presets():
        settings = preset_settings(preset)
        head.append(f"`{preset}`")
        columns.append(settings)
        names |= dict.fromkeys(settings)
    rows = []
    for name in names:
        cells = [settings.get(name, "") for settings in columns]
        rows.append([f"`{name}`", *cells])
    return _table(head, rows)


def _settings_markdown() -> str:
    rows = []
    for row in setting_rows():
        # A bar would end the cell.
        description = row.description.replace("|", r"\|")
        rows.append([f"`{row.name}`", f"`{row.default}`", row.legal, description])
    return _table(["setting", "default", "takes", "decides"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    sys.stdout.write(settings_page())
