"""The presets of the package: named settings, a YAML file each."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

from cusa.data.errors import SettingError
from cusa.data.yaml_files import parse_yaml

_FOLDER = importlib.resources.files("cusa.train") / "presets"


def presets() -> list[str]:
    """List the names of the package's presets."""
    names = []
    for entry in _FOLDER.iterdir():
        path = Path(entry.name)
        if path.suffix == ".yaml":
            names.append(path.stem)
    return sorted(names)


def load_preset(name: str) -> dict[str, Any]:
    """Read a preset's settings, nested.

    Raises:
        SettingError: If there is no preset of that name; the message lists them.
    """
    legal_names = presets()
    if name not in legal_names:
        raise SettingError(
            f"unknown preset {name!r}; legal: {', '.join(legal_names)}", name="preset"
        )
    preset_file = _FOLDER / f"{name}.yaml"
    return parse_yaml(preset_file.read_text(), f"preset {name}")
