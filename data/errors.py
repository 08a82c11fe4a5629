"""Errors that the user can fix; command lines print them as one line."""

from __future__ import annotations

from pathlib import Path

# Location of what a model's own code raised on its inputs.
FORWARD_PASS = "forward pass"


class CusaError(ValueError):
    """A mistake in what the user gave, in one line: what it was, what is legal, what to do.

    Args:
        message: The line.
        path: The file or folder at fault.
        location: Where in it, such as ``"line 3"``.
        name: What is at fault: a setting, a teacher, a split, an id.

    Attributes:
        path: As given, or ``None``.
        location: As given, or an empty text.
        name: As given, or an empty text.
    """

    def __init__(
        self,
        message: str,
        *,
        path: Path | None = None,
        location: str = "",
        name: str = "",
    ) -> None:
        super().__init__(message)
        self.path = path
        self.location = location
        self.name = name


class FileFormatError(CusaError):
    """A file cannot be parsed, or holds other things than its form allows."""


class DataError(CusaError):
    """Annotations, captions or images cannot be used."""


class ImageError(DataError):
    """An image file cannot be decoded."""


class StoreError(CusaError):
    """An embedding store is missing, damaged, or not the one expected."""


class EmbeddingsError(CusaError):
    """Embedding rows cannot be used: their shape, ids, or values are wrong."""


class TeacherError(CusaError):
    """A teacher is unknown, cannot be loaded, or does not compute what a teacher must."""


class StudentError(CusaError):
    """A student is unknown, cannot be loaded, or does not compute what a student must."""


class SettingError(CusaError):
    """A setting is unknown or has an illegal value."""


class LockedError(CusaError):
    """Another run is working on a folder; ``name`` is its process."""


class WorkerError(CusaError):
    """A worker process was killed, or ended by itself."""


class RunError(CusaError):
    """A run directory, checkpoint or file of results cannot be used."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name if it has none."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0]
