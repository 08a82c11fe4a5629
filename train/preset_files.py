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
    paths = [Path(entry.name) for entry in _FOLDER.iterdir()]
    return sorted(path.stem for path in paths if path.suffix == ".yaml")


def load_preset(name: str) -> dict[str, Any]:
    """Read a preset's settings, nested.

    Raises:
        SettingError: If there is no preset of that name; the message lists them.
    """
    if name not in presets():
        raise SettingError(f"unknown preset {name!r}; legal: {', '.join(presets())}", name="preset")
    return parse_yaml((_FOLDER / f"{name}.yaml").read_text(), f"preset {name}")
