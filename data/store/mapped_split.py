"""A split of a store: ids, paths and captions by row, mapped from the index on first use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, overload

import h5py
import numpy as np

from cusa.data.errors import DataError
from cusa.data.parsing import described
from cusa.data.record import Record
from cusa.data.records import TRUTH_ARRAYS, Truth
from cusa.data.store.hdf5 import ArrayLocation, array_location, child_group, text_attribute
from cusa.data.store.id_lookup import IdLookup, id_texts
from cusa.data.store.index_checks import check_caption_image, check_lengths, check_truth
from cusa.data.store.mapped_file import MappedFile
from cusa.data.store.mapped_texts import Strings, without_arrays
from cusa.data.store.row_window import RowIndex, read_rows
from cusa.data.store.split_rows import rows_of_annotations, rows_of_caption_lines

_MAX_SHOWN_IDS = 3


class Split:
    """One split of a store, as ``store.split(name)`` returns it: ids, paths, captions by row.

    ``split[3]`` is the record of image row 3: its id and path, its captions and their ids.

    Attributes:
        name: Split name.
        fingerprint: sha256 (hex) over ids, paths and captions.
        image_ids: Image ids, one per image row.
        image_paths: Image paths relative to the store's image root.
        caption_ids: Caption ids, one per caption row.
        captions: Captions as written.
        caption_image: int64 ``[n_captions]``: the image row of each caption.
        truth: Known relevance beyond the caption's own image, or ``None``.
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
        self._rows_of_image_id = IdLookup(index, group.name, "image_ids", self.image_ids)
        self._rows_of_image_path = IdLookup(index, group.name, "image_paths", self.image_paths)
        self._rows_of_caption_id = IdLookup(index, group.name, "caption_ids", self.caption_ids)
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

    def caption_rows(self, ids: Sequence[str | int]) -> np.ndarray:
        """Return the caption row of each id.

        Args:
            ids: Caption ids; whole numbers stand for their texts. An array or tensor of them will
                do.

        Returns:
            int64 ``[len(ids)]``.

        Raises:
            DataError: If the split has no caption with an id, or one is no text or whole number;
                names the first ones.
        """
        texts = id_texts(ids)
        rows = self._rows_of_caption_id.rows(texts)
        self._refuse_unknown("caption", texts, rows)
        return rows

    def image_rows(self, ids_or_paths: Sequence[str | int]) -> np.ndarray:
        """Return the image row of each id or path; ids are looked up before paths.

        Args:
            ids_or_paths: Image ids, or paths relative to the image root; a whole number is taken as
                the text of its digits.

        Returns:
            int64 ``[len(ids_or_paths)]``.

        Raises:
            DataError: If the split has no such image, or an id is no text or whole number; names
                the first ones.
        """
        texts = id_texts(ids_or_paths)
        rows = self.find_images(texts)
        self._refuse_unknown("image", texts, rows)
        return rows

    def find_images(self, ids_or_paths: Sequence[str]) -> np.ndarray:
        """Return the image rows of ``ids_or_paths``: int64 ``[n]``; -1 for unknown ones."""
        rows = self._rows_of_image_id.rows(ids_or_paths)
        unknown = np.flatnonzero(rows < 0)
        paths = [ids_or_paths[number] for number in unknown.tolist()]
        rows[unknown] = self._rows_of_image_path.rows(paths)
        return rows

    def _refuse_unknown(
        self,
        kind: str,
        texts: Sequence[str],
        rows: np.ndarray,
    ) -> None:
        unknown = np.flatnonzero(rows < 0).tolist()
        if not unknown:
            return
        shown_ids = [described(texts[number]) for number in unknown[:_MAX_SHOWN_IDS]]
        shown = ", ".join(shown_ids)
        example = self.image_ids[0]
        if kind == "caption":
            example = self.caption_ids[0]
        raise DataError(
            f"{self._index.path}: split {self.name!r} has no {kind} {shown} ({len(unknown):,} of "
            f"{len(texts):,} ids are unknown); an id looks like {described(example)}",
            path=self._index.path,
            name=texts[unknown[0]],
        )

    def rows_of(self, annotations: str | Path | Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Return the caption row of each caption of a host code base's annotations, in order.

        Images are matched by id or path, and captions by their text after the paper's normaliser.
        So the order of the annotations is kept, and annotations of other data are refused. A folder
        that all paths begin with is left out if the store's paths do not begin with it.

        Args:
            annotations: An annotation file of any form that ``--dataset`` takes, or its rows.

        Returns:
            int64 ``[n]``; an entry with several captions gives several rows.

        Raises:
            DataError: If an image or caption is not in this split; names file and entry.
            FileFormatError: If the annotations cannot be parsed.
        """
        return rows_of_annotations(self, annotations)

    def rows_of_captions(self, path: str | Path, per_image: int = 5) -> np.ndarray:
        """Return the caption row of each line of a file of captions, grouped by image.

        Host code bases such as VSE++ and SGRAF read such a file: line i belongs to image i // 5.
        The image of each block of lines is found by its captions' texts, after the paper's
        normaliser.

        Args:
            path: The file, with a caption per line.
            per_image: Number of captions of each image.

        Returns:
            int64 ``[n_lines]``.

        Raises:
            DataError: If no image of this split has a block's captions; names the line.
            FileFormatError: If the file is missing or not UTF-8.
        """
        return rows_of_caption_lines(self, Path(path), per_image)

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
            "a split is not an array; take a column, such as np.array(split.captions[:]), "
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
            StoreError: If they do not ascend from the first image to the last.
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
