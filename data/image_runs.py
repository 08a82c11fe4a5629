"""Runs of annotation rows of the same image, as they are read from files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from cusa.data.array_writer import ArrayWriter
from cusa.data.readers.forms import AnnotationRow
from cusa.data.record_columns import Records, RecordsWriter
from cusa.data.records import SPLITS
from cusa.data.repeated_texts import text_hashes
from cusa.data.texts import BLOCK


@dataclass(frozen=True)
class ImageRuns:
    """Runs of consecutive rows of the same image, in the order of the files.

    Attributes:
        records: A record for each run; caption ids are empty where captions are to be numbered.
        hashes: int64 ``[n_runs]``, of the image ids.
        splits: uint8 ``[n_runs]``, each run's place in :data:`SPLITS`.
        positions: int64 ``[n_runs]``, position of the first row.
        have_caption_ids: Whether there are captions with an id.
        lack_caption_ids: Whether there are captions without an id.
        lack_captions: Whether there are rows without a caption.
    """

    records: Records
    hashes: np.ndarray
    splits: np.ndarray
    positions: np.ndarray
    have_caption_ids: bool
    lack_caption_ids: bool
    lack_captions: bool

    def before(self, run: int) -> ImageRuns:
        """Return the runs before one."""
        return replace(
            self,
            records=self.records[:run],
            hashes=self.hashes[:run],
            splits=self.splits[:run],
            positions=self.positions[:run],
        )


@dataclass(slots=True)
class _Block:
    """Rows that are not written to the columns yet, as :class:`ImageRuns` has them."""

    image_ids: list[str] = field(default_factory=list)
    image_paths: list[str] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)
    run_positions: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    caption_ids: list[str] = field(default_factory=list)
    caption_runs: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)


class RunsWriter:
    """Collects the runs of an image as rows are read."""

    def __init__(self) -> None:
        self._records = RecordsWriter()
        self._hashes = ArrayWriter("<i8")
        self._splits = ArrayWriter("|u1")
        self._positions = ArrayWriter("<i8")
        self._block = _Block()
        self._last_image = ("", "", "")
        self._n_runs = 0
        self._lack_captions = False
        self._has_ids: set[bool] = set()

    def append(self, position: int, row: AnnotationRow) -> None:
        """Append a row."""
        block = self._block
        image = (row.image_id, row.image_path, row.split)
        if image != self._last_image:
            if len(block.captions) + len(block.image_ids) >= BLOCK:
                self._flush()
                block = self._block
            self._last_image = image
            self._n_runs += 1
            block.image_ids.append(row.image_id)
            block.image_paths.append(row.image_path)
            block.splits.append(SPLITS.index(row.split))
            block.run_positions.append(position)

        n_captions = len(row.captions)
        block.captions += row.captions
        block.caption_ids += row.caption_ids or [""] * n_captions
        block.caption_runs += [self._n_runs - 1] * n_captions
        block.positions += [position] * n_captions
        self._lack_captions |= not n_captions
        self._has_ids.add(bool(row.caption_ids))

    def finish(self) -> ImageRuns:
        """Return the runs."""
        self._flush()
        return ImageRuns(
            records=self._records.finish(),
            hashes=self._hashes.finish(),
            splits=self._splits.finish(),
            positions=self._positions.finish(),
            have_caption_ids=True in self._has_ids,
            lack_caption_ids=False in self._has_ids,
            lack_captions=self._lack_captions,
        )

    def _flush(self) -> None:
        block = self._block
        self._block = _Block()
        self._hashes.append(text_hashes(block.image_ids))
        self._splits.append(block.splits)
        self._positions.append(block.run_positions)
        self._records.image_ids.append(block.image_ids)
        self._records.image_paths.append(block.image_paths)
        self._records.captions.append(block.captions)
        self._records.caption_ids.append(block.caption_ids)
        self._records.caption_image.append(block.caption_runs)
        self._records.positions.append(block.positions)
