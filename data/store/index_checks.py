"""What of an index can be wrong although it is whole HDF5: numbers that do not fit each other."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import h5py
import numpy as np

from cusa.data.errors import StoreError
from cusa.data.records import Truth
from cusa.data.store.hdf5 import read_array, refuse, text_attribute, text_attributes
from cusa.data.store.schema import TeacherSettings


def check_caption_image(caption_image: np.ndarray, n_images: int, path: Path, name: str) -> None:
    """Refuse captions whose image rows do not ascend from the first image to the last.

    Args:
        caption_image: int64 ``[n_captions]``.
        n_images: Number of images.
        path: The index, for the message.
        name: The split's name in it.

    Raises:
        StoreError: If an image has no caption, or captions of one image are not adjacent.
    """
    edges = np.concatenate(
        [[-1], caption_image, [n_images]]
    )  # each step is to the same or the next
    steps = np.diff(edges)
    if steps[0] != 1 or steps[-1] != 1 or steps.min() < 0 or steps.max() > 1:
        refuse(
            path,
            f"{name}/caption_image".lstrip("/"),
            "its image rows do not ascend from first to last",
        )


def check_truth(truth: Truth, n_images: int, n_captions: int, path: Path, name: str) -> None:
    """Refuse relevance that does not fit its split; the arguments are as above.

    Raises:
        StoreError: If a length differs, or an image row is out of range.
    """
    indptr, indices = truth.indptr, truth.indices
    fits = len(truth.image_labels) == n_images and len(indptr) == n_captions + 1
    fits = (
        fits and indptr[0] == 0 and indptr[-1] == len(indices) and not (np.diff(indptr) < 0).any()
    )
    if not fits or (len(indices) and not 0 <= indices.min() <= indices.max() < n_images):
        refuse(path, f"{name}/truth".lstrip("/"), "it does not fit the split")


def read_bounds(listing: h5py.Group) -> np.ndarray:
    """int64 ``[n_shards, 2]``: the first row of each shard, and the one after its last.

    Raises:
        StoreError: If a shard has no row, or a negative one.
    """
    bounds = read_array(listing, "bounds", "<i8", n_dimensions=2)
    if bounds.shape[1] != 2 or (bounds[:, 0] < 0).any() or (bounds[:, 0] >= bounds[:, 1]).any():
        refuse(Path(listing.file.filename), listing.name, "its bounds are no ranges of rows")
    return bounds


def check_skipped(skipped: np.ndarray, n_rows: int, path: Path, name: str) -> None:
    """Refuse skipped rows that do not ascend within the split.

    Raises:
        StoreError: If they do not.
    """
    if not len(skipped):
        return
    if skipped.min() < 0 or skipped.max() >= n_rows or (np.diff(skipped) <= 0).any():
        refuse(path, f"{name}/skipped".lstrip("/"), "its rows do not ascend within the split")


def read_settings(path: Path, group: h5py.Group) -> TeacherSettings:
    """The settings of a teacher's group.

    Raises:
        StoreError: If they are missing or make no sense.
    """
    return TeacherSettings.from_json(text_attribute(group, "settings"), path)


def read_versions(group: h5py.Group) -> dict[str, str]:
    """The library versions of a teacher's group."""
    return dict(text_attributes(group, "version."))


def image_root(path: Path, file: h5py.File) -> Path:
    """The image root of an open index: absolute, or relative to the index's folder."""
    return path.resolve().parent / text_attribute(file, "image_root")


def refuse_index(path: Path) -> NoReturn:
    """Raise the error of an index whose bytes are not as they were written."""
    raise StoreError(
        f"index {path} is damaged: its checksum does not hold; move it away and run the same cusa-precompute command "
        "again, finished shards are kept",
        path=path,
    )
