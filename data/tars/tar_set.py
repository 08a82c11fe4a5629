"""A tar set's stored rows, and a webdataset stage that adds them to samples."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from cusa.data.errors import StoreError
from cusa.data.store.checksum import BLOCK, SHARD_FORMAT, ChecksumError, read_seal
from cusa.data.store.schema import TeacherSettings, file_name
from cusa.data.tars.manifest import read_manifest
from cusa.data.tars.pair_files import PairFile, pairs_path, read_pairs
from cusa.data.tars.pairs import TEXT_CAPTIONS, name_of_tar
from cusa.data.tars.samples import TarError

# Tars whose rows are in memory at a time.
_TARS_IN_MEMORY = 2
Sample = dict[str, Any]


@dataclass(frozen=True)
class _LoadedTar:
    """What a set holds for a tar.

    Attributes:
        pairs: The pairs.
        image_rows: The image row of each key.
        caption_rows: The first caption row of each image row, then the number of captions; int64
            ``[n_images + 1]``.
        skipped: Image rows without an embedding of a chosen teacher, or without one for a caption.
        teachers: Rows of each chosen teacher by its name, ``[n, dim]``.
    """

    pairs: PairFile
    image_rows: Mapping[str, int]
    caption_rows: np.ndarray
    skipped: frozenset[int]
    teachers: Mapping[str, np.ndarray]


class TarSet:
    """The stored pairs and rows of a set of tars.

    Args:
        folder: The folder of the set, which ``cusa-precompute --out`` made.

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
        self.manifest = read_manifest(self.folder)
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
        return f"TarSet({str(self.folder)!r}, {len(self):,} tars, {n_images:,} images)"

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
        pairs = read_pairs(pairs_path(self.folder, tar))
        expected_seal = self.manifest.pair_seals[number].tobytes()
        if bytes.fromhex(pairs.seal) != expected_seal:
            self._refuse_replaced(pairs_path(self.folder, tar))
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
                f"{self.folder} has no teacher {teacher!r}; it has: {legal_teachers}",
                path=self.folder,
                name=teacher,
            )
        stored = self.manifest.teachers[teacher]
        path = self.folder / file_name(teacher) / f"{tar}.h5"
        seal = read_seal(path, SHARD_FORMAT)
        expected_seal = stored.seals[number].tobytes()
        if bytes.fromhex(seal) != expected_seal:
            self._refuse_replaced(path)
        content = path.read_bytes()
        sealed_bytes = memoryview(content)[BLOCK:]
        if hashlib.sha256(sealed_bytes).hexdigest() != seal:
            raise ChecksumError(
                f"{path} is damaged: its checksum does not hold; move it away and run the "
                "cusa-precompute command again",
                path=path,
            )
        dim = stored.settings.dim
        dtype = np.dtype(stored.settings.dtype).newbyteorder("<")
        n_rows = self._n_rows(stored.settings.modality, number)
        offset = int(stored.offsets[number])
        rows = np.frombuffer(content, dtype, n_rows * dim, offset)
        return rows.reshape(n_rows, dim)

    def teacher_of_modality(
        self,
        modality: str,
    ) -> str | None:
        """Return the name of the teacher of a modality, ``None`` if there is none.

        Raises:
            StoreError: If there are several.
        """
        names: list[str] = []
        for name, settings in self.teachers.items():
            if settings.modality == modality:
                names.append(name)
        if len(names) > 1:
            raise StoreError(
                f"{self.folder} has several {modality} teachers: {', '.join(names)}; name one, "
                f"{modality}_teacher={names[0]!r}",
                path=self.folder,
                name=modality,
            )
        return next(iter(names), None)

    def _number(
        self,
        tar: str,
    ) -> int:
        if tar not in self._number_of_tar:
            raise StoreError(
                f"{self.folder} has no tar {tar!r}; run cusa-precompute for it, then cusa-store "
                f"index {self.folder}",
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

    def _refuse_replaced(
        self,
        path: Path,
    ) -> None:
        raise StoreError(
            f"{path} is not the file that the manifest names; run cusa-store index {self.folder} "
            "if it was made again",
            path=path,
        )


def with_teachers(
    tar_set: TarSet,
    image_teacher: str | None = None,
    text_teacher: str | None = None,
) -> Callable[[Iterable[Sample]], Iterator[Sample]]:
    """Return a webdataset stage that adds the teachers' rows to each sample, by its key.

    ``dataset.compose(with_teachers(TarSet("cc12m_teachers")))``, after the tars are opened and
    before samples are shuffled, as the rows are read tar by tar. A sample gets
    ``"image_teacher"``, ``[dim]``, and ``"text_teacher"``: ``[dim]``, or ``[n_captions, dim]`` if
    captions are a field of the ``.json`` file. Samples that the set left out, or that a teacher
    skipped, are dropped.

    Args:
        tar_set: The set.
        image_teacher: The image teacher's name; ``None``: the only one, if there is one.
        text_teacher: The text teacher's name; ``None``: the only one, if there is one.

    Raises:
        StoreError: If a teacher is to be chosen, or the set has no rows for a tar.
        TarError: If a sample is not in the set, as its tar was changed.
    """
    chosen = {
        "image": image_teacher or tar_set.teacher_of_modality("image"),
        "text": text_teacher or tar_set.teacher_of_modality("text"),
    }

    def add_rows(samples: Iterable[Sample]) -> Iterator[Sample]:
        read = lru_cache(_TARS_IN_MEMORY)(lambda tar: _read_tar(tar_set, tar, chosen))
        for sample in samples:
            url_path = PurePosixPath(urlsplit(sample["__url__"]).path)
            rows = read(name_of_tar(Path(url_path)))
            teacher_rows = _rows_of_sample(rows, sample, chosen)
            if teacher_rows is not None:
                yield {**sample, **teacher_rows}

    return add_rows


def _read_tar(
    tar_set: TarSet,
    tar: str,
    chosen: Mapping[str, str | None],
) -> _LoadedTar:
    pairs = tar_set.pairs(tar)
    first_captions = np.searchsorted(pairs.caption_image, np.arange(len(pairs.keys) + 1))
    teachers: dict[str, np.ndarray] = {}
    skipped: set[int] = set()
    for modality, teacher in chosen.items():
        if teacher is None:
            continue
        teachers[modality] = tar_set.rows(teacher, tar)
        is_skipped = np.isnan(teachers[modality][:, 0])
        skipped_rows = np.flatnonzero(is_skipped)
        if modality == "text":
            skipped_rows = pairs.caption_image[skipped_rows]
        skipped.update(skipped_rows.tolist())
    image_rows = {key: row for row, key in enumerate(pairs.keys)}
    return _LoadedTar(pairs, image_rows, first_captions, frozenset(skipped), teachers)


def _rows_of_sample(
    rows: _LoadedTar,
    sample: Sample,
    chosen: Mapping[str, str | None],
) -> Sample | None:
    """Return the teachers' rows of a sample; ``None`` if it is left out."""
    key = sample["__key__"]
    image_row = rows.image_rows.get(key)
    if image_row is None:
        if key not in dict(rows.pairs.left_out):
            raise TarError(
                f"{sample['__url__']} has a sample {key!r} that its rows were not made from; the "
                "tar has changed, so make its rows again",
                name=key,
            )
        return None
    if image_row in rows.skipped:
        return None
    teacher_rows: Sample = {}
    if chosen["image"]:
        teacher_rows["image_teacher"] = rows.teachers["image"][image_row]
    if chosen["text"]:
        start, stop = rows.caption_rows[image_row : image_row + 2].tolist()
        text_rows = rows.teachers["text"][start:stop]
        is_single = rows.pairs.caption_rule == TEXT_CAPTIONS
        teacher_rows["text_teacher"] = text_rows[0] if is_single else text_rows
    return teacher_rows
