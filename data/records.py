"""What a pair is: images with their captions, in splits, under stable ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from cusa.data.errors import DataError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Record:
    """One image and the captions that were written for it.

    Attributes:
        image_id: Stable id of the image, unique within the data set.
        image_path: Path of the image file relative to the data set's image root, with "/" as separator.
        captions: The captions as written, before any normalisation.
        caption_ids: Stable id of each caption, unique within the data set; same length as ``captions``.
        positions: Where each caption stands in the annotation files (:func:`entry_location`), or
            nothing.
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
        place: How its entries are called: ``"line {}"`` takes an entry's number.
    """

    path: Path
    place: str


_NUMBER_BITS = (
    40  # of an entry's number within its file: one int holds both, and a record little more
)


def entry_position(file_number: int, number: int) -> int:
    """The position of an entry: which of the data set's files, and which entry of it."""
    return file_number << _NUMBER_BITS | number


def entry_location(files: Sequence[AnnotationFile], position: int) -> tuple[Path, str]:
    """The file and the place in it that a position stands for: ``(pairs.csv, "line 3")``."""
    file = files[position >> _NUMBER_BITS]
    return file.path, file.place.format(position & (1 << _NUMBER_BITS) - 1)


@dataclass(frozen=True)
class Truth:
    """Relevance that is known beyond "this caption was written for this image".

    Attributes:
        image_labels: int64 ``[n_images]``; images with equal labels are relevant to each other.
        indptr: int64 ``[n_captions + 1]``; caption ``c`` is true of the images ``indices[indptr[c]:indptr[c + 1]]``.
        indices: int64 image rows of the split, ascending within a caption.
    """

    image_labels: np.ndarray
    indptr: np.ndarray
    indices: np.ndarray


@dataclass(frozen=True, repr=False)
class Dataset:
    """Splits of image-caption records under one image root.

    Attributes:
        name: Name of the data set, e.g. ``"coco"``.
        image_root: Folder that the records' image paths are relative to.
        splits: Records per split name.
        truth: Known relevance per split name, where the data set has it.
        notes: Things its user should know, such as an unexpected number of images.
        files: The annotation files that the records' positions are in.
    """

    name: str
    image_root: Path
    splits: Mapping[str, Records]
    truth: Mapping[str, Truth] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    files: tuple[AnnotationFile, ...] = ()

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{name}: {len(records):,} images" for name, records in self.splits.items()
        )
        return f"Dataset({self.name!r}, {str(self.image_root)!r}, {sizes})"

    def location_of(self, record: Record, number: int) -> tuple[Path, str] | None:
        """The annotation file and the place in it of a record's caption of that number.

        ``None`` where the data set was not read from files.
        """
        if not (record.positions and self.files):
            return None
        return entry_location(self.files, record.positions[number])

    def limited(self, limit: int) -> Dataset:
        """The first ``limit`` images of every split with their captions; known relevance is cut to them."""
        splits = {name: records[:limit] for name, records in self.splits.items()}
        truth = {}
        for name, whole_truth in self.truth.items():
            truth[name] = truth_of_images(
                whole_truth, self.splits[name], np.arange(len(splits[name]))
            )
        return replace(self, splits=splits, truth=truth)

    def select(self, names: Sequence[str]) -> Dataset:
        """The named splits only.

        Raises:
            DataError: If a name is not a split of this data set.
        """
        for name in names:
            if name not in self.splits:
                raise DataError(
                    f"data set {self.name!r} has no split {name!r}; it has: {', '.join(self.splits)}",
                    name=name,
                )
        return replace(
            self,
            splits={n: self.splits[n] for n in names},
            truth={n: t for n, t in self.truth.items() if n in names},
        )


def truth_of_images(truth: Truth, records: Sequence[Record], image_rows: np.ndarray) -> Truth:
    """The known relevance of some images of a split among each other.

    Args:
        truth: That of the whole split.
        records: The records of the whole split.
        image_rows: int64, ascending: the images.
    """
    new_rows = np.full(len(records), -1, np.int64)
    new_rows[image_rows] = np.arange(len(image_rows))
    relevant: list[np.ndarray] = []
    for caption, image_row in enumerate(caption_rows(records).tolist()):
        if new_rows[image_row] >= 0:
            images = new_rows[truth.indices[truth.indptr[caption] : truth.indptr[caption + 1]]]
            relevant.append(images[images >= 0])
    return Truth(truth.image_labels[image_rows], *csr(relevant))


def csr(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different lengths as (indptr int64 ``[len(rows) + 1]``, indices int64)."""
    indptr = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(r) for r in rows], out=indptr[1:])
    indices = np.concatenate(rows) if rows else np.zeros(0)
    return indptr, indices.astype(np.int64)


def caption_rows(records: Sequence[Record]) -> np.ndarray:
    """int64 ``[n_captions]``: the image row that each caption of a split belongs to, captions in record order."""
    return np.repeat(np.arange(len(records), dtype=np.int64), [len(r.captions) for r in records])


def iter_captions(records: Sequence[Record]) -> Iterator[str]:
    """Every caption of a split in row order."""
    for record in records:
        yield from record.captions


def fingerprint(records: Sequence[Record]) -> str:
    """sha256 (hex) over ids, paths and captions in order: equal only if every row means the same."""
    digest = hashlib.sha256()
    for r in records:
        for part in (
            r.image_id,
            r.image_path,
            *(x for pair in zip(r.caption_ids, r.captions, strict=True) for x in pair),
        ):
            raw = part.encode()
            digest.update(len(raw).to_bytes(8, "little") + raw)
        digest.update(b"\xff" * 8)  # ends a record: no length is that large
    return digest.hexdigest()


class SplitView(Protocol):
    """What an evaluation asks of a split: :class:`cusa.data.store.reader.Split`, or :class:`RecordSplit`."""

    @property
    def name(self) -> str:
        """Split name."""

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over ids, paths and captions."""

    @property
    def image_ids(self) -> Sequence[str]:
        """One per image row."""

    @property
    def image_paths(self) -> Sequence[str]:
        """Same, relative to the image root."""

    @property
    def caption_ids(self) -> Sequence[str]:
        """One per caption row."""

    @property
    def captions(self) -> Sequence[str]:
        """Same, as written."""

    @property
    def caption_image(self) -> np.ndarray:
        """int64 ``[n_captions]``: the image row of each caption."""

    @property
    def truth(self) -> Truth | None:
        """Relevance beyond the labels, where it is known."""

    @property
    def n_images(self) -> int:
        """Number of image rows."""

    @property
    def n_captions(self) -> int:
        """Number of caption rows."""


@dataclass(frozen=True)
class RecordSplit:
    """A split of a data set by row, as an annotation file has it, without a store.

    Attributes:
        name: Split name.
        fingerprint: sha256 (hex) over ids, paths and captions.
        image_ids: Image ids, one per image row.
        image_paths: Image paths relative to the image root.
        caption_ids: Caption ids, one per caption row.
        captions: Captions as written.
        caption_image: int64 ``[n_captions]``: the image row of each caption.
        truth: Relevance beyond the labels, or ``None``.
    """

    name: str
    fingerprint: str
    image_ids: tuple[str, ...]
    image_paths: tuple[str, ...]
    caption_ids: tuple[str, ...]
    captions: tuple[str, ...]
    caption_image: np.ndarray
    truth: Truth | None

    @staticmethod
    def of(dataset: Dataset, name: str) -> RecordSplit:
        """A split of a data set.

        Raises:
            DataError: If it has no such split.
        """
        records = dataset.select([name]).splits[name]
        return RecordSplit(
            name=name,
            fingerprint=fingerprint(records),
            image_ids=tuple(r.image_id for r in records),
            image_paths=tuple(r.image_path for r in records),
            caption_ids=tuple(c for r in records for c in r.caption_ids),
            captions=tuple(iter_captions(records)),
            caption_image=caption_rows(records),
            truth=dataset.truth.get(name),
        )

    @property
    def n_images(self) -> int:
        """Number of image rows."""
        return len(self.image_ids)

    @property
    def n_captions(self) -> int:
        """Number of caption rows."""
        return len(self.captions)
