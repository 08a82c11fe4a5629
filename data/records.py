"""Images with their captions, in splits, under stable ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np

from cusa.data.errors import DataError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Record:
    """An image with the captions that were written for it.

    Attributes:
        image_id: Stable id of the image, unique within the data set.
        image_path: Path of the image file relative to the data set's image root, with "/" as
            separator.
        captions: The captions as written, before any normalisation.
        caption_ids: Stable id of each caption, unique within the data set; same length as
            ``captions``.
        positions: Each caption's place in the annotation files (:func:`entry_location`); empty if
            the data set was not read from files.
    """

    image_id: str
    image_path: str
    captions: tuple[str, ...]
    caption_ids: tuple[str, ...]
    positions: tuple[int, ...] = field(default=(), compare=False, repr=False)


Records = tuple[Record, ...]


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


@dataclass(frozen=True, repr=False)
class Dataset:
    """Splits of image-caption records under one image root.

    Attributes:
        name: Name of the data set, e.g. ``"coco"``.
        image_root: Folder that the records' image paths are relative to.
        splits: Records per split name.
        truth: Known relevance per split name, where the data set has it.
        notes: Things its user should know, such as an unexpected number of images.
        files: The annotation files that the records' positions refer to.
    """

    name: str
    image_root: Path
    splits: Mapping[str, Records]
    truth: Mapping[str, Truth] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    files: tuple[AnnotationFile, ...] = ()

    def __repr__(self) -> str:
        sizes = [
            f"{split_name}: {len(records):,} images" for split_name, records in self.splits.items()
        ]
        return f"Dataset({self.name!r}, {str(self.image_root)!r}, {', '.join(sizes)})"

    def location_of(self, record: Record, number: int) -> tuple[Path, str] | None:
        """Return the annotation file and the entry of a record's caption.

        Args:
            record: The record.
            number: Number of the caption within the record, from 0.

        Returns:
            ``None`` if the data set was not read from files.
        """
        if not record.positions or not self.files:
            return None
        return entry_location(self.files, record.positions[number])

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


def truth_of_images(truth: Truth, records: Sequence[Record], image_rows: np.ndarray) -> Truth:
    """Restrict the known relevance of a split to some of its images and their captions.

    Args:
        truth: The relevance of the whole split.
        records: The records of the whole split.
        image_rows: int64 ``[n]``, ascending: the image rows to keep.
    """
    new_rows = np.full(len(records), -1, np.int64)
    new_rows[image_rows] = np.arange(len(image_rows))
    relevant: list[np.ndarray] = []
    for caption, image_row in enumerate(caption_rows(records).tolist()):
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


def caption_rows(records: Sequence[Record]) -> np.ndarray:
    """Return the image row of each caption of a split: int64 ``[n_captions]``, in record order."""
    image_rows = np.arange(len(records), dtype=np.int64)
    n_captions = [len(record.captions) for record in records]
    return np.repeat(image_rows, n_captions)


def iter_captions(records: Sequence[Record]) -> Iterator[str]:
    """Yield every caption of a split in row order."""
    for record in records:
        yield from record.captions


def text_columns(records: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """Return the texts of a split: ids and paths by image row, ids and captions by caption row."""
    return {
        "image_ids": tuple(record.image_id for record in records),
        "image_paths": tuple(record.image_path for record in records),
        "caption_ids": tuple(chain.from_iterable(record.caption_ids for record in records)),
        "captions": tuple(iter_captions(records)),
    }


def fingerprint(records: Sequence[Record]) -> str:
    """Compute the sha256 (hex) over ids, paths and captions in row order.

    Two splits have the same fingerprint only if all of their rows are the same.
    """
    digest = hashlib.sha256()
    for record in records:
        texts = [record.image_id, record.image_path]
        for caption_id, caption in zip(record.caption_ids, record.captions, strict=True):
            texts.extend((caption_id, caption))
        for text in texts:
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        # Marks the end of a record, as no text is that long.
        digest.update(b"\xff" * 8)
    return digest.hexdigest()


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
