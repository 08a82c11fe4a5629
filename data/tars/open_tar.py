"""A tar of a set, opened for reading by row: its pictures, captions, and the teachers' rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cusa.data.store.checksum import SHARD_FORMAT
from cusa.data.store.hdf5 import array_location
from cusa.data.store.mapped_file import MappedFile
from cusa.data.store.mapped_texts import Strings
from cusa.data.tars.named_files import NamedFiles
from cusa.data.tars.pair_files import PAIRS_FORMAT
from cusa.data.tars.samples import TarError


class OpenTar:
    """A tar of a set: columns and rows are mapped, pictures are read from the tar at their offsets.

    Nothing is verified but that the files are those that the manifest names and have the right
    lengths; :meth:`cusa.data.tars.tar_set.TarSet.require_tar` verifies all bytes.

    Args:
        tar_set: The set.
        tar: The tar's name without ``.tar``.
        teachers: Names of the teachers whose rows are read.
        reads_images: Whether pictures are read, so that the tar itself must be there.

    Attributes:
        name: The tar's name without ``.tar``.
        keys: Key of each image row.
        captions: Caption of each caption row, as written.
        caption_image: int64 ``[n_captions]``, the image row of each caption.

    Raises:
        StoreError: If a file is missing, or not the one that the manifest names.
        TarError: If the tar is missing, or has another length than when its rows were made.
    """

    def __init__(
        self,
        tar_set: NamedFiles,
        tar: str,
        teachers: Iterable[str],
        reads_images: bool,
    ) -> None:
        self.name = tar
        # First of all: a tar that was made again with its rows is best described by its length.
        self._file: int | None = None
        if reads_images:
            self._path = tar_set.tar_path(tar)
            self._file = open_unchanged(self._path, tar_set.tar_bytes(tar))
        pairs = MappedFile(tar_set.pairs_path(tar), PAIRS_FORMAT, tar_set.pairs_seal(tar))
        with pairs.opened() as content:
            self.keys = Strings(pairs, content, "keys")
            self.captions = Strings(pairs, content, "captions")
            self._images = Strings(pairs, content, "images")
            caption_image = array_location(content, "caption_image", "<i8")
            offsets = array_location(content, "image_offsets", "<i8")
            sizes = array_location(content, "image_sizes", "<i8")
        self.caption_image = pairs.array(caption_image)
        self._offsets = pairs.array(offsets)
        self._sizes = pairs.array(sizes)
        self._rows = {name: mapped_rows(tar_set, name, tar) for name in teachers}

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            os.close(file)

    def rows(self, teacher: str) -> np.ndarray:
        """Return the rows of a teacher: float16 or float32 ``[n, dim]``, mapped, read-only."""
        return self._rows[teacher]

    @property
    def is_deleted(self) -> bool:
        """Return whether the tar was deleted, so that it takes room until it is closed."""
        return self._file is not None and not os.fstat(self._file).st_nlink

    def image_path(self, row: int) -> Path:
        """Return the path of an image row, as messages name it: the tar, and the path within it."""
        return self._path / self._images[row]

    def image(self, row: int) -> bytes:
        """Read the file of an image row.

        Raises:
            TarError: If the tar cannot be read, or has become shorter.
        """
        assert self._file is not None, "the tar was opened without its pictures"
        size = int(self._sizes[row])
        try:
            content = os.pread(self._file, size, int(self._offsets[row]))
        except OSError as error:
            raise unreadable_tar(self._path, error) from None
        if len(content) < size:
            raise changed_tar(self._path)
        return content


def mapped_rows(
    tar_set: NamedFiles,
    teacher: str,
    tar: str,
) -> np.ndarray:
    """Map the rows of a teacher for a tar: float16 or float32 ``[n, dim]``, read-only.

    Raises:
        StoreError: If the file is missing, or not the one that the manifest names.
    """
    seal = tar_set.rows_seal(teacher, tar)
    file = MappedFile(tar_set.rows_path(teacher, tar), SHARD_FORMAT, seal)
    return file.array(tar_set.rows_location(teacher, tar))


def open_unchanged(
    path: Path,
    n_bytes: int,
) -> int:
    """Open a tar, which must have as many bytes as when its rows were made; a file descriptor.

    Raises:
        TarError: If it is missing, cannot be read, or has another length.
    """
    try:
        # Not to wait for the writer of a named pipe, which is then refused by its length.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable_tar(path, error) from None
    if os.fstat(file).st_size != n_bytes:
        os.close(file)
        raise changed_tar(path)
    return file


def require_unchanged(
    path: Path,
    n_bytes: int,
    sha256: str,
) -> None:
    """Refuse a tar that is not, byte by byte, the one that its rows were made from.

    Args:
        path: The tar.
        n_bytes: Its length when its rows were made.
        sha256: The sha256 (hex) of all of its bytes then.

    Raises:
        TarError: If it is missing, cannot be read, or is another one.
    """
    with os.fdopen(open_unchanged(path, n_bytes), "rb") as content:
        try:
            digest = hashlib.file_digest(content, "sha256")
        except OSError as error:
            raise unreadable_tar(path, error) from None
    if digest.hexdigest() != sha256:
        raise changed_tar(path)


def unreadable_tar(
    path: Path,
    error: OSError,
) -> TarError:
    """Return the error of a tar that cannot be read."""
    advice = "check the disk"
    if isinstance(error, FileNotFoundError):
        advice = "if the tars were moved, pass their folder as --image-root"
    return TarError(
        f"tar {path} cannot be read ({error.strerror}); {advice}",
        path=path,
        name=path.stem,
    )


def changed_tar(path: Path) -> TarError:
    """Return the error of a tar that is not the one that its rows were made from."""
    return TarError(
        f"tar {path} has changed since its rows were made; bring back the tar, or move its rows "
        "away and run cusa-precompute again",
        path=path,
        name=path.stem,
    )
