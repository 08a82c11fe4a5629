"""Where the copies of a tar set's files are in a cache."""

from __future__ import annotations

from pathlib import Path

from cusa.data.errors import CusaError
from cusa.data.objects.folder import location_text
from cusa.data.store.schema import file_name
from cusa.data.tars.named_files import NamedFiles
from cusa.data.tars.pair_files import pairs_path
from cusa.data.tars.set_files import PAIRS_FOLDER, error_elsewhere

# Hexadecimal digits of a seal that tell files apart.
_DIGITS = 32


class CachedFiles(NamedFiles):
    """The copies of a set's files: they are elsewhere, and the manifest is the set's.

    An entry is named after the seal of a tar's pairs, which covers the tar, and rows after theirs,
    so that sets and runs share a cache. There is no connection in it, so that it can be sent to
    worker processes.

    Args:
        tar_set: The set.
        folder: The cache.
    """

    def __init__(
        self,
        tar_set: NamedFiles,
        folder: Path,
    ) -> None:
        super().__init__(folder, manifest=tar_set.manifest)
        self.image_root = tar_set.image_root
        self._set_path = tar_set.path

    def entry_path(
        self,
        tar: str,
    ) -> Path:
        """Return the folder of the copies of a tar and its files."""
        return self.path / self.pairs_seal(tar)[:_DIGITS]

    def tar_path(
        self,
        tar: str,
    ) -> Path:
        """Return the path of the copy of a tar."""
        return self.entry_path(tar) / super().tar_path(tar).name

    def pairs_path(
        self,
        tar: str,
    ) -> Path:
        """Return the path of the copy of a tar's pairs."""
        return pairs_path(self.entry_path(tar), tar)

    def rows_path(
        self,
        teacher: str,
        tar: str,
    ) -> Path:
        """Return the path of the copy of a teacher's rows for a tar."""
        seal = self.rows_seal(teacher, tar)
        return self.entry_path(tar) / "rows" / f"{seal[:_DIGITS]}.h5"

    def elsewhere(
        self,
        error: CusaError,
        tar: str,
    ) -> CusaError:
        """Return an error on a copy as one on the tar or on the file of the set."""
        if self.image_root is not None:
            tar_location = location_text(super().tar_path(tar))
            error = error_elsewhere(error, self.tar_path(tar), tar_location)
        for teacher in self.manifest.teachers:
            rows_location = f"{location_text(self._set_path)}/{file_name(teacher)}/{tar}.h5"
            error = error_elsewhere(error, self.rows_path(teacher, tar), rows_location)
        pairs_location = f"{location_text(self._set_path)}/{PAIRS_FOLDER}/{tar}.h5"
        return error_elsewhere(error, self.pairs_path(tar), pairs_location)
