"""The frozen encoders whose embeddings stored towers take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cusa.data.errors import StudentError, TeacherError
from cusa.data.store.schema import TeacherSettings
from cusa.precompute.teachers import KNOWN, parse_teacher
from cusa.precompute.teachers.base import Teacher
from cusa.train.saving.provenance import StoredTeacher


def refuse_unstored(
    sources: Mapping[str, str],
    stored: Mapping[str, StoredTeacher],
) -> None:
    """Refuse sources of encoders of towers that are not stored.

    Args:
        sources: Where encoders are, by ``"image"`` and ``"text"``.
        stored: The encoders of the stored towers.

    Raises:
        StudentError: If a source is of another tower.
    """
    for modality in sources:
        if modality not in stored:
            raise StudentError(
                f"encoders names {modality!r}, which is no stored tower of this student; those "
                f"are: {', '.join(stored) or 'none'}",
                name=modality,
            )


def load_frozen(source: str, name: str, settings: TeacherSettings, device: str) -> Teacher:
    """Load a stored tower's frozen encoder.

    Args:
        source: Where it is, as ``cusa-precompute --teacher`` takes it.
        name: Its name in the store.
        settings: What the store records of it.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises:
        TeacherError: If it cannot be loaded, or has other weights than those the student was
            trained on.
    """
    teacher = parse_teacher(source).load_as(settings, device)
    if teacher.weights_sha256 != settings.weights_sha256:
        raise TeacherError(
            f"the {settings.modality} encoder loaded from {teacher.source} has other weights than "
            f"{name!r}, which the student was trained on; pass "
            f"encoders={{{settings.modality!r}: 'NAME=PATH'}} with the right ones",
            name=name,
        )
    return teacher


def source_of(stored: StoredTeacher) -> str:
    """Return the source of a stored teacher in the form of ``--teacher``."""
    # The folder that stage one loaded it from may be on another machine.
    if Path(stored.source).exists():
        return f"{stored.name}={stored.source}"
    if stored.name in KNOWN:
        return stored.name
    return f"{stored.name}={stored.settings.model_id}"
