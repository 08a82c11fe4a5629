"""The sealed file of a tar's pairs; docs/FORMAT.md is its specification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import NoReturn

import h5py
import numpy as np

from cusa.data.errors import StoreError
from cusa.data.store.checksum import ChecksumError, open_sealed, read_seal, seal_holds, write_sealed
from cusa.data.store.hdf5 import child_group, read_array, refuse, text_attribute
from cusa.data.store.hdf5 import whole_number_attribute as whole_number
from cusa.data.store.index_checks import check_caption_image, check_lengths
from cusa.data.store.split_table import read_texts, write_texts
from cusa.data.tars.pairs import TarPairs
from cusa.data.tars.set_files import PAIRS_FOLDER
from cusa.data.tars.units import unit_suffix
from cusa.data.texts import Texts

PAIRS_FORMAT = "cusa-embeddings-pairs"


@dataclass(frozen=True)
class PairFile:
    """The pairs of a tar, as stored.

    Attributes:
        tar: The tar's name without ``.tar``.
        tar_bytes: Its length.
        tar_sha256: sha256 (hex) of all of its bytes.
        caption_rule: Where its captions are: ``"txt"``, ``"json:FIELD"`` or ``"parquet:COLUMN"``.
        is_complete: Whether the tar was whole, so that no sample is missing.
        fingerprint: sha256 (hex) over keys and captions, which the teachers' rows carry, too.
        seal: The file's seal.
        keys: Key of each image row.
        images: Path of each image row within the tar, or number of the row of a Parquet file.
        captions: Caption of each caption row.
        caption_image: int64 ``[n_captions]``, the image row of each caption.
        image_offsets: int64 ``[n_images]``, the byte of the tar at which each image begins.
        image_sizes: int64 ``[n_images]``, the length of each image in bytes.
        left_out: (key, reason) of each sample that is not a pair.
    """

    tar: str
    tar_bytes: int
    tar_sha256: str
    caption_rule: str
    is_complete: bool
    fingerprint: str
    seal: str
    keys: tuple[str, ...]
    images: tuple[str, ...]
    captions: tuple[str, ...]
    caption_image: np.ndarray
    image_offsets: np.ndarray
    image_sizes: np.ndarray
    left_out: tuple[tuple[str, str], ...]


def pairs_path(
    folder: Path,
    tar: str,
) -> Path:
    """Return the path of the pairs of a tar in the folder of a set."""
    return folder / PAIRS_FOLDER / f"{tar}.h5"


def write_pairs(
    folder: Path,
    pairs: TarPairs,
) -> str:
    """Write the pairs of a tar, atomically, and return the file's seal.

    Equal pairs give equal bytes.

    Args:
        folder: The folder of the set.
        pairs: The pairs.

    Raises:
        StoreError: If the disk or quota is full.
    """
    records = pairs.records

    def fill(content: h5py.File) -> None:
        content.attrs["tar"] = pairs.name
        content.attrs["tar_bytes"] = pairs.n_bytes
        content.attrs["tar_sha256"] = pairs.sha256
        content.attrs["caption"] = pairs.caption_rule
        content.attrs["complete"] = int(pairs.is_complete)
        content.attrs["fingerprint"] = records.fingerprint
        _write_texts(content, "keys", records.image_ids, f"{pairs.name}/")
        suffix = unit_suffix(pairs.caption_rule)
        _write_texts(content, "images", records.image_paths, f"{pairs.name}{suffix}/")
        _write_texts(content, "captions", records.captions)
        content.create_dataset("caption_image", data=records.caption_image)
        content.create_dataset("image_offsets", data=pairs.image_offsets.astype("<i8"))
        content.create_dataset("image_sizes", data=pairs.image_sizes.astype("<i8"))
        left_out = content.create_group("left_out")
        _write_texts(left_out, "keys", list(map(itemgetter(0), pairs.left_out)))
        _write_texts(left_out, "reasons", list(map(itemgetter(1), pairs.left_out)))

    return write_sealed(pairs_path(folder, pairs.name), PAIRS_FORMAT, fill)


def _write_texts(
    group: h5py.Group,
    column_name: str,
    texts: Sequence[str],
    prefix: str = "",
) -> None:
    """Write a column of texts without the prefix that each of them begins with."""
    stripped = [text.removeprefix(prefix) for text in texts]
    write_texts(group, column_name, Texts.from_strings(stripped))


def read_pairs(pairs_file: Path) -> PairFile:
    """Read the pairs of a tar.

    Args:
        pairs_file: The file; its seal is verified before the HDF5 library parses it.

    Raises:
        StoreError: If it is missing, damaged, or its columns contradict each other.
    """
    seal = read_seal(pairs_file, PAIRS_FORMAT)
    if not seal_holds(pairs_file, PAIRS_FORMAT):
        raise damaged_error(pairs_file)
    with open_sealed(pairs_file, PAIRS_FORMAT, seal) as content:
        pairs = PairFile(
            tar=text_attribute(content, "tar"),
            tar_bytes=whole_number(content, "tar_bytes"),
            tar_sha256=text_attribute(content, "tar_sha256"),
            caption_rule=text_attribute(content, "caption"),
            is_complete=bool(whole_number(content, "complete")),
            fingerprint=text_attribute(content, "fingerprint"),
            seal=seal,
            keys=tuple(read_texts(content, "keys")),
            images=tuple(read_texts(content, "images")),
            captions=tuple(read_texts(content, "captions")),
            caption_image=read_array(content, "caption_image", "<i8"),
            image_offsets=read_array(content, "image_offsets", "<i8"),
            image_sizes=read_array(content, "image_sizes", "<i8"),
            left_out=_read_left_out(child_group(content, "left_out")),
        )
    _check(pairs, pairs_file)
    return pairs


def read_tar_sha256(
    pairs_file: Path,
    seal: str,
) -> str:
    """Return the sha256 (hex) of the tar whose pairs a file holds, without reading its columns.

    Args:
        pairs_file: The file, whose bytes have been verified.
        seal: The seal that it must carry.

    Raises:
        StoreError: If it is missing, or not the file with that seal.
    """
    with open_sealed(pairs_file, PAIRS_FORMAT, seal) as content:
        return text_attribute(content, "tar_sha256")


def require_intact(
    path: Path,
    file_format: str,
    expected_seal: str,
    set_location: str,
) -> None:
    """Verify all bytes of a tar's file of pairs or rows, or of a copy of it.

    Args:
        path: The file.
        file_format: Its format.
        expected_seal: The seal that the manifest names.
        set_location: Path or URL of the set.

    Raises:
        StoreError: If it is missing, damaged, or not the one that the manifest names.
    """
    if read_seal(path, file_format) != expected_seal:
        refuse_replaced(path, set_location)
    if not seal_holds(path, file_format):
        raise damaged_error(path)


def refuse_replaced(
    path: Path,
    set_location: str,
) -> NoReturn:
    """Refuse a tar's file of pairs or rows that is not the one that the manifest names."""
    raise StoreError(
        f"{path} is not the file that the manifest names; run cusa-store index {set_location} if "
        "it was made again",
        path=path,
    )


def damaged_error(path: Path) -> ChecksumError:
    """Return the error of a tar's file of pairs or rows whose seal does not hold."""
    return ChecksumError(
        f"{path} is damaged: its checksum does not hold; move it away and run the "
        "cusa-precompute command again",
        path=path,
    )


def _read_left_out(group: h5py.Group) -> tuple[tuple[str, str], ...]:
    keys = read_texts(group, "keys")
    reasons = read_texts(group, "reasons")
    return tuple(zip(keys, reasons, strict=True))


def _check(
    pairs: PairFile,
    pairs_file: Path,
) -> None:
    """Refuse columns that contradict each other."""
    n_images = len(pairs.keys)
    columns = (pairs.images, pairs.image_offsets, pairs.image_sizes)
    check_lengths([n_images, *map(len, columns)], pairs_file, "keys")
    if len(set(pairs.keys)) < n_images:
        refuse(pairs_file, "keys", "there is a key twice")
    check_lengths([len(pairs.captions), len(pairs.caption_image)], pairs_file, "captions")
    check_caption_image(pairs.caption_image, n_images, pairs_file, "caption_image")
    if not 0 <= pairs.tar_bytes <= np.iinfo(np.int64).max:
        refuse(pairs_file, "@tar_bytes", "it is not the length of a file")
    n_bytes_after = pairs.tar_bytes - pairs.image_offsets
    is_outside = (pairs.image_offsets < 0) | (n_bytes_after < 0)
    is_outside |= (pairs.image_sizes < 0) | (pairs.image_sizes > n_bytes_after)
    if is_outside.any():
        refuse(pairs_file, "image_offsets", "images lie outside the tar")
    if pairs.tar != pairs_file.stem:
        refuse(pairs_file, "tar", f"it holds the pairs of another tar, {pairs.tar!r}")
