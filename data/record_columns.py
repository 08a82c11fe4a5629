"""The records of a split, as columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from operator import attrgetter, eq
from typing import overload

import numpy as np

from cusa.data.array_writer import ArrayWriter
from cusa.data.record import Record, require_legal
from cusa.data.texts import BLOCK, Texts, TextsWriter

# Marks the end of a record where records are hashed, as no text is that long.
_RECORD_END = b"\xff" * 8


@dataclass(frozen=True, eq=False, repr=False)
class Records(Sequence[Record]):
    """The records of a split, as columns.

    A record is made when it is asked for; ``records[:10]`` has the columns of ten. Long columns lie
    in temporary files (:mod:`cusa.data.array_writer`), so that memory hardly grows with the split.

    Attributes:
        image_ids: Image ids, one per image row.
        image_paths: Image paths relative to the image root.
        caption_ids: Caption ids, one per caption row.
        captions: Captions as written.
        caption_image: int64 ``[n_captions]``, ascending: the image row of each caption.
        positions: int64 ``[n_captions]``, as in :class:`Record`; ``[0]`` if they are not known.
    """

    image_ids: Texts
    image_paths: Texts
    caption_ids: Texts
    captions: Texts
    caption_image: np.ndarray
    positions: np.ndarray

    @staticmethod
    def from_records(records: Iterable[Record]) -> Records:
        """Return records as columns.

        Raises:
            DataError: As of :meth:`RecordsWriter.append`.
        """
        if isinstance(records, Records):
            return records
        writer = RecordsWriter()
        remaining = iter(records)
        while block := list(islice(remaining, BLOCK)):
            writer.append(block)
        return writer.finish()

    @property
    def n_captions(self) -> int:
        """Return the number of caption rows."""
        return len(self.captions)

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256 (hex) over ids, paths and captions in row order.

        Two splits have the same fingerprint only if all of their rows are the same.
        """
        digest = hashlib.sha256()
        for start in range(0, len(self), BLOCK):
            block = self[start : start + BLOCK]
            digest.update(b"".join(block._hashed()))
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.image_ids)

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), BLOCK):
            block = self[start : start + BLOCK]
            yield from block._records()

    @overload
    def __getitem__(self, image_row: int) -> Record: ...
    @overload
    def __getitem__(self, image_row: slice) -> Records: ...
    def __getitem__(self, image_row: int | slice) -> Record | Records:
        """Return the record of an image row, or the records of a slice."""
        if not isinstance(image_row, slice):
            row = range(len(self))[image_row]
            section = self._section(row, row + 1)
            return next(section._records())
        start, stop, step = image_row.indices(len(self))
        if step == 1:
            return self._section(start, max(start, stop))
        return self.take(np.arange(start, stop, step))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self):,} records with {self.n_captions:,} captions>"

    def first_captions(self, image_rows: np.ndarray) -> np.ndarray:
        """Return the first caption row of some images, ``[n]``; of ``len(self)``, the end."""
        return np.searchsorted(self.caption_image, image_rows)

    def take(
        self,
        image_rows: np.ndarray,
        begins_image: np.ndarray | None = None,
    ) -> Records:
        """Return the records of some image rows, in a new order.

        Args:
            image_rows: int64 ``[n]``.
            begins_image: bool ``[n]``, the first one true: false where the captions of a row join
                those of the image before it. ``None``: nowhere.

        Raises:
            DataError: If the disk is full.
        """
        if begins_image is None:
            begins_image = np.ones(len(image_rows), bool)
        writer = RecordsWriter()
        for start in range(0, len(image_rows), BLOCK):
            block = slice(start, start + BLOCK)
            writer.append_rows(self, image_rows[block], begins_image[block])
        return writer.finish()

    def _section(self, start: int, stop: int) -> Records:
        """Return the records from one image row to before another."""
        bounds = self.first_captions(np.asarray([start, stop]))
        first, last = bounds.tolist()
        return Records(
            image_ids=self.image_ids.section(start, stop),
            image_paths=self.image_paths.section(start, stop),
            caption_ids=self.caption_ids.section(first, last),
            captions=self.captions.section(first, last),
            caption_image=self.caption_image[first:last] - start,
            positions=self.positions[first:last],
        )

    def _caption_counts(self) -> list[int]:
        counts = np.bincount(self.caption_image, minlength=len(self))
        return counts.tolist()

    def _records(self) -> Iterator[Record]:
        """Yield all records; for a section, as all texts are decoded at once."""
        captions = iter(self.captions)
        caption_ids = iter(self.caption_ids)
        positions = iter(self.positions.tolist())
        counts = self._caption_counts()
        images = zip(self.image_ids, self.image_paths, counts, strict=True)
        for image_id, image_path, count in images:
            yield Record(
                image_id,
                image_path,
                captions=tuple(islice(captions, count)),
                caption_ids=tuple(islice(caption_ids, count)),
                positions=tuple(islice(positions, count)),
            )

    def _hashed(self) -> Iterator[bytes | memoryview]:
        """Yield what the fingerprint is computed from, text by text; for a section, as before."""
        images = zip(
            _hashed_texts(self.image_ids),
            _hashed_texts(self.image_paths),
            self._caption_counts(),
            strict=True,
        )
        captions = zip(
            _hashed_texts(self.caption_ids),
            _hashed_texts(self.captions),
            strict=True,
        )
        for image_id, image_path, count in images:
            yield from image_id
            yield from image_path
            for caption_id, caption in islice(captions, count):
                yield from caption_id
                yield from caption
            yield _RECORD_END


def _hashed_texts(texts: Texts) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the length of each text, as 8 bytes, and its UTF-8."""
    for text in texts.encoded(np.arange(len(texts))):
        yield len(text).to_bytes(8, "little"), text


class RecordsWriter:
    """Collects records as columns.

    Attributes:
        image_ids: As in :class:`Records`; so are the others.
    """

    def __init__(self) -> None:
        self.image_ids = TextsWriter()
        self.image_paths = TextsWriter()
        self.caption_ids = TextsWriter()
        self.captions = TextsWriter()
        self.caption_image = ArrayWriter("<i8")
        self.positions = ArrayWriter("<i8")

    def append(self, records: Sequence[Record]) -> None:
        """Append records.

        Raises:
            DataError: If a record has more or fewer caption ids than captions, or a text that is no
                Unicode; or the disk is full.
        """
        for record in records:
            require_legal(record)
        counts = [len(record.captions) for record in records]
        n_before = len(self.image_ids)
        image_rows = np.arange(n_before, n_before + len(records))
        self.caption_image.append(np.repeat(image_rows, counts))
        self.image_ids.append([record.image_id for record in records])
        self.image_paths.append([record.image_path for record in records])
        self.caption_ids.append(_joined(records, "caption_ids"))
        self.captions.append(_joined(records, "captions"))
        self.positions.append(_joined(records, "positions"))

    def append_rows(
        self,
        records: Records,
        image_rows: np.ndarray,
        begins_image: np.ndarray,
    ) -> None:
        """Append records of other columns; the arguments are as for :meth:`Records.take`."""
        new_rows = np.cumsum(begins_image) - 1
        new_rows += len(self.image_ids)
        first_rows = image_rows[begins_image]
        self.image_ids.append_rows(records.image_ids, first_rows)
        self.image_paths.append_rows(records.image_paths, first_rows)

        firsts = records.first_captions(image_rows)
        stops = records.first_captions(image_rows + 1)
        counts = stops - firsts
        self.caption_image.append(np.repeat(new_rows, counts))
        # The captions of each row are consecutive.
        n_before = np.cumsum(counts) - counts
        caption_rows = np.arange(counts.sum())
        caption_rows += np.repeat(firsts - n_before, counts)
        self.caption_ids.append_rows(records.caption_ids, caption_rows)
        self.captions.append_rows(records.captions, caption_rows)
        if len(records.positions):
            self.positions.append(records.positions[caption_rows])

    def finish(self) -> Records:
        """Return the records; nothing can be appended afterwards.

        Raises:
            DataError: If the disk is full.
        """
        positions = self.positions.finish()
        captions = self.captions.finish()
        # Records that users make have none, or some have none.
        if len(positions) != len(captions):
            positions = positions[:0]
        return Records(
            image_ids=self.image_ids.finish(),
            image_paths=self.image_paths.finish(),
            caption_ids=self.caption_ids.finish(),
            captions=captions,
            caption_image=self.caption_image.finish(),
            positions=positions,
        )


def _joined(records: Sequence[Record], attribute: str) -> list:
    """Return an attribute of all captions of some records."""
    by_record = map(attrgetter(attribute), records)
    return list(chain.from_iterable(by_record))
