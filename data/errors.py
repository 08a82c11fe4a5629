"""Errors that the user can fix; command lines print them as one line."""

from __future__ import annotations

import re
import signal
from http import HTTPStatus
from pathlib import Path
from typing import Self

# ``location`` of an error that a model's own code raised on its inputs.
FORWARD_PASS = "forward pass"
# The same, if some of a model's weights are missing.
WEIGHTS = "weights"
# Characters of a message, at most.
LONGEST_LINE = 2000
_LEFT_OUT = " […] "
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class CusaError(ValueError):
    r"""A mistake in what the user gave, in one line: what it was, what is legal, what to do.

    Args:
        message: The line. What it quotes from a file may hold control characters or be very long:
            line breaks become spaces, other control characters their escapes, such as ``\x1b``,
            and the middle of a message of more than :data:`LONGEST_LINE` characters is left out.
        path: The file or folder at fault.
        location: Where in it, such as ``"line 3"``.
        name: What is at fault: a setting or an option, as Python spells it; a teacher, a split, an
            id.

    Attributes:
        path: As given, or ``None``.
        location: As given, or an empty text.
        name: As given, or an empty text.
    """

    def __init__(
        self, message: str, *, path: Path | None = None, location: str = "", name: str = ""
    ) -> None:
        super().__init__(_on_one_line(message))
        self.path = path
        self.location = location
        self.name = name

    def reworded(self, message: str, name: str | None = None) -> Self:
        """Return an error of the same kind, path and location with another message.

        Args:
            message: The line.
            name: What is at fault; ``None``: as here.
        """
        if name is None:
            name = self.name
        return type(self)(message, path=self.path, location=self.location, name=name)


class FileFormatError(CusaError):
    """A file cannot be parsed, or holds something that its format does not allow."""


class DataError(CusaError):
    """Annotations, captions or images cannot be used."""


class ImageError(DataError):
    """An image file cannot be decoded."""


class StoreError(CusaError):
    """An embedding store is missing, damaged, or not the one expected."""


class EmbeddingsError(CusaError):
    """Embedding rows cannot be used: their shape, ids or values are wrong."""


class TeacherError(CusaError):
    """A teacher is unknown, cannot be loaded, or does not compute what a teacher must."""


class StudentError(CusaError):
    """A student is unknown, cannot be loaded, or does not compute what a student must."""


class SettingError(CusaError):
    """A setting is unknown or has an illegal value.

    ``name`` is the setting as Python spells it, never its flag or its value: the full name of one
    in a configuration (``train.batch_size``), the parameter of a function or a field of a class
    (``shard_range``, of the flag ``--shard-range``), or an environment variable.
    """


class LockedError(CusaError):
    """Another run is working on a folder; ``name`` describes its process."""


class WorkerError(CusaError):
    """A worker process was killed, or exited on its own."""


class RunError(CusaError):
    """A run directory, checkpoint or file of results cannot be used."""


class HubError(CusaError):
    """A repository of the model hub cannot be read or written; ``name`` is the repository."""


class HubNetworkError(HubError):
    """The hub does not answer, or may not be asked (``HF_HUB_OFFLINE``)."""


class HubTokenError(HubError):
    """There is no access token, or it does not permit what was asked for."""


class HubRepositoryError(HubError):
    """The hub has no such repository or revision, or the token may not see it."""


class GatedRepositoryError(HubError):
    """A repository's owner must grant access first."""


class ObjectError(CusaError):
    """A file of an object store cannot be read or written.

    Args:
        message: The line.
        path: None; for :meth:`reworded`.
        location: URL of the folder.
        name: Name of the file in it.
        status: The HTTP status that the store answered with.

    Attributes:
        status: As given; ``None`` without an answer.
    """

    def __init__(
        self,
        message: str,
        *,
        path: Path | None = None,
        location: str = "",
        name: str = "",
        status: int | None = None,
    ) -> None:
        super().__init__(message, path=path, location=location, name=name)
        self.status = status

    @property
    def is_missing(self) -> bool:
        """Return whether the store has the bucket, but not the file."""
        return self.status == HTTPStatus.NOT_FOUND and bool(self.name)

    def reworded(self, message: str, name: str | None = None) -> Self:
        """Return the same with another message, as of every error."""
        error = super().reworded(message, name)
        error.status = self.status
        return error


class Stopped(BaseException):
    """Raised when the user or the system asks the run to stop.

    It is not an ``Exception``: a library that is being imported or set up must not catch it.

    Args:
        number: The signal's number.
        progress: How far the run got, and how to resume it.

    Attributes:
        signal: The signal's number.
    """

    def __init__(self, number: int, progress: str = "") -> None:
        super().__init__(progress)
        self.signal = number

    @staticmethod
    def by(number: int) -> Stopped:
        """Return what to raise for a signal."""
        if number == signal.SIGINT:
            return Interrupted(number)
        return Stopped(number)

    def with_progress(self, progress: str) -> Self:
        """Return the same with another account of how far the run got."""
        return type(self)(self.signal, progress)


class Interrupted(Stopped, KeyboardInterrupt):
    """Raised on Ctrl-C, which Python programs and notebooks know as ``KeyboardInterrupt``."""


def _on_one_line(message: str) -> str:
    """Put a message on one line, with the control characters of a terminal escaped."""
    line = " ".join(message.splitlines())
    if len(line) > LONGEST_LINE:
        half = LONGEST_LINE // 2 - len(_LEFT_OUT)
        line = line[:half] + _LEFT_OUT + line[-half:]
    if line.isprintable():
        return line
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", line)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name if it has none."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0]
