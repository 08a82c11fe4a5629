"""The settings of a run from its command line, or from the run that ``--resume`` continues."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cusa.data.errors import SettingError
from cusa.data.objects.folder import location_text
from cusa.train.config import Config
from cusa.train.config_building import (
    SHORT,
    build_config,
    deciding,
    load_config_file,
    merge,
    nest,
    override,
    parse_settings,
    refuse_hidden,
)
from cusa.train.default_preset import preset_of_student
from cusa.train.length import refuse_endless_warmup
from cusa.train.loss.config import TERMS
from cusa.train.preset_files import load_preset
from cusa.train.saving.hub_student import local_student
from cusa.train.saving.run_dir import begun, load_run
from cusa.train.saving.student_folder import load_origin
from cusa.train.settings import shown
from cusa.train.stores import open_store

# Settings that later versions added, and sections of such, which end in a dot; their defaults
# change nothing. A sweep's folder is named after its settings; leaving these out keeps the name
# that earlier versions gave it.
_ADDED_LATER = (
    "data.cross_teacher",
    "loss.cross_teacher_taus",
    "loss.cross_teacher_weights",
    "loss.dr_sigmoid.",
    "loss.features.",
    "loss.guide.",
    "loss.hycd.",
    "loss.image_teacher_taus",
    "loss.image_teacher_weights",
    "loss.rule",
    "loss.rule_weight",
    "loss.self_guide.",
    "loss.soft_label_modalities",
    "loss.teacher_mean",
    "loss.text_teacher_taus",
    "loss.text_teacher_weights",
    "loss.top_k",
    "loss.xclr.",
    "optim.schedule",
    "optim.schedule_epochs",
    "optim.schedule_steps",
    "optim.warmup_steps",
    "student.freeze",
    "student.image",
    "student.init",
    "student.lora.",
    "student.text",
    "train.steps",
    "train.validate_every",
)
_NAMING_PATHS = ("data", "student")  # sections of settings
_TOWERS_AND_SIZES = ("name", "image", "text", "hidden_dim", "embed_dim")


@dataclass(frozen=True)
class Given:
    """The options of a command line that concern the settings.

    Attributes:
        embeddings: ``--embeddings``.
        preset: ``--preset``.
        config_file: ``--config``.
        settings: Every ``--set``, nested.
        flags: The other options by name; ``None`` where not given.
    """

    embeddings: Path | None
    preset: str | None
    config_file: Path | None
    settings: Mapping[str, Any]
    flags: Mapping[str, Any]


def chosen_settings(
    given: Given,
    run_dir: Path | None,
    resume: bool,
) -> Config:
    """Determine the settings of a run: a new one, or the one that ``--resume`` continues.

    Args:
        given: The command line.
        run_dir: ``--run-dir``.
        resume: ``--resume``.

    Raises:
        CusaError: If a setting is illegal, a file cannot be read, or options contradict each other.
    """
    if resume and run_dir is None:
        raise SettingError("--resume: pass --run-dir, the run to go on with", name="run_dir")
    begins_anew = bool(given.preset or given.config_file)
    if resume and begins_anew and given.embeddings is None:
        raise SettingError(
            "--resume: the run keeps its own settings; leave out --preset and --config",
            name="preset",
        )
    # Without --embeddings there must be a run; reading its settings says so if there is none.
    if run_dir is not None and resume and not begins_anew:
        has_run = begun(run_dir) or given.embeddings is None
        if has_run:
            return _resumed_settings(run_dir, given)
    return new_settings(given, flag_settings(given.flags))


def flag_settings(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Turn options that stand for a setting into nested settings; ``None`` is not given."""
    settings = {}
    for name, value in flags.items():
        if value is not None:
            settings[name] = value
    return nested_settings(settings)


def nested_settings(settings: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """Nest settings that are named in any usual way.

    Args:
        settings: Values by name: a full name (``"loss.alpha"``), the name of an option
            (``"epochs"``), or that of a section, whose value is a mapping (``"optim"``). Or texts
            as ``--set`` takes them: ``["loss.alpha=0.2"]``.

    Raises:
        SettingError: If a name is no text, no legal value of ``"loss"`` is given, or one setting is
            a section in another. Other names and values are checked with the configuration.
    """
    if not isinstance(settings, Mapping):
        return parse_settings(settings)
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        setting = _nested_setting(name, value)
        refuse_hidden(nested, setting)
        nested = merge(nested, setting)
    return nested


def _nested_setting(name: str, value: Any) -> dict[str, Any]:
    """Nest one setting under its full name."""
    if not isinstance(name, str):
        raise SettingError(
            f"{name!r} is no name of a setting; pass one such as 'loss.alpha'", name=repr(name)
        )
    # Only a section's value is a mapping.
    if isinstance(value, Mapping):
        return nest(name, value)
    if name == "loss":
        if not isinstance(value, str) or value not in TERMS:
            raise SettingError(
                f"loss must be one of {', '.join(TERMS)}; got {shown(value)}", name="loss"
            )
        value = TERMS[value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return nest(_full_name(name), value)


def _full_name(name: str) -> str:
    """Complete the short name of a setting; a name that is unknown stays as it is."""
    if name in SHORT:
        return SHORT[name]
    for section, fields in dataclasses.asdict(Config()).items():
        if name in fields:
            return f"{section}.{name}"
    return name


def new_settings(given: Given, flags: Mapping[str, Any]) -> Config:
    """Determine the settings of a new run.

    From weakest to strongest: the preset, the student of ``--init``, ``--config``, ``--set``,
    ``--embeddings``, and the other options.

    Args:
        given: The command line.
        flags: Its other options as nested settings.

    Raises:
        CusaError: If a setting is illegal, or a file cannot be read.
    """
    chosen = _explicit_settings(given, flags)
    # Check the settings before opening a path that they name: a file may hold anything.
    sections = {}
    for name in _NAMING_PATHS:
        if name in chosen:
            sections[name] = chosen[name]
    checked = build_config(sections)
    if checked.student.init is not None:
        init_path = local_student(checked.student.init)
        chosen = merge(chosen, nest("student.init", str(init_path)))
        initial = _initial_settings(init_path)
        if "name" in chosen["student"]:
            # It names both towers, unless others are given: not the towers of --init.
            initial["student"].update(image=None, text=None)
        chosen = merge(initial, chosen)
    preset = given.preset
    if preset is None:
        if not checked.data.embeddings:
            raise SettingError(
                "pass --embeddings, the store that cusa-precompute wrote",
                name="data.embeddings",
            )
        dataset = open_store(checked.data.embeddings).dataset
        # With the towers of --init.
        student_settings = chosen.get("student", {})
        student = build_config({"student": student_settings}).student
        preset = preset_of_student(dataset, student_settings.get("name"), student)
    config = build_config(override(load_preset(preset), chosen))
    refuse_endless_warmup(config)
    return config


def _explicit_settings(given: Given, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``--config``, ``--set``, ``--embeddings`` and the other options."""
    from_command_line: dict[str, Any] = {}
    for settings in (given.settings, _named_store(given), flags):
        refuse_hidden(from_command_line, settings)
        from_command_line = merge(from_command_line, settings)
    if not given.config_file:
        return from_command_line
    from_file = load_config_file(given.config_file)
    refuse_hidden(from_file, from_command_line)
    return override(from_file, from_command_line)


def _initial_settings(init_path: Path) -> dict[str, Any]:
    """Read a trained student's towers, sizes and caption normaliser."""
    config = load_origin(init_path).config
    student = dataclasses.asdict(config.student)
    towers_and_sizes = {name: student[name] for name in _TOWERS_AND_SIZES}
    return {"student": towers_and_sizes, "data": {"normalizer": config.data.normalizer}}


def _resumed_settings(run_dir: Path, given: Given) -> Config:
    """Override the run's own settings with the options; the trainer refuses what may not change."""
    stored = dataclasses.asdict(load_run(run_dir)[0])
    chosen = merge(given.settings, flag_settings(given.flags))
    chosen = merge(chosen, _named_store(given))
    return build_config(override(stored, chosen))


def _named_store(given: Given) -> dict[str, Any]:
    if not given.embeddings:
        return {}
    return nest("data.embeddings", location_text(given.embeddings))


def default_run_dir(config: Config) -> Path:
    """Name a new folder under ``runs/`` for data set, student, loss, seed and the time."""
    dataset = open_store(config.data.embeddings).dataset
    student = Path(config.student.title).name.replace(":", "-")
    loss = "-".join(config.loss.term_titles)
    for loss_name, terms in TERMS.items():
        if set(terms) == set(config.loss.term_titles):
            loss = loss_name
            break
    seed = config.train.seed
    timestamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{dataset}-{student}-{loss}-seed{seed}-{timestamp}"


def default_sweep_dir(configs: Sequence[Config]) -> Path:
    """Name a folder under ``runs/`` after the settings, so that the same command finds it again."""
    defaults = deciding(Config())
    settings_of_runs = []
    for config in configs:
        settings = deciding(config)
        for name, default in defaults.items():
            if _was_added_later(name) and settings[name] == default:
                del settings[name]
        settings_of_runs.append(settings)
    content = repr(settings_of_runs).encode()
    digest = hashlib.sha256(content).hexdigest()
    dataset = open_store(configs[0].data.embeddings).dataset
    return Path("runs") / f"{dataset}-sweep-{digest[:8]}"


def _was_added_later(name: str) -> bool:
    sections = tuple(section for section in _ADDED_LATER if section.endswith("."))
    return name in _ADDED_LATER or name.startswith(sections)
