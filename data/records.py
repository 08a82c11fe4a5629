"""Data sets: splits of images with their captions, under stable ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from cusa.data.errors import DataError
from cusa.data.record import Record
from cusa.data.record_columns import Records

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class AnnotationFile:
    """An annotation file that records were read from.

    Attributes:
        path: The file.
        location_format: Format of an entry's location, given its number, such as ``"line {}"``.
    """

    path: Path
    location_format: str


# Bits of an entry's number within its file. The file's number takes the bits above them: a position
# is one int, and records stay small.
_NUMBER_BITS = 40


def entry_position(file_number: int, number: int) -> int:
    """Encode the number of a file in the data set, and of an entry in that file, as one int."""
    return file_number << _NUMBER_BITS | number


def entry_location(files: Sequence[AnnotationFile], position: int) -> tuple[Path, str]:
    """Decode a position into the file and the entry: ``(pairs.csv, "line 3")``."""
    file = files[position >> _NUMBER_BITS]
    number = position & (1 << _NUMBER_BITS) - 1
    return file.path, file.location_format.format(number)


@dataclass(frozen=True)
class Truth:
    """Known relevance beyond "this caption was written for this image".

    Attributes:
        image_labels: int64 ``[n_images]``; images with equal labels are relevant to each other.
        indptr: int64 ``[n_captions + 1]``; caption ``c`` is true of the images
            ``indices[indptr[c]:indptr[c + 1]]``.
        indices: int64 ``[n_relevant]``: image rows of the split, ascending within a caption.
    """

    image_labels: np.ndarray
    indptr: np.ndarray
    indices: np.ndarray


TRUTH_ARRAYS = tuple(array_field.name for array_field in fields(Truth))


@dataclass(frozen=True, repr=False, init=False)
class Dataset:
    """Splits of image-caption records under one image root.

    Args:
        name: Name of the data set, e.g. ``"coco"``.
        image_root: Folder that the records' image paths are relative to.
        splits: Records per split name.
        truth: Known relevance per split name, where the data set has it.
        notes: Things its user should know, such as an unexpected number of images.
        files: The annotation files that the records' positions refer to.

    Attributes:
        name: As given; so are the others.
        splits: Records per split name, as columns.

    Raises:
        DataError: If a record has more or fewer caption ids than captions, or a text that is no
            Unicode; or the disk is full.
    """

    name: str
    image_root: Path
    splits: Mapping[str, Records]
    truth: Mapping[str, Truth]
    notes: tuple[str, ...]
    files: tuple[AnnotationFile, ...]

    def __init__(
        self,
        name: str,
        image_root: Path,
        splits: Mapping[str, Sequence[Record]],
        truth: Mapping[str, Truth] | None = None,
        notes: tuple[str, ...] = (),
        files: tuple[AnnotationFile, ...] = (),
    ) -> None:
        columns: dict[str, Records] = {}
        for split_name, records in splits.items():
            columns[split_name] = Records.from_records(records)
        attributes = {
            "name": name,
            "image_root": image_root,
            "splits": columns,
            "truth": truth or {},
            "notes": notes,
            "files": files,
        }
        # The attributes are frozen for everyone else.
        vars(self).update(attributes)

    def __repr__(self) -> str:
        sizes = [
            f"{split_name}: {len(records):,} images" for split_name, records in self.splits.items()
        ]
        return f"Dataset({self.name!r}, {str(self.image_root)!r}, {', '.join(sizes)})"

    def location_of(self, split_name: str, caption_row: int) -> tuple[Path, str] | None:
        """Return the annotation file and the entry of a caption.

        Args:
            split_name: The split.
            caption_row: The caption's row.

        Returns:
            ``None`` if the data set was not read from files.
        """
        positions = self.splits[split_name].positions
        if not len(positions) or not self.files:
            return None
        return entry_location(self.files, int(positions[caption_row]))

    def limited(self, limit: int) -> Dataset:
        """Return the first ``limit`` images of every split with their captions and relevance."""
        splits = {}
        truth = {}
        for split_name, records in self.splits.items():
            splits[split_name] = records[:limit]
            if split_name in self.truth:
                image_rows = np.arange(len(splits[split_name]))
                whole_truth = self.truth[split_name]
                truth[split_name] = truth_of_images(whole_truth, records, image_rows)
        return replace(self, splits=splits, truth=truth)

    def select(self, names: Sequence[str]) -> Dataset:
        """Return the data set with only the named splits.

        Args:
            names: Names of splits.

        Raises:
            DataError: If a name is not a split of this data set.
        """
        for split_name in names:
            if split_name not in self.splits:
                legal_splits = ", ".join(self.splits)
                raise DataError(
                    f"data set {self.name!r} has no split {split_name!r}; it has: {legal_splits}",
                    name=split_name,
                )
        splits = {}
        truth = {}
        for split_name in names:
            splits[split_name] = self.splits[split_name]
            if split_name in self.truth:
                truth[split_name] = self.truth[split_name]
        return replace(self, splits=splits, truth=truth)


def truth_of_images(truth: Truth, records: Records, image_rows: np.ndarray) -> Truth:
    """Restrict the known relevance of a split to some of its images and their captions.

    Args:
        truth: The relevance of the whole split.
        records: The records of the whole split.
        image_rows: int64 ``[n]``, ascending: the image rows to keep.
    """
    new_rows = np.full(len(records), -1, np.int64)
    new_rows[image_rows] = np.arange(len(image_rows))
    relevant: list[np.ndarray] = []
    for caption, image_row in enumerate(records.caption_image.tolist()):
        if new_rows[image_row] < 0:
            continue
        start, stop = truth.indptr[caption : caption + 2]
        images = new_rows[truth.indices[start:stop]]
        relevant.append(images[images >= 0])
    return Truth(truth.image_labels[image_rows], *csr(relevant))


def csr(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate rows of different lengths, as in a sparse matrix (CSR).

    Args:
        rows: Integers, ``[n_r]`` for row ``r``.

    Returns:
        ``indptr`` int64 ``[len(rows) + 1]`` and ``indices`` int64: row ``r`` is
        ``indices[indptr[r]:indptr[r + 1]]``.
    """
    indptr = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=indptr[1:])
    indices = np.concatenate([np.zeros(0, np.int64), *rows])
    return indptr, indices.astype(np.int64)


class SplitView(Protocol):
    """A split as evaluations see it.

    It is a :class:`cusa.data.store.mapped_split.Split` or a
    :class:`cusa.data.record_split.RecordSplit`.
    """

    @property
    def name(self) -> str:
        """Return the split's name."""

    @property
    def fingerprint(self) -> str:
        """Return the sha256 (hex) over ids, paths and captions."""

    @property
    def image_ids(self) -> Sequence[str]:
        """Return the id of each image row."""

    @property
    def image_paths(self) -> Sequence[str]:
        """Return the path of each image row, relative to the image root."""

    @property
    def caption_ids(self) -> Sequence[str]:
        """Return the id of each caption row."""

    @property
    def captions(self) -> Sequence[str]:
        """Return the caption of each caption row, as written."""

    @property
    def caption_image(self) -> np.ndarray:
        """Return the image row of each caption: int64 ``[n_captions]``."""

    @property
    def truth(self) -> Truth | None:
        """Return known relevance beyond the caption's own image, or ``None``."""

    @property
    def n_images(self) -> int:
        """Return the number of image rows."""

    @property
    def n_captions(self) -> int:
        """Return the number of caption rows."""
