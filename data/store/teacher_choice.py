"""The choice of teachers among those of a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cusa.data.errors import StoreError
from cusa.data.store.cross_teachers import cross_teachers, rows_of_cross_teachers
from cusa.data.store.schema import TeacherSettings

# One name or several; ``None``: the default.
TeacherNames = str | Sequence[str] | None


def optional_teachers(
    location: str,
    teachers: Mapping[str, TeacherSettings],
    modality: str,
    names: TeacherNames,
    flag: str,
) -> tuple[str, ...]:
    """Return the names of a modality's teachers; none if none is named and there is none.

    Args:
        location: Path or URL of the store, for error messages.
        teachers: Its teachers' settings by name.
        modality: ``"image"`` or ``"text"``.
        names: As :func:`pick_teachers` takes them.
        flag: The option for their names, for error messages.

    Raises:
        StoreError: As :func:`pick_teachers` raises it, but not for want of a teacher.
    """
    if names is None and not _of_modality(teachers, modality):
        return ()
    return pick_teachers(location, teachers, modality, names, flag)


def pick_teachers(
    location: str,
    teachers: Mapping[str, TeacherSettings],
    modality: str,
    names: TeacherNames,
    flag: str,
) -> tuple[str, ...]:
    """Return the names of a modality's teachers: those requested, or the only one.

    Args:
        location: Path or URL of the store, for error messages.
        teachers: Its teachers' settings by name.
        modality: ``"image"`` or ``"text"``.
        names: One or several names; ``None`` or empty: the default of :func:`pick_teacher`.
        flag: The command-line option for its name, for error messages.

    Raises:
        StoreError: If a teacher is not there or named twice, or there are several and no name.
    """
    names = _as_names(names)
    if not names:
        return (pick_teacher(location, teachers, modality, None, flag),)
    _refuse_repeated(location, names, flag)
    chosen = []
    for name in names:
        chosen.append(pick_teacher(location, teachers, modality, name, flag))
    return tuple(chosen)


def default_teacher(teachers: Mapping[str, TeacherSettings], modality: str) -> str | None:
    """Return a modality's only teacher, or its only uni-modal one beside cross-modal ones' rows.

    Args:
        teachers: A store's teachers' settings by name.
        modality: ``"image"`` or ``"text"``.
    """
    names = _of_modality(teachers, modality)
    if len(names) > 1:
        cross_modal = rows_of_cross_teachers(teachers)
        names = [name for name in names if name not in cross_modal]
    if len(names) == 1:
        return names[0]
    return None


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
        name: The teacher's name; ``None``: that of :func:`default_teacher`.
        flag: The command-line option for its name, for error messages.

    Raises:
        StoreError: If there is no such teacher, or several and no name.
    """
    teacher_names = _of_modality(teachers, modality)
    default = default_teacher(teachers, modality)
    if not teacher_names:
        raise StoreError(
            f"{location} holds no {modality} teacher; add one: "
            f"cusa-precompute --teacher NAME --out {location}",
            path=Path(location),
            name=modality,
        )
    if name in teacher_names:
        return name
    if name is None and default is not None:
        return default

    problem = f"several {modality} teachers"
    if name is not None:
        problem = f"unknown {modality} teacher {name!r}"
    raise StoreError(
        f"{location}: {problem}; pass {flag} with one of: {', '.join(teacher_names)}",
        path=Path(location),
        name=modality if name is None else name,
    )


def pick_cross_teachers(
    location: str,
    teachers: Mapping[str, TeacherSettings],
    names: TeacherNames,
    flag: str,
) -> tuple[tuple[str, str], ...]:
    """Return the image rows' and the text rows' names of cross-modal teachers.

    Args:
        location: Path or URL of the store, for error messages.
        teachers: Its teachers' settings by name.
        names: One or several cross-modal teachers; ``None`` or empty: the only one.
        flag: The command-line option for its name, for error messages.

    Raises:
        StoreError: If a teacher is not there or named twice, or there are several and no name.
    """
    stored = cross_teachers(teachers)
    if not stored:
        raise StoreError(
            f"{location} holds no cross-modal teacher, whose image rows and text rows can be "
            f"compared; add one: cusa-precompute --teacher clip:NAME --out {location}",
            path=Path(location),
            name="cross",
        )
    chosen = _as_names(names)
    if not chosen and len(stored) == 1:
        chosen = tuple(stored)
    _refuse_repeated(location, chosen, flag)
    unknown = [name for name in chosen if name not in stored]
    if unknown or not chosen:
        problem = "several cross-modal teachers"
        if unknown:
            problem = f"unknown cross-modal teacher {unknown[0]!r}"
        raise StoreError(
            f"{location}: {problem}; pass {flag} with one of: {', '.join(stored)}",
            path=Path(location),
            name=unknown[0] if unknown else "cross",
        )
    return tuple(stored[name] for name in chosen)


def _of_modality(teachers: Mapping[str, TeacherSettings], modality: str) -> list[str]:
    names = []
    for name, settings in teachers.items():
        if settings.modality == modality:
            names.append(name)
    return names


def _as_names(names: TeacherNames) -> tuple[str, ...]:
    if names is None:
        return ()
    if isinstance(names, str):
        return (names,)
    return tuple(names)


def _refuse_repeated(location: str, names: Sequence[str], flag: str) -> None:
    for position, name in enumerate(names):
        if name in names[:position]:
            raise StoreError(
                f"{location}: teacher {name!r} is given twice; pass {flag} once for each",
                path=Path(location),
                name=name,
            )
