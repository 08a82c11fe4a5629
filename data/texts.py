"""Columns of texts: the UTF-8 of all texts in one array, and where each of them begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import overload

import numpy as np

from cusa.data.array_writer import ArrayWriter

# Texts that are decoded or copied at a time.
BLOCK = 1 << 14


@dataclass(frozen=True, eq=False)
class Texts(Sequence[str]):
    """A column of texts.

    Attributes:
        bytes: uint8 ``[n_bytes]``: the UTF-8 of the texts, one after the other; there may be other
            texts before and after them.
        offsets: int64 ``[n + 1]``: the byte at which each text begins, then the byte after the
            last.
    """

    bytes: np.ndarray
    offsets: np.ndarray

    @staticmethod
    def from_strings(strings: Iterable[str]) -> Texts:
        """Encode texts as UTF-8.

        Raises:
            DataError: If the column is so long that it is written to a file, and the disk is full.
        """
        writer = TextsWriter()
        remaining = iter(strings)
        while block := list(islice(remaining, BLOCK)):
            writer.append(block)
        return writer.finish()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BLOCK):
            block = self.section(start, start + BLOCK)
            yield from block._decoded()

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        """Return the text of a row, or the texts of a slice."""
        if isinstance(row, slice):
            start, stop, step = row.indices(len(self))
            if step == 1:
                return list(self.section(start, max(start, stop)))
            return [self[number] for number in range(start, stop, step)]
        number = range(len(self))[row]
        start, stop = self.offsets[number : number + 2].tolist()
        content = self.bytes[start:stop]
        return content.tobytes().decode()

    @property
    def n_bytes(self) -> int:
        """Return the length of the texts in UTF-8."""
        return int(self.offsets[-1] - self.offsets[0])

    def section(self, start: int, stop: int) -> Texts:
        """Return the texts from one row to before another, without copying them."""
        return Texts(self.bytes, self.offsets[start : stop + 1])

    def encoded(self, rows: np.ndarray) -> list[memoryview]:
        """Return the UTF-8 of some texts, int ``[n]``, without copying it."""
        content = self.bytes.data
        starts = self.offsets[rows].tolist()
        stops = self.offsets[rows + 1].tolist()
        bounds = zip(starts, stops, strict=True)
        return [content[start:stop] for start, stop in bounds]

    def content(self) -> np.ndarray:
        """Return the UTF-8 of exactly these texts: uint8 ``[n_bytes]``."""
        start = self.offsets[0]
        stop = self.offsets[-1]
        return self.bytes[start:stop]

    def _decoded(self) -> list[str]:
        """Decode all texts at once."""
        content = self.content().tobytes()
        offsets = self.offsets - self.offsets[0]
        bounds = pairwise(offsets.tolist())
        # Of ASCII, bytes are characters, and slicing a text is faster than decoding each.
        if content.isascii():
            text = content.decode()
            return [text[start:stop] for start, stop in bounds]
        return [content[start:stop].decode() for start, stop in bounds]


class TextsWriter:
    """Collects the texts of a column; a long one goes to a temporary file."""

    def __init__(self) -> None:
        self._bytes = ArrayWriter("|u1")
        self._offsets = ArrayWriter("<i8")
        self._offsets.append([0])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def append(self, strings: Sequence[str]) -> None:
        """Append texts.

        Raises:
            DataError: If the disk is full.
        """
        text = "".join(strings)
        content = text.encode()
        lengths = list(map(len, strings))
        if len(content) != len(text):
            lengths = [len(string.encode()) for string in strings]
        self._append(content, lengths)

    def append_rows(self, texts: Texts, rows: np.ndarray) -> None:
        """Append some texts of another column: the rows int ``[n]``.

        Raises:
            DataError: If the disk is full.
        """
        encoded = texts.encoded(rows)
        self._append(b"".join(encoded), list(map(len, encoded)))

    def finish(self) -> Texts:
        """Return the column; nothing can be appended afterwards.

        Raises:
            DataError: If the disk is full.
        """
        return Texts(self._bytes.finish(), self._offsets.finish())

    def _append(self, content: bytes, lengths: Sequence[int]) -> None:
        offsets = np.cumsum(lengths, dtype=np.int64)
        offsets += len(self._bytes)
        self._bytes.append(content)
        self._offsets.append(offsets)
