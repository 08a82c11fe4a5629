"""Rows and ids in HDF5 files that others wrote: no size in them is believed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cusa.data.errors import CusaError, FileFormatError, first_line
from cusa.data.foreign.guarded_process import read_in_child

_MOST_COMPRESSED = 1100  # deflate makes a byte of 1,032 at most
_TEXTS_AT_ONCE = 64  # each may be as long as the file


def read_h5_rows(
    path: Path, inside: str, rows_name: str, ids_name: str
) -> tuple[np.ndarray, list[Any] | None]:
    """Read a dataset of numbers, and the ids beside it.

    A process of its own reads them: damaged files crash the library.

    Args:
        path: The file.
        inside: Name of the dataset or of its group within the file; empty: the root.
        rows_name: The dataset within a group.
        ids_name: The dataset of ids in the same group.

    Returns:
        The dataset as it is, and its ids, integers or texts; ``None`` if there are none.

    Raises:
        FileFormatError: If the file is damaged, has no such dataset, holds something else than
            numbers and ids, or promises more than it can hold.
    """
    ids, rows = read_in_child(read_here, "HDF5", path, inside, rows_name, ids_name)
    assert rows is not None, "a reader gives rows or an error"
    return rows, ids


def read_here(
    path: str, inside: str, rows_name: str, ids_name: str
) -> tuple[list[Any] | None, np.ndarray]:
    """Ids and rows, as :func:`read_h5_rows` finds them; in this process."""
    file_path = Path(path)
    try:
        with h5py.File(path, "r") as file:
            dataset = _dataset(file, file_path, inside, rows_name)
            ids = dataset.parent.get(ids_name)
            names = _read_ids(ids, file_path) if isinstance(ids, h5py.Dataset) else None
            return names, _checked(dataset, file_path)[()]
    except CusaError:
        raise
    except Exception as error:  # the library raises nearly any on damaged files
        problem = first_line(error)
        raise FileFormatError(
            f"{path} cannot be read as HDF5 ({problem}); it is damaged, or not what its suffix says",
            path=file_path,
        ) from None


def _dataset(file: h5py.File, path: Path, inside: str, rows_name: str) -> h5py.Dataset:
    """The dataset of that name, or the rows of the group of that name."""
    dataset: Any = file.get(inside) if inside else file
    if isinstance(dataset, h5py.Group):
        inside = f"{inside.rstrip('/')}/{rows_name}"
        dataset = dataset.get(rows_name)
    if not isinstance(dataset, h5py.Dataset):
        held = ", ".join(sorted(file)[:5]) or "nothing"
        raise FileFormatError(
            f"{path} has no dataset {inside!r}, it holds {held}; name one, as {path}:/group/name",
            path=path,
            location=inside,
        )
    if dataset.dtype.kind not in "fiu" or dataset.dtype.subdtype is not None:
        raise FileFormatError(
            f"{path}: {dataset.name} holds {dataset.dtype}, not numbers; save float16, float32 or float64",
            path=path,
            location=str(dataset.name),
        )
    return dataset


def _checked(dataset: h5py.Dataset, path: Path) -> h5py.Dataset:
    """The dataset, if the file can hold all of it: what is not there would be read as zeros."""
    if dataset.is_virtual or dataset.external:
        problem = "lies in other files"
    elif dataset.shape is None:
        problem = "is empty"
    elif dataset.chunks and dataset.id.get_num_chunks() != _chunks_of(
        dataset.shape, dataset.chunks
    ):
        problem = "lacks some of its chunks"
    else:
        stored = min(dataset.id.get_storage_size(), path.stat().st_size)
        is_compressed = dataset.id.get_create_plist().get_nfilters() > 0
        promised = math.prod(dataset.shape) * dataset.id.get_type().get_size()
        if promised <= stored * (_MOST_COMPRESSED if is_compressed else 1):
            return dataset
        problem = f"should have {promised:,} bytes and has {stored:,}"
    raise FileFormatError(
        f"{path}: {dataset.name} {problem}; write all of it into the file",
        path=path,
        location=str(dataset.name),
    )


def _chunks_of(shape: tuple[int, ...], chunk: tuple[int, ...]) -> int:
    return math.prod(-(-length // size) for length, size in zip(shape, chunk, strict=True))


def _read_ids(dataset: h5py.Dataset, path: Path) -> list[Any]:
    """Integers or texts."""
    string = h5py.check_string_dtype(dataset.dtype)
    if dataset.ndim != 1 or (string is None and dataset.dtype.kind not in "iu"):
        raise FileFormatError(
            f"{path}: {dataset.name} is {dataset.dtype} of shape {dataset.shape}; legal: one integer or text per row",
            path=path,
            location=str(dataset.name),
        )
    _checked(dataset, path)
    if string is None:
        numbers: list[Any] = dataset[()].tolist()
        return numbers
    texts: list[Any] = []
    n_characters = 0
    for start in range(0, len(dataset), _TEXTS_AT_ONCE):
        texts.extend(dataset.asstr("utf-8")[start : start + _TEXTS_AT_ONCE])
        n_characters += sum(len(text) for text in texts[start:])
        if (
            string.length is None and n_characters > path.stat().st_size
        ):  # many entries may name one place of it
            raise FileFormatError(
                f"{path}: {dataset.name} holds more text than the file; write each id by itself",
                path=path,
                location=str(dataset.name),
            )
    return texts
