"""A tar set's stored pairs and rows."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cusa.data.errors import StoreError
from cusa.data.store.checksum import BLOCK, SHARD_FORMAT, ChecksumError, read_seal
from cusa.data.store.hdf5 import refuse
from cusa.data.store.schema import TeacherSettings, file_name
from cusa.data.tars.manifest import read_manifest
from cusa.data.tars.pair_files import PairFile, pairs_path, read_pairs
from cusa.data.tars.set_files import PAIRS_FOLDER, SetFiles


class TarSet:
    """The stored pairs and rows of a set of tars.

    Args:
        folder: Path or URL of the folder of the set, which ``cusa-precompute --out`` made. Of an
            object store, files are fetched when they are asked for, and dropped once read.

    Attributes:
        folder: As given.
        manifest: The set's manifest.

    Raises:
        StoreError: If the manifest is missing or damaged.
    """

    def __init__(
        self,
        folder: str | Path,
    ) -> None:
        self.folder = Path(folder)
        self._files = SetFiles(folder)
        self.manifest = read_manifest(folder)
        self._number_of_tar = dict(zip(self.manifest.names, itertools.count(), strict=False))

    @property
    def teachers(self) -> Mapping[str, TeacherSettings]:
        """Return the settings of each teacher by its name."""
        teacher_settings: dict[str, TeacherSettings] = {}
        for name, rows in self.manifest.teachers.items():
            teacher_settings[name] = rows.settings
        return teacher_settings

    def __len__(self) -> int:
        """Return the number of tars."""
        return self.manifest.n_tars

    def __repr__(self) -> str:
        n_images = int(self.manifest.counts["n_images"].sum())
        return f"TarSet({str(self._files)!r}, {len(self):,} tars, {n_images:,} images)"

    def pairs(
        self,
        tar: str,
    ) -> PairFile:
        """Read the pairs of a tar.

        Args:
            tar: The tar's name without ``.tar``.

        Raises:
            StoreError: If the set has no such tar, or its file is damaged or another one.
        """
        number = self._number(tar)
        with self._files.on_disk([f"{PAIRS_FOLDER}/{tar}.h5"]) as folder:
            pairs = read_pairs(pairs_path(folder, tar))
            if pairs.seal != self.manifest.pair_seals[number].tobytes().hex():
                self._refuse_replaced(pairs_path(folder, tar))
        return pairs

    def rows(
        self,
        teacher: str,
        tar: str,
    ) -> np.ndarray:
        """Read the rows of a teacher for a tar: float16 or float32 ``[n, dim]``.

        Image rows, or caption rows, in the order of :meth:`pairs`; NaN where skipped.

        Args:
            teacher: The teacher's name.
            tar: The tar's name without ``.tar``.

        Raises:
            StoreError: If the set has no such teacher or tar, or the file is damaged or another
                one.
        """
        number = self._number(tar)
        if teacher not in self.manifest.teachers:
            legal_teachers = ", ".join(self.manifest.teachers)
            raise StoreError(
                f"{self._files} has no teacher {teacher!r}; it has: {legal_teachers}",
                path=self.folder,
                name=teacher,
            )
        stored = self.manifest.teachers[teacher]
        shard_file = f"{file_name(teacher)}/{tar}.h5"
        with self._files.on_disk([shard_file]) as folder:
            path = folder / shard_file
            content = self._read_sealed(path, stored.seals[number].tobytes().hex())
        dtype = np.dtype(stored.settings.dtype).newbyteorder("<")
        shape = (self._n_rows(stored.settings.modality, number), stored.settings.dim)
        offset = int(stored.offsets[number])
        stop = offset + math.prod(shape) * dtype.itemsize
        if not 0 <= offset <= stop <= len(content):
            refuse(self._files.path / shard_file, "rows", "they are not where the manifest says")
        return np.frombuffer(content[offset:stop], dtype).reshape(shape)

    def choose_teacher(
        self,
        modality: str,
        teacher: str | None,
    ) -> str | None:
        """Return the name of the teacher of a modality, ``None`` if there is none.

        Args:
            modality: ``"image"`` or ``"text"``.
            teacher: The teacher's name; ``None``: the only one.

        Raises:
            StoreError: If the set has no such teacher of the modality, or several and none is
                named.
        """
        names: list[str] = []
        for name, settings in self.teachers.items():
            if settings.modality == modality:
                names.append(name)
        if teacher is not None and teacher not in names:
            raise StoreError(
                f"{self._files} has no {modality} teacher {teacher!r}; it has: {', '.join(names)}",
                path=self.folder,
                name=teacher,
            )
        if teacher is None and len(names) > 1:
            raise StoreError(
                f"{self._files} has several {modality} teachers: {', '.join(names)}; name one, "
                f"{modality}_teacher={names[0]!r}",
                path=self.folder,
                name=modality,
            )
        return teacher or next(iter(names), None)

    def _number(
        self,
        tar: str,
    ) -> int:
        if tar not in self._number_of_tar:
            raise StoreError(
                f"{self._files} has no tar {tar!r}; run cusa-precompute for it, then cusa-store "
                f"index {self._files}",
                path=self.folder,
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

    def _read_sealed(
        self,
        path: Path,
        expected_seal: str,
    ) -> bytes:
        """Read a file of rows, which must be the one that the manifest names."""
        if read_seal(path, SHARD_FORMAT) != expected_seal:
            self._refuse_replaced(path)
        content = path.read_bytes()
        sealed_bytes = memoryview(content)[BLOCK:]
        if hashlib.sha256(sealed_bytes).hexdigest() != expected_seal:
            raise ChecksumError(
                f"{path} is damaged: its checksum does not hold; move it away and run the "
                "cusa-precompute command again",
                path=path,
            )
        return content

    def _refuse_replaced(
        self,
        path: Path,
    ) -> None:
        raise StoreError(
            f"{path} is not the file that the manifest names; run cusa-store index {self._files} "
            "if it was made again",
            path=path,
        )
