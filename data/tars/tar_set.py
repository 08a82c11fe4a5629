"""A tar set's stored pairs and rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from cusa.data.errors import StoreError
from cusa.data.store.checksum import BLOCK, SHARD_FORMAT, read_seal
from cusa.data.store.hdf5 import refuse
from cusa.data.store.mapped_split import Split
from cusa.data.store.schema import TeacherSettings, file_name
from cusa.data.store.teacher_choice import pick_teacher
from cusa.data.tars.named_files import NamedFiles
from cusa.data.tars.open_tar import require_unchanged
from cusa.data.tars.pair_files import (
    PAIRS_FORMAT,
    PairFile,
    damaged_error,
    pairs_path,
    read_pairs,
    read_tar_sha256,
    refuse_replaced,
    require_intact,
)
from cusa.data.tars.set_files import PAIRS_FOLDER

# The name of the only split of a set, as other stores have several.
SET_SPLIT = "train"


class TarSet(NamedFiles):
    """The stored pairs and rows of a set of tars.

    Args:
        folder: Path or URL of the folder of the set, which ``cusa-precompute --out`` made. Of an
            object store, files are fetched when they are asked for, and dropped once read.
        image_root: The folder of the tars; ``None``: where they were when the rows were made.

    Attributes:
        path: The folder of the set.
        image_root: The folder of the tars; ``None`` if it is not known.
        manifest: The set's manifest.

    Raises:
        StoreError: If the folder is no path, or the manifest is missing or damaged.
    """

    @property
    def teachers(self) -> Mapping[str, TeacherSettings]:
        """Return the settings of each teacher by its name."""
        teacher_settings: dict[str, TeacherSettings] = {}
        for name, rows in self.manifest.teachers.items():
            teacher_settings[name] = rows.settings
        return teacher_settings

    @property
    def sources(self) -> Mapping[str, str]:
        """Return where each teacher's model was loaded from, by the teacher's name."""
        return {name: rows.source for name, rows in self.manifest.teachers.items()}

    @property
    def dataset(self) -> str:
        """Return the name of the data set: that of the folder of the tars, or else of the set."""
        if self.manifest.image_root:
            return Path(self.manifest.image_root).name
        return self.path.resolve().name

    @property
    def splits(self) -> Mapping[str, Split]:
        """Return the splits that can be read as those of a store: none."""
        return {}

    def fingerprint(
        self,
        split: str,
    ) -> str:
        """Return a sha256 (hex) over all names, captions and tars; the set is a single split.

        Raises:
            StoreError: If the split is not named ``"train"``.
        """
        if split != SET_SPLIT:
            raise StoreError(
                f"{self.files} has no split {split!r}: a set of tars is a single split, "
                f"{SET_SPLIT!r}",
                path=self.path,
                name=split,
            )
        # The seal of a file of pairs covers the sha256 of its tar, too.
        return hashlib.sha256(self.manifest.pair_seals.tobytes()).hexdigest()

    def __len__(self) -> int:
        """Return the number of tars."""
        return self.manifest.n_tars

    def __repr__(self) -> str:
        n_images = int(self.manifest.counts["n_images"].sum())
        return f"TarSet({str(self.files)!r}, {len(self):,} tars, {n_images:,} images)"

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
        seal = self.pairs_seal(tar)
        with self.files.on_disk([f"{PAIRS_FOLDER}/{tar}.h5"]) as folder:
            path = pairs_path(folder, tar)
            pairs = read_pairs(path)
            if pairs.seal != seal:
                refuse_replaced(path, str(self.files))
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
        location = self.rows_location(teacher, tar)
        shard_file = f"{file_name(teacher)}/{tar}.h5"
        with self.files.on_disk([shard_file]) as folder:
            path = folder / shard_file
            content = self._read_sealed(path, self.rows_seal(teacher, tar))
            stop = location.offset + location.n_bytes
            if not 0 <= location.offset <= stop <= len(content):
                refuse(path, "rows", "they are not where the manifest says")
        values = np.frombuffer(content[location.offset : stop], location.dtype)
        return values.reshape(location.shape)

    def require_tar(
        self,
        tar: str,
        teachers: Iterable[str],
        needs_images: bool,
    ) -> None:
        """Verify all bytes of a tar's files: pairs and rows by their seals, and the tar itself.

        Args:
            tar: The tar's name without ``.tar``.
            teachers: Names of the teachers whose rows are verified.
            needs_images: Whether the tar itself is verified, which costs about 1 % of the time
                that decoding its pictures takes.

        Raises:
            StoreError: If a file is missing, damaged, or not the one that the manifest names.
            TarError: If the tar is missing, or not the one that its rows were made from.
        """
        pairs_file, pairs_seal = self.pairs_path(tar), self.pairs_seal(tar)
        require_intact(pairs_file, PAIRS_FORMAT, pairs_seal, str(self.files))
        for teacher in teachers:
            path, seal = self.rows_path(teacher, tar), self.rows_seal(teacher, tar)
            require_intact(path, SHARD_FORMAT, seal, str(self.files))
        if needs_images:
            tar_sha256 = read_tar_sha256(pairs_file, pairs_seal)
            require_unchanged(self.tar_path(tar), self.tar_bytes(tar), tar_sha256)

    def pick_teacher(
        self,
        modality: str,
        name: str | None,
        flag: str,
    ) -> str:
        """Return the name of a modality's teacher: the one requested, or the only one.

        Args:
            modality: ``"image"`` or ``"text"``.
            name: The teacher's name; ``None``: the only one.
            flag: The command-line option for its name, for error messages.

        Raises:
            StoreError: If there is no such teacher, or several and no name.
        """
        return pick_teacher(str(self.files), self.teachers, modality, name, flag)

    def _read_sealed(
        self,
        path: Path,
        expected_seal: str,
    ) -> bytes:
        """Read a file of rows, which must be the one that the manifest names."""
        if read_seal(path, SHARD_FORMAT) != expected_seal:
            refuse_replaced(path, str(self.files))
        content = path.read_bytes()
        sealed_bytes = memoryview(content)[BLOCK:]
        if hashlib.sha256(sealed_bytes).hexdigest() != expected_seal:
            raise damaged_error(path)
        return content
