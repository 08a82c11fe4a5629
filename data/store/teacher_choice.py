"""The choice of a modality's teacher among those of a store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cusa.data.errors import StoreError
from cusa.data.store.schema import TeacherSettings


def optional_teacher(
    location: str,
    teachers: Mapping[str, TeacherSettings],
    modality: str,
    name: str | None,
) -> str | None:
    """Return the name of a modality's teacher; ``None`` if none is named and there is none.

    Args:
        location: Path or URL of the store, for error messages.
        teachers: Its teachers' settings by name.
        modality: ``"image"`` or ``"text"``.
        name: The teacher's name; ``None``: the only one.

    Raises:
        StoreError: If there is no such teacher, or several and no name.
    """
    modalities = {settings.modality for settings in teachers.values()}
    if name is None and modality not in modalities:
        return None
    return pick_teacher(location, teachers, modality, name, f"{modality}_teacher")


def pick_teacher(
    location: str,
    teachers: Mapping[str, TeacherSettings],
    modality: str,
    name: str | None,
    flag: str,
) -> str:
    """Return the name of a modality's teacher: the one requested, or the only one.

    Args:
        location: Path or URL of the store, for error messages.
        teachers: Its teachers' settings by name.
        modality: ``"image"`` or ``"text"``.
        name: The teacher's name; ``None``: the only one.
        flag: The command-line option for its name, for error messages.

    Raises:
        StoreError: If there is no such teacher, or several and no name.
    """
    teacher_names = []
    for teacher_name, settings in teachers.items():
        if settings.modality == modality:
            teacher_names.append(teacher_name)

    if not teacher_names:
        raise StoreError(
            f"{location} holds no {modality} teacher; add one: "
            f"cusa-precompute --teacher NAME --out {location}",
            path=Path(location),
            name=modality,
        )
    if name is None and len(teacher_names) == 1:
        return teacher_names[0]
    if name in teacher_names:
        return name

    problem = f"several {modality} teachers"
    if name:
        problem = f"unknown {modality} teacher {name!r}"
    raise StoreError(
        f"{location}: {problem}; pass {flag} with one of: {', '.join(teacher_names)}",
        path=Path(location),
        name=name or modality,
    )
