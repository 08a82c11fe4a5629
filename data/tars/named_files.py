"""The files that the manifest of a tar set names: where they are, and what it says of each."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from cusa.data.errors import CusaError, StoreError
from cusa.data.store.hdf5 import ArrayLocation
from cusa.data.store.schema import file_name
from cusa.data.tars.manifest import Manifest, TarRows, read_manifest
from cusa.data.tars.pair_files import pairs_path
from cusa.data.tars.set_files import SetFiles
from cusa.data.tars.units import unit_suffix


class NamedFiles:
    """The files that the manifest of a tar set names.

    Arguments, attributes and errors are those of :class:`cusa.data.tars.tar_set.TarSet`.

    Args:
        folder: The folder.
        image_root: The folder of the tars.
        manifest: The manifest; ``None``: that of the folder.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        image_root: Path | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise StoreError(
                f"the folder or URL of a set of tars is needed; got {type(folder).__name__}",
                name="folder",
            )
        self.path = Path(folder)
        self.files = SetFiles(self.path)
        if manifest is None:
            manifest = read_manifest(self.path)
        self.manifest = manifest
        self.image_root = image_root
        if image_root is None and self.manifest.image_root:
            self.image_root = Path(self.manifest.image_root)
        names = self.manifest.names
        self._number_of_tar = dict(zip(names, range(len(names)), strict=True))

    def tar_path(
        self,
        tar: str,
    ) -> Path:
        """Return the path of a tar.

        Raises:
            StoreError: If it is not known where the tars are.
        """
        if self.image_root is None:
            raise StoreError(
                f"{self.files} does not say where its tars are; pass their folder as --image-root",
                path=self.path,
                name="image_root",
            )
        return self.image_root / f"{tar}{unit_suffix(self.manifest.caption_rule)}"

    def tar_bytes(
        self,
        tar: str,
    ) -> int:
        """Return the length of a tar when its rows were made."""
        return int(self.manifest.counts["tar_bytes"][self._number(tar)])

    def pairs_path(
        self,
        tar: str,
    ) -> Path:
        """Return the path of the file of a tar's pairs."""
        return pairs_path(self.path, tar)

    def pairs_seal(
        self,
        tar: str,
    ) -> str:
        """Return the seal that the file of a tar's pairs must carry."""
        return _hexadecimal(self.manifest.pair_seals[self._number(tar)])

    def rows_path(
        self,
        teacher: str,
        tar: str,
    ) -> Path:
        """Return the path of a teacher's rows for a tar."""
        return self.path / file_name(teacher) / f"{tar}.h5"

    def rows_seal(
        self,
        teacher: str,
        tar: str,
    ) -> str:
        """Return the seal that the file of a teacher's rows for a tar must carry."""
        return _hexadecimal(self._rows_of(teacher).seals[self._number(tar)])

    def rows_location(
        self,
        teacher: str,
        tar: str,
    ) -> ArrayLocation:
        """Return where in its file a teacher's rows for a tar are."""
        number = self._number(tar)
        stored = self._rows_of(teacher)
        return ArrayLocation(
            name="rows",
            offset=int(stored.offsets[number]),
            shape=(self._n_rows(stored.settings.modality, number), stored.settings.dim),
            dtype=np.dtype(stored.settings.dtype).newbyteorder("<").str,
        )

    def elsewhere(
        self,
        error: CusaError,
        tar: str,
    ) -> CusaError:
        """Return an error on a file of a tar as the user knows the file: here, as it is."""
        return error

    def _rows_of(
        self,
        teacher: str,
    ) -> TarRows:
        if teacher not in self.manifest.teachers:
            legal_teachers = ", ".join(self.manifest.teachers)
            raise StoreError(
                f"{self.files} has no teacher {teacher!r}; it has: {legal_teachers}",
                path=self.path,
                name=teacher,
            )
        return self.manifest.teachers[teacher]

    def _number(
        self,
        tar: str,
    ) -> int:
        if tar not in self._number_of_tar:
            raise StoreError(
                f"{self.files} has no tar {tar!r}; run cusa-precompute for it, then cusa-store "
                f"index {self.files}",
                path=self.path,
                name=tar,
            )
        return self._number_of_tar[tar]

    def _n_rows(
        self,
        modality: str,
        number: int,
    ) -> int:
        """Return the number of images or captions of a tar."""
        counts = self.manifest.counts["n_images"]
        if modality == "text":
            counts = self.manifest.counts["n_captions"]
        return int(counts[number])


def _hexadecimal(seal: np.ndarray) -> str:
    return seal.tobytes().hex()
