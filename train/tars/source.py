"""Where batches read the files of tars from: a set as it is, or copies of its files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cusa.data.errors import StoreError
from cusa.data.tars.named_files import NamedFiles
from cusa.data.tars.samples import FileState, state_of_file
from cusa.data.tars.tar_set import TarSet


class TarSource(Protocol):
    """Where batches read the files of tars from.

    Attributes:
        n_threads: How many tars may be brought at a time.
    """

    n_threads: int

    @property
    def files(self) -> NamedFiles:
        """Return where the files are that were brought."""

    def bring(self, tar: str) -> None:
        """Make sure that a tar's files are there, all bytes of them verified.

        Raises:
            StoreError: If a file is missing, damaged or another one, or the disk is full.
            TarError: If the tar is missing or has changed.
        """

    def drop(self, tar: str) -> None:
        """Forget a tar that no batch needs for now."""

    def close(self) -> None:
        """Forget all, as no batch is read any more."""


@dataclass(frozen=True)
class InPlace:
    """The set's own files.

    All bytes of a tar are verified once, and again when its length or time of modification is
    another one: in a run of several epochs, that would take as long as reading its pictures.

    Attributes:
        tar_set: The set.
        teachers: Names of the teachers whose rows are read.
        reads_images: Whether pictures are read from the tars.
        verified_tars: The state of each tar that was verified, by its name.
    """

    tar_set: TarSet
    teachers: tuple[str, ...]
    reads_images: bool
    verified_tars: dict[str, FileState] = field(default_factory=dict)
    n_threads = 1

    @property
    def files(self) -> NamedFiles:
        """Return the set."""
        return self.tar_set

    def bring(self, tar: str) -> None:
        """Verify a tar's files, where they are."""
        try:
            state = self._state_of_tar(tar)
            is_verified = state is not None and state == self.verified_tars.get(tar)
            self.tar_set.require_tar(tar, self.teachers, self.reads_images and not is_verified)
            if state is not None:
                self.verified_tars[tar] = state
        except OSError as error:
            path = Path(error.filename or self.tar_set.path)
            raise StoreError(
                f"{path} cannot be read ({error.strerror}); check its permissions and the disk",
                path=path,
                name=tar,
            ) from None

    def _state_of_tar(self, tar: str) -> FileState | None:
        """Return the state of a tar; ``None`` if it is not read, or not there."""
        if not self.reads_images:
            return None
        try:
            return state_of_file(self.tar_set.tar_path(tar))
        except FileNotFoundError:
            return None

    def drop(self, tar: str) -> None:
        """Do nothing: the files are the user's."""

    def close(self) -> None:
        """Do nothing: the files are the user's."""
