"""Consistency checks of an index, which may be valid HDF5 and still contradict itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import h5py
import numpy as np

from cusa.data.records import Truth
from cusa.data.store.checksum import ChecksumError
from cusa.data.store.hdf5 import read_array, refuse, text_attribute, text_attributes
from cusa.data.store.schema import TeacherSettings


def check_lengths(
    lengths: Iterable[int],
    index_path: Path,
    name: str,
) -> None:
    """Refuse columns of a group that do not all have the same length.

    Raises:
        StoreError: If their lengths differ.
    """
    if len(set(lengths)) > 1:
        refuse(index_path, name, "its columns have different lengths")


def check_caption_image(
    caption_image: np.ndarray,
    n_images: int,
    index_path: Path,
    name: str,
) -> None:
    """Refuse captions whose image rows do not ascend from the first image to the last.

    Args:
        caption_image: int64 ``[n_captions]``.
        n_images: Number of images.
        index_path: The index, for the message.
        name: The split's name in it.

    Raises:
        StoreError: If an image has no caption, or captions of one image are not adjacent.
    """
    # From before the first image to after the last, each step is to the same image or the next one.
    edges = np.concatenate([[-1], caption_image, [n_images]])
    steps = np.diff(edges)
    starts_and_ends = steps[0] == 1 and steps[-1] == 1
    if not starts_and_ends or steps.min() < 0 or steps.max() > 1:
        problem = "its image rows do not ascend from first to last"
        refuse(index_path, f"{name}/caption_image".lstrip("/"), problem)


def check_truth(
    truth: Truth,
    n_images: int,
    n_captions: int,
    index_path: Path,
    name: str,
) -> None:
    """Refuse relevance that does not fit its split.

    Args:
        truth: The relevance.
        n_images: Number of images.
        n_captions: Number of captions.
        index_path: The index, for the message.
        name: The split's name in it.

    Raises:
        StoreError: If a length is wrong, offsets do not ascend, or an image row is out of range.
    """
    indptr = truth.indptr
    fits = len(truth.image_labels) == n_images and len(indptr) == n_captions + 1
    # If the lengths fit, there is a first offset.
    fits = fits and bool(indptr[0] == 0 and indptr[-1] == len(truth.indices))
    fits = fits and bool((np.diff(indptr) >= 0).all())
    if not fits or ((truth.indices < 0) | (truth.indices >= n_images)).any():
        refuse(index_path, f"{name}/truth".lstrip("/"), "it does not fit the split")


def read_bounds(listing: h5py.Group) -> np.ndarray:
    """Read the first row of each shard, and the row after its last: int64 ``[n_shards, 2]``.

    Raises:
        StoreError: If a shard has no rows, or a negative one.
    """
    bounds = read_array(listing, "bounds", "<i8", n_dimensions=2)
    is_valid = bounds.shape[1] == 2
    if is_valid:
        starts, stops = bounds.T
        is_valid = ((starts >= 0) & (starts < stops)).all()
    if not is_valid:
        refuse(Path(listing.file.filename), listing.name, "its bounds are not ranges of rows")
    return bounds


def check_skipped(
    skipped: np.ndarray,
    n_rows: int,
    index_path: Path,
    name: str,
) -> None:
    """Refuse skipped rows that do not ascend within the split.

    Args:
        skipped: int64 ``[n]``.
        n_rows: Number of rows of the split.
        index_path: The index, for the message.
        name: The name in it of the teacher's group for the split.

    Raises:
        StoreError: If they do not.
    """
    is_outside = (skipped < 0) | (skipped >= n_rows)
    if is_outside.any() or (np.diff(skipped) <= 0).any():
        refuse(index_path, f"{name}/skipped".lstrip("/"), "its rows do not ascend within the split")


def read_settings(index_path: Path, group: h5py.Group) -> TeacherSettings:
    """Read the settings of a teacher's group of an index.

    Raises:
        StoreError: If they are missing, or a field is not legal.
    """
    return TeacherSettings.from_json(text_attribute(group, "settings"), index_path)


def read_versions(group: h5py.Group) -> dict[str, str]:
    """Read the library versions of a teacher's group of an index.

    Raises:
        StoreError: If one is not a text.
    """
    return dict(text_attributes(group, "version."))


def image_root(index_path: Path, file: h5py.File) -> Path:
    """Read the image root of an open index, and resolve it against the index's folder.

    Raises:
        StoreError: If it is missing.
    """
    return index_path.resolve().parent / text_attribute(file, "image_root")


def refuse_index(index_path: Path) -> NoReturn:
    """Raise the error of an index that has changed since it was written.

    Raises:
        ChecksumError: Always.
    """
    raise ChecksumError(
        f"index {index_path} is damaged: its checksum does not hold; move it away and run the same "
        "cusa-precompute command again, finished shards are kept",
        path=index_path,
    )
