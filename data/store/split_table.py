"""A split as it is stored in an index: ids, paths and captions in columns of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from cusa.data.record_columns import Records
from cusa.data.records import TRUTH_ARRAYS, Truth
from cusa.data.store.hdf5 import (
    array_location,
    child_group,
    hdf5_errors,
    read_array,
    refuse,
    text_attribute,
)
from cusa.data.store.id_lookup import LOOKUP_COLUMNS, lookup_table
from cusa.data.store.index_checks import check_caption_image, check_lengths, check_truth
from cusa.data.texts import BLOCK, Texts

COLUMNS = ("image_ids", "image_paths", "caption_ids", "captions")
# In UTF-8, the top two bits of a byte that continues a character are 10.
_CONTINUATION_MASK = 0xC0
_CONTINUATION_BITS = 0x80
# Longer arrays are mapped.
_READ_BYTES = 1 << 23


def read_texts(parent: h5py.Group, name: str) -> Texts:
    """Read a whole column of texts.

    Raises:
        StoreError: If it is missing or not UTF-8, or its offsets do not divide its bytes into
            texts.
    """
    group = child_group(parent, name)
    path = Path(group.file.filename)
    column_bytes = _mapped_array(group, "bytes", "|u1")
    offsets = _mapped_array(group, "offsets", "<i8")

    is_whole = len(offsets) and offsets[0] == 0 and offsets[-1] == len(column_bytes)
    if not is_whole or (np.diff(offsets) < 0).any():
        refuse(path, group.name, "its offsets do not divide its bytes")
    # Empty texts at the end have no first byte.
    first_bytes = column_bytes[offsets[offsets < len(column_bytes)]]
    if ((first_bytes & _CONTINUATION_MASK) == _CONTINUATION_BITS).any():
        refuse(path, group.name, "its offsets cut characters in two")
    texts = Texts(column_bytes, offsets)
    # Decoded in blocks, as no offset cuts a character in two.
    with hdf5_errors(path, group.name):
        for start in range(0, len(texts), BLOCK):
            block = texts.section(start, start + BLOCK)
            block.content().tobytes().decode()
    return texts


def write_texts(parent: h5py.Group, name: str, texts: Texts) -> None:
    """Write a column of texts."""
    column = parent.create_group(name)
    column.create_dataset("bytes", data=texts.content())
    offsets = texts.offsets
    if offsets[0]:
        offsets = offsets - offsets[0]
    column.create_dataset("offsets", data=offsets)


def _mapped_array(parent: h5py.Group, dataset_name: str, dtype: str) -> np.ndarray:
    """Return a dataset of one dimension; a long one is mapped into memory instead of read.

    Raises:
        StoreError: As :func:`array_location`, or if the file cannot be read.
    """
    file_path = Path(parent.file.filename)
    location = array_location(parent, dataset_name, dtype)
    if location.n_bytes <= _READ_BYTES:
        return read_array(parent, dataset_name, dtype)
    with hdf5_errors(file_path, location.name):
        mapped = np.memmap(file_path, location.dtype, "r", location.offset, location.shape)
        # A plain array, whose slices are plain arrays, too.
        return np.asarray(mapped)


@dataclass(frozen=True)
class SplitTable:
    """A split's entry in an index.

    Attributes:
        fingerprint: sha256 (hex) over ids, paths and captions.
        columns: The texts, by the names in :data:`COLUMNS`.
        caption_image: int64 ``[n_captions]``, the image row of each caption.
        truth: Known relevance beyond the caption's own image, or ``None``.
    """

    fingerprint: str
    columns: Mapping[str, Texts]
    caption_image: np.ndarray
    truth: Truth | None

    @staticmethod
    def from_records(records: Records, truth: Truth | None) -> SplitTable:
        """Build the table of a split from its records."""
        columns = {name: getattr(records, name) for name in COLUMNS}
        return SplitTable(records.fingerprint, columns, records.caption_image, truth)

    def item_ids(self, modality: str) -> Texts:
        """Return the ids of image rows or caption rows, by modality."""
        if modality == "image":
            return self.columns["image_ids"]
        return self.columns["caption_ids"]

    def n_rows(self, modality: str) -> int:
        """Return the number of image rows or caption rows, by modality."""
        return len(self.item_ids(modality))


def read_split(index_path: Path, split_group: h5py.Group) -> SplitTable:
    """Read a split's group of an index.

    Args:
        index_path: The index, for messages.
        split_group: The group.

    Raises:
        StoreError: If a column is missing, or columns contradict each other.
    """
    columns = {name: read_texts(split_group, name) for name in COLUMNS}
    caption_image = _mapped_array(split_group, "caption_image", "<i8")

    n_images = len(columns["image_ids"])
    n_captions = len(columns["caption_ids"])
    check_lengths([n_images, len(columns["image_paths"])], index_path, split_group.name)
    caption_lengths = [n_captions, len(columns["captions"]), len(caption_image)]
    check_lengths(caption_lengths, index_path, split_group.name)
    check_caption_image(caption_image, n_images, index_path, split_group.name)

    truth = None
    if "truth" in split_group:
        truth_group = child_group(split_group, "truth")
        truth = Truth(*(read_array(truth_group, name, "<i8") for name in TRUTH_ARRAYS))
        check_truth(
            truth,
            n_images,
            n_captions,
            index_path,
            split_group.name,
        )
    return SplitTable(text_attribute(split_group, "fingerprint"), columns, caption_image, truth)


def write_split(split_group: h5py.Group, table: SplitTable) -> None:
    """Write a split to a group of an index."""
    write_fingerprint(split_group, table)
    for name in COLUMNS:
        write_texts(split_group, name, table.columns[name])
    split_group.create_dataset("caption_image", data=np.asarray(table.caption_image, "<i8"))
    lookup_group = split_group.create_group("lookup")
    for name in LOOKUP_COLUMNS:
        entries = lookup_table(table.columns[name])
        lookup_group.create_dataset(name, data=np.asarray(entries, "<u8"))

    if table.truth is None:
        return
    truth_group = split_group.create_group("truth")
    for name in TRUTH_ARRAYS:
        values = getattr(table.truth, name)
        truth_group.create_dataset(name, data=values.astype("<i8"))


def write_fingerprint(split_group: h5py.Group, table: SplitTable) -> None:
    """Write what the index of a part has of a split, whose texts are in another file."""
    split_group.attrs["fingerprint"] = table.fingerprint
