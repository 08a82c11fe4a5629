"""Settings as a user gives them: a YAML file, ``--set``, ``--sweep``; whole command
lines with them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cusa.train.command_settings import Given, new_settings
from cusa.train.config import Config
from cusa.train.config_building import build_config, parse_settings
from cusa.train.preset_files import load_preset
from cusa.train.sweep import parse_grid
from tests.fuzz.harness import Target
from tests.fuzz.mutations import BYTE_MUTATORS, Mutator, mutate_json, mutate_yaml
from tests.fuzz.readings import is_overlaid

SETTINGS: dict[str, Any] = {
    "student": {"name": "adapter", "hidden_dim": 16, "embed_dim": 8, "dropout": 0.2},
    "loss": {
        "terms": ["contrastive", "csa"],
        "alpha": 0.2,
        "tau": {"init": 0.05, "min": 0.01, "max": 0.1},
        "tau_csa": {"image": {"init": 0.3}, "shared": False},
        "soft_label_source": "add",
    },
    "optim": {"lr": 1e-3, "warmup_epochs": 0.5, "schedule_epochs": None, "grad_clip": 0},
    "train": {
        "epochs": 3,
        "batch_size": 16,
        "gather": False,
        "precision": "bf16",
        "checkpoint_minutes": 2.5,
    },
    "data": {"embeddings": "store.h5", "val_split": None, "normalizer": "none"},
}
PAIRS = (
    "loss.alpha=0.2",
    "loss.terms=[contrastive, usa]",
    "loss.tau.init=5e-2",
    "optim.lr=1e-3",
    "train.epochs=1e3",
    "train.gather=true",
    "train.patience=null",
    "student.embed_dim=16",
    "data.image_root=/pictures",
    "loss.tau_csa={image: {init: 0.4}}",
)
AXES = ("loss=contrastive,cusa", "seed=0,1,2", "optim.lr=1e-4,1e-3")
_PRESET = "adapter"


def make_file(folder: Path) -> Path:
    """A file of settings."""
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    return path


def read_file(path: Path) -> dict[str, Any]:
    """Settings of ``--preset adapter --config FILE``."""
    given = Given(None, _PRESET, path, {}, {})
    return dataclasses.asdict(new_settings(given, {}))


def is_file_as_written(valid: Any, read: dict[str, Any], path: Path) -> bool:
    """Whether every setting of the file, as PyYAML reads it, is there, and all others are as the
    preset has them.
    """
    written = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    return is_overlaid(read, written, dataclasses.asdict(build_config(load_preset(_PRESET))))


# --- --set


def make_pairs(folder: Path) -> Path:
    """What stands behind each ``--set``, a line each."""
    path = folder / "pairs.txt"
    path.write_text("\n".join(PAIRS))
    return path


def arguments_of(path: Path) -> list[str]:
    """Command line arguments as the system hands them over: any bytes but NUL; a line each."""
    return [
        os.fsdecode(line) for line in path.read_bytes().replace(b"\0", b"").split(b"\n") if line
    ]


def read_pairs(path: Path) -> dict[str, Any]:
    """Settings of one ``--set`` for each line."""
    return dataclasses.asdict(build_config(parse_settings(arguments_of(path))))


def are_pairs_as_written(valid: Any, read: dict[str, Any], path: Path) -> bool:
    """Whether each setting has the value that PyYAML reads behind the first ``=``, the last of
    several counting.
    """
    expected: dict[str, Any] = {}
    for pair in arguments_of(path):
        name, _, text = pair.partition("=")
        value: Any = yaml.safe_load(text)
        for section in reversed(name.strip().split(".")):
            value = {section: value}
        if not _merge(expected, value):
            return False
    return is_overlaid(read, expected, dataclasses.asdict(Config()))


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> bool:
    """Lay settings over others; whether none that has a value is replaced by a section."""
    for name, value in over.items():
        before = base.get(name)
        if not isinstance(value, dict) or before is None:
            base[name] = value
        elif not isinstance(before, dict) or not _merge(before, value):
            return False
    return True


def mutate_pair(content: bytes, rng: random.Random) -> bytes:
    """Change the value of one ``NAME=VALUE``, as a YAML document of its own."""
    lines = content.split(b"\n")
    number = rng.randrange(len(lines))
    name, equals, value = lines[number].partition(b"=")
    mutated = rng.choice((mutate_yaml, mutate_json))(value, rng).strip()
    lines[number] = name + equals + mutated.replace(b"\n", b" ")
    return b"\n".join(lines)


def mutate_name(content: bytes, rng: random.Random) -> bytes:
    """Change the name of one ``NAME=VALUE``."""
    lines = content.split(b"\n")
    number = rng.randrange(len(lines))
    name, equals, value = lines[number].partition(b"=")
    other = rng.choice(lines).partition(b"=")[0]
    odd_names = (
        b"",
        b".",
        b"..",
        b"loss",
        b"loss.",
        b".loss",
        b"loss..tau",
        b"a." * 2000,
        name + b".x",
        other,
        b"\xff",
    )
    lines[number] = rng.choice(odd_names) + equals + value
    return b"\n".join(lines)


# --- --sweep


def make_axes(folder: Path) -> Path:
    """What stands behind ``--sweep``, a line each."""
    path = folder / "axes.txt"
    path.write_text("\n".join(AXES))
    return path


def read_axes(path: Path) -> list[Any]:
    """The runs of a grid: name, values and settings."""
    cells = parse_grid(arguments_of(path))
    for cell in cells:
        build_config(cell.settings)
    return [{"name": cell.name, "values": dict(cell.values)} for cell in cells]


def are_axes_as_written(valid: Any, read: list[Any], path: Path) -> bool:
    """Whether the grid is the product of all axes' values, each run in a folder of its own."""
    axes = {}
    for argument in arguments_of(path):
        name, _, values = argument.partition("=")
        axes[name if "." in name else name.replace("-", "_")] = values.split(",")
    n_runs = 1
    for values in axes.values():
        n_runs *= len(values)
    names = {cell["name"] for cell in read}
    grids = {json.dumps(cell["values"], sort_keys=True) for cell in read}
    is_of_axes = all(
        cell["values"][axis] in values for cell in read for axis, values in axes.items()
    )
    return len(read) == len(names) == len(grids) == n_runs and is_of_axes


_PAIR_MUTATORS: tuple[Mutator, ...] = (
    *BYTE_MUTATORS,
    mutate_pair,
    mutate_pair,
    mutate_pair,
    mutate_name,
)

TARGETS = (
    Target(
        "settings/file",
        make_file,
        (*BYTE_MUTATORS, *(mutate_yaml,) * 6),
        read_file,
        is_file_as_written,
        weight=3,
    ),
    Target("settings/set", make_pairs, _PAIR_MUTATORS, read_pairs, are_pairs_as_written, weight=3),
    Target("settings/sweep", make_axes, _PAIR_MUTATORS, read_axes, are_axes_as_written, weight=2),
)
