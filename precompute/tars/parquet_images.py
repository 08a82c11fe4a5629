"""The images of Parquet files, decoded a few rows at a time."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

from cusa.data.errors import first_line
from cusa.data.tars.pairs import TarPairs
from cusa.data.tars.parquet_columns import image_bytes, image_column, open_parquet
from cusa.data.tars.samples import TarError, state_of_file
from cusa.data.tars.units import is_parquet
from cusa.precompute.tars.images import MOST_OPEN, TarImages

_ROWS_PER_BATCH = 64


def images_of(pairs: Sequence[TarPairs]) -> TarImages:
    """Return the images of tars or, if their captions are a column, of Parquet files."""
    if is_parquet(pairs[0].caption_rule):
        return ParquetImages(pairs)
    return TarImages(pairs)


class ParquetImages(TarImages):
    """The images of some Parquet files; a split of the data set is a file.

    Args:
        pairs: The pairs of each file.
    """

    def __init__(
        self,
        pairs: Sequence[TarPairs],
    ) -> None:
        super().__init__(pairs)
        self._opened_rows = lru_cache(MOST_OPEN)(_RowReader)

    def read(
        self,
        split: str,
        row: int,
    ) -> bytes:
        """Read the bytes of an image.

        Raises:
            TarError: If the file cannot be read, or was changed since its pairs were read.
        """
        tar_pairs = self._pairs_of_tar[split]
        file_row = int(self.path(split, row).name)
        try:
            reader = self._opened_rows(tar_pairs.path)
            tar_pairs.require_unchanged(reader.state)
            return reader.read(file_row)
        except TarError:
            raise
        except Exception as error:  # pyarrow raises many things on damaged files
            message = f"{tar_pairs.path} cannot be read ({first_line(error)}); check the disk"
            raise TarError(message, path=tar_pairs.path, name=tar_pairs.name) from None


class _RowReader:
    """Reads images by their row: at best ascending, as others begin at their row group again.

    Args:
        path: The Parquet file.
    """

    def __init__(
        self,
        path: Path,
    ) -> None:
        self.state = state_of_file(path)
        self._file = open_parquet(path)
        self._column = image_column(self._file, path)
        metadata = self._file.metadata
        groups = map(metadata.row_group, range(metadata.num_row_groups))
        self._group_starts = [0, *accumulate(group.num_rows for group in groups)]
        self._group = -1
        self._batches: Iterator[Any] = iter(())
        # Images in memory, and the row of the first of them.
        self._cells: Sequence[Any] = ()
        self._first_row = 0
        # Threads may read the same file.
        self._lock = Lock()

    def read(
        self,
        row: int,
    ) -> bytes:
        """Read the image of a row."""
        group = bisect(self._group_starts, row) - 1
        with self._lock:
            if group != self._group or row < self._first_row:
                self._begin(group)
            while row >= self._first_row + len(self._cells):
                self._first_row += len(self._cells)
                self._cells = next(self._batches).column(self._column).to_pylist()
            content = image_bytes(self._cells[row - self._first_row])
        assert content is not None, "rows without images are no pairs"
        return content

    def _begin(
        self,
        group: int,
    ) -> None:
        """Begin to read a row group."""
        self._batches = self._file.iter_batches(
            _ROWS_PER_BATCH,
            row_groups=[group],
            columns=[self._column],
            use_threads=False,
        )
        self._group = group
        self._cells = ()
        self._first_row = self._group_starts[group]
