"""A split of a store: ids, paths and captions by row, mapped from the index on first use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NoReturn, overload

import h5py
import numpy as np

from cusa.data.records import TRUTH_ARRAYS, Record, Truth
from cusa.data.store.hdf5 import ArrayLocation, array_location, child_group, refuse, text_attribute
from cusa.data.store.index_checks import check_caption_image, check_lengths, check_truth
from cusa.data.store.mapped_file import MappedFile
from cusa.data.store.row_window import RowIndex, read_rows


class Strings(Sequence[str]):
    """A column of texts; opening it costs the same for any number of rows."""

    def __init__(
        self,
        index: MappedFile,
        parent: h5py.Group,
        name: str,
    ) -> None:
        group = child_group(parent, name)
        self._index = index
        self._bytes = array_location(group, "bytes", "|u1")
        self._offsets = array_location(group, "offsets", "<i8")
        if self._offsets.shape[0] < 1:
            refuse(index.path, self._offsets.name, "it is empty")

    def __len__(self) -> int:
        return self._offsets.shape[0] - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice | np.ndarray | Sequence[int]) -> list[str]: ...
    def __getitem__(self, row: RowIndex) -> str | list[str]:
        """Return the text of a row, or the texts of a slice, int ``[n]``, or bool ``[n_rows]``.

        Raises:
            IndexError: If a row is out of range, or ``row`` is something else.
            StoreError: If a text is damaged.
        """
        return read_rows(self._text, row, len(self))

    def _text(self, row: int) -> str:
        # Opening a store must cost the same for any number of rows, so offsets are checked here.
        start, stop = self._byte_offsets[row : row + 2].tolist()
        if not 0 <= start <= stop <= len(self._text_bytes):
            refuse(self._index.path, self._offsets.name, f"row {row} is out of range")
        try:
            return self._text_bytes[start:stop].tobytes().decode()
        except UnicodeDecodeError:
            refuse(self._index.path, self._bytes.name, f"row {row} is no UTF-8")

    def __repr__(self) -> str:
        return f"<{len(self):,} texts: {self._bytes.name.removesuffix('/bytes')}>"

    def __getstate__(self) -> dict[str, object]:
        return without_arrays(self)

    @cached_property
    def _text_bytes(self) -> np.ndarray:
        return self._index.array(self._bytes)

    @cached_property
    def _byte_offsets(self) -> np.ndarray:
        return self._index.array(self._offsets)


def without_arrays(reader: object) -> dict[str, object]:
    """Return the attributes that go to another process: all but the maps, which are made there."""
    state = dict(vars(reader))
    # Cached properties are attributes, too, once they were asked for.
    for name, value in vars(reader).items():
        if isinstance(value, np.ndarray):
            del state[name]
    return state


class Split:
    """One split: ids, paths and captions by row.

    ``split[3]`` is the record of image row 3: its id, path, captions and their ids.

    Attributes:
        name: Split name.
        fingerprint: sha256 (hex) over ids, paths and captions.
        image_ids: Image ids, one per image row.
        image_paths: Image paths relative to the store's image root.
        caption_ids: Caption ids, one per caption row.
        captions: Captions as written.
        caption_image: int64 ``[n_captions]``: the image row of each caption.
        truth: Relevance beyond the labels, or ``None``.
    """

    def __init__(
        self,
        name: str,
        index: MappedFile,
        group: h5py.Group,
    ) -> None:
        self.name = name
        self._index = index
        self.fingerprint = text_attribute(group, "fingerprint")
        self.image_ids = Strings(index, group, "image_ids")
        self.image_paths = Strings(index, group, "image_paths")
        self.caption_ids = Strings(index, group, "caption_ids")
        self.captions = Strings(index, group, "captions")
        self._caption_image = array_location(group, "caption_image", "<i8")
        self._truth: tuple[ArrayLocation, ...] = ()
        if "truth" in group:
            truth_group = child_group(group, "truth")
            self._truth = tuple(array_location(truth_group, name, "<i8") for name in TRUTH_ARRAYS)

        check_lengths([self.n_images, len(self.image_paths)], index.path, group.name)
        caption_lengths = [self.n_captions, len(self.caption_ids), *self._caption_image.shape]
        check_lengths(caption_lengths, index.path, group.name)

    def __len__(self) -> int:
        return self.n_images

    @overload
    def __getitem__(self, image_row: int) -> Record: ...
    @overload
    def __getitem__(self, image_row: slice | np.ndarray | Sequence[int]) -> list[Record]: ...
    def __getitem__(self, image_row: RowIndex) -> Record | list[Record]:
        """Return the record of an image row, or the records of several.

        Args:
            image_row: A row, a slice, int ``[n]``, or bool ``[n_images]``.

        Raises:
            IndexError: If a row is out of range, or ``image_row`` is something else.
            StoreError: If a text is damaged.
        """
        return read_rows(self._record, image_row, self.n_images)

    def _record(self, image_row: int) -> Record:
        # The captions of an image are adjacent, in the order of the images.
        bounds = np.searchsorted(self.caption_image, (image_row, image_row + 1))
        first, last = bounds.tolist()
        return Record(
            image_id=self.image_ids[image_row],
            image_path=self.image_paths[image_row],
            captions=tuple(self.captions[first:last]),
            caption_ids=tuple(self.caption_ids[first:last]),
        )

    def __array__(self, dtype: object = None, copy: bool | None = None) -> NoReturn:
        raise TypeError(
            "a split is no array; take one of its columns, such as np.array(split.captions[:]), "
            "or a teacher's rows: np.asarray(store.embeddings(teacher, split))"
        )

    def __repr__(self) -> str:
        return f"<Split {self.name!r}: {self.n_images:,} images, {self.n_captions:,} captions>"

    def __getstate__(self) -> dict[str, object]:
        return without_arrays(self)

    @property
    def n_images(self) -> int:
        """Return the number of image rows."""
        return len(self.image_ids)

    @property
    def n_captions(self) -> int:
        """Return the number of caption rows."""
        return len(self.captions)

    @cached_property
    def caption_image(self) -> np.ndarray:
        """Return the image row of each caption: int64 ``[n_captions]``, ascending.

        Raises:
            StoreError: If the index holds other numbers.
        """
        rows = self._index.array(self._caption_image)
        check_caption_image(rows, self.n_images, self._index.path, f"splits/{self.name}")
        return rows

    @property
    def truth(self) -> Truth | None:
        """Return known relevance, or ``None``.

        Raises:
            StoreError: If it does not fit the split.
        """
        if not self._truth:
            return None
        truth = Truth(*(self._index.array(location) for location in self._truth))
        check_truth(
            truth,
            self.n_images,
            self.n_captions,
            self._index.path,
            f"splits/{self.name}",
        )
        return truth
