"""Settings from presets, files and ``--set``, laid over each other, and what two runs differ in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cusa.data.errors import FileFormatError, SettingError
from cusa.data.yaml_files import parse_yaml, read_yaml
from cusa.train.config import Config
from cusa.train.settings import shortened, shown, validate

_MOST_BYTES = 1_000_000  # in a file of settings
_MOST_DOTS = 8  # in a setting's full name; no setting has as many

# Short names of settings, for options and for the axes of a sweep. A loss is named by its key in
# TERMS.
SHORT = {
    "loss": "loss.terms",
    "seed": "train.seed",
    "lr": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "warmup": "optim.warmup_epochs",
    "epochs": "train.epochs",
    "steps": "train.steps",
    "batch_size": "train.batch_size",
    "student": "student.name",
    "init": "student.init",
    "image_teacher": "data.image_teacher",
    "text_teacher": "data.text_teacher",
    "cross_teacher": "data.cross_teacher",
    "image_encoder": "student.image_encoder",
    "text_encoder": "student.text_encoder",
}


def load_config_file(path: Path) -> dict[str, Any]:
    """Read a YAML file's settings, nested.

    Raises:
        FileFormatError: If the file is missing, larger than 1 MB, or not a YAML mapping.
    """
    if path.is_file() and path.stat().st_size > _MOST_BYTES:
        raise FileFormatError(
            f"{path} is too large for a file of settings; pass another",
            path=path,
        )
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise FileFormatError(
            f"{path} holds no settings; expected sections such as 'train:' with settings below, "
            "as in runs/*/config.yaml",
            path=path,
        )
    return content


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Override the settings of ``base`` with those of ``over``, section by section."""
    merged = dict(base)
    for name, value in over.items():
        base_value = merged.get(name)
        if isinstance(base_value, Mapping) and isinstance(value, Mapping):
            value = merge(base_value, value)
        merged[name] = value
    return merged


# Lengths that can be given in epochs or in steps, and their values where they are not given.
_IN_TWO_UNITS = (
    ("train", {"epochs": None, "steps": None}),
    ("optim", {"warmup_epochs": 0.0, "warmup_steps": None}),
    ("optim", {"schedule_epochs": None, "schedule_steps": None}),
)


def override(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge settings over weaker ones; a length replaces the same length in the other unit."""
    merged = merge(base, over)
    for section, lengths in _IN_TWO_UNITS:
        section_settings = over.get(section)
        if not isinstance(section_settings, Mapping):
            continue
        is_given = any(section_settings.get(name) is not None for name in lengths)
        for name, not_given in lengths.items():
            if is_given and name not in section_settings:
                merged = merge(merged, nest(f"{section}.{name}", not_given))
    return merged


def refuse_hidden(
    under: Mapping[str, Any],
    over: Mapping[str, Any],
    prefix: str = "",
) -> None:
    """Refuse settings that give a value where others have a section: merging would drop the value.

    Args:
        under: Nested settings.
        over: Nested settings to be merged over them.
        prefix: Full name of the section that both are in, with a dot behind it.

    Raises:
        SettingError: If there is such a value; ``name`` is its full name.
    """
    for name, value in over.items():
        hidden = under.get(name)
        if not isinstance(value, Mapping) or hidden is None:
            continue
        if not isinstance(hidden, Mapping):
            full_name = f"{prefix}{name}"
            value_text = shown(hidden)
            raise SettingError(
                f"setting {full_name} must be settings below it, got {value_text}", name=full_name
            )
        refuse_hidden(hidden, value, f"{prefix}{name}.")


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``["loss.alpha=0.2", ...]`` as nested settings; values are YAML.

    Raises:
        SettingError: If a pair is not ``section.name=value``, or one gives a value to what is a
            section in another.
    """
    nested: dict[str, Any] = {}
    for pair in pairs:
        name, equals, raw = pair.partition("=")
        name = name.strip()
        if not equals or not name:
            raise SettingError(
                f"--set {shortened(pair)}: expected NAME=VALUE, e.g. loss.alpha=0.2",
                name=name,
            )
        try:
            value = parse_yaml(raw, f"--set {shortened(pair)}")
        except FileFormatError as error:
            raise SettingError(str(error), name=name) from None
        refuse_hidden(nested, nest(name, value))
        nested = merge(nested, nest(name, value))
    return nested


def nest(name: str, value: Any) -> dict[str, Any]:
    """Nest a value under a setting's full name: ``{"loss": {"alpha": 0.2}}``.

    Raises:
        SettingError: If the name has more sections than any setting.
    """
    if name.count(".") >= _MOST_DOTS:
        raise SettingError(
            f"unknown setting {shortened(name)}; expected one such as loss.tau.init",
            name=name,
        )
    for section in reversed(name.split(".")):
        value = {section: value}
    return value


def build_config(settings: Mapping[str, Any]) -> Config:
    """Check nested settings and freeze them.

    Raises:
        SettingError: If a name is unknown or a value illegal; the message says what is legal, and
            ``name`` is the setting's full name.
    """
    defaults = dataclasses.asdict(Config())
    complete = override(defaults, _with_report_to(settings))
    return validate(Config, complete)


def _with_report_to(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Read ``train.tensorboard``, which the settings of earlier runs have, as ``report_to``.

    Trackers that are named as well take precedence.
    """
    train = settings.get("train")
    if not isinstance(train, Mapping) or "tensorboard" not in train:
        return settings
    train = dict(train)
    if train.pop("tensorboard"):
        train.setdefault("report_to", ["tensorboard"])
    return {**settings, "train": train}


def to_yaml(config: Config) -> str:
    """Write the settings as a file that ``--config`` reads."""
    plain = _with_lists(dataclasses.asdict(config))
    return yaml.safe_dump(plain, sort_keys=False)


def _with_lists(value: Any) -> Any:
    """Replace the tuples among nested settings by lists."""
    if isinstance(value, Mapping):
        return {name: _with_lists(nested) for name, nested in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return value


# Settings that may change when a run resumes: paths, devices, logging. All others decide what the
# run computes.
_FREE = {
    "data.embeddings",
    "data.val_embeddings",
    "data.image_root",
    "data.val_image_root",
    "data.cache",
    "data.cache_gb",
    "train.device",
    "train.workers",
    "train.worker_start",
    "train.log_every",
    "train.checkpoint_steps",
    "train.checkpoint_minutes",
    "train.patience",
    "train.report_to",
    "train.project",
    "train.micro_batch",  # changes rounding and dropout masks, but so does the device
}


def differing(before: Config, now: Config) -> list[str]:
    """List the settings that decide what a run computes and that differ, each with both values."""
    values_now = deciding(now)
    differences = []
    for name, value in deciding(before).items():
        if value != values_now[name]:
            differences.append(f"{name} ({value!r} / {values_now[name]!r})")
    return differences


def deciding(config: Config) -> dict[str, Any]:
    """Return the settings that decide what a run computes, by their full names; lists for tuples.

    So they are equal to what is read from a JSON file of them.
    """
    settings = by_full_name(_with_lists(dataclasses.asdict(config)))
    for name in _FREE:
        del settings[name]
    return settings


def by_full_name(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings by their full names, such as ``"loss.alpha"``."""
    return dict(_by_full_name(nested, ""))


def _by_full_name(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield name, value
        return
    prefix = ""
    if name:
        prefix = f"{name}."
    for key, nested in value.items():
        yield from _by_full_name(nested, f"{prefix}{key}")
