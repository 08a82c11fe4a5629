"""HDF5 objects of the expected kind, or one error that names the file and the object.

h5py hands out whatever lies under a name, raises many things on damaged files, follows links into
other files, and makes an array as large as a file claims before it reads a byte. Here an object is
what its reader expects, sizes are held against the length of the file, and all else is a
:class:`cusa.data.errors.StoreError`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import h5py
import numpy as np

from cusa.data.errors import CusaError, StoreError, first_line

# What h5py raises on objects of other kinds and on damaged files.
_HDF5_ERRORS = (
    AttributeError,
    KeyError,
    IndexError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    SystemError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class ArrayLocation:
    """A contiguous dataset as what it is on disk: one plain array at an offset of a file.

    Attributes:
        name: The dataset's name in the file.
        offset: Byte of the file at which it begins.
        shape: Its shape.
        dtype: Its dtype as numpy writes it, such as ``"<i8"``.
    """

    name: str
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def n_bytes(self) -> int:
        """Its length in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@contextmanager
def hdf5_errors(path: Path, name: str = "") -> Iterator[None]:
    """Turn what h5py raises within the block into an error that names the file and the object.

    Raises:
        StoreError: In place of h5py's own; errors of this project pass.
    """
    try:
        yield
    except CusaError:
        raise
    except _HDF5_ERRORS as error:
        refuse(path, name, first_line(error).strip("'\""))


def refuse(path: Path, name: str, problem: str) -> NoReturn:
    """Raise the error that says what is wrong with an object of a file."""
    place = f"{path}: {name}" if name else str(path)
    message = f"{place} is damaged or of another form ({problem}); see cusa-store verify"
    raise StoreError(message, path=path, name=name)


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, without a lock.

    Raises:
        StoreError: If it is none; also in place of what h5py raises within the block.
    """
    with hdf5_errors(path):
        file = h5py.File(path, "r", locking=False)
    with file, hdf5_errors(path):
        yield file


def child_group(parent: h5py.Group, name: str) -> h5py.Group:
    """A group below another.

    Raises:
        StoreError: If it is missing, a link, or no group.
    """
    return _child(parent, name, h5py.Group)


def child_groups(parent: h5py.Group) -> dict[str, h5py.Group]:
    """All that lies directly below a group, which must be groups.

    Raises:
        StoreError: If one is a link or no group.
    """
    with hdf5_errors(_path(parent), parent.name):
        names = list(parent)  # an error within the iteration itself would keep HDF5's lock
        for name in names:
            name.encode()  # h5py reads what is no UTF-8 as half characters
    return {name: child_group(parent, name) for name in names}


def array_location(
    parent: h5py.Group, name: str, dtype: str, n_dimensions: int = 1
) -> ArrayLocation:
    """Where a dataset lies in the file.

    Args:
        parent: The group that it is in.
        name: Its name there.
        dtype: What its elements must be, such as ``"<i8"``.
        n_dimensions: How many dimensions it must have.

    Raises:
        StoreError: If it is missing or a link, of another dtype or number of dimensions, not
            contiguous, or reaches beyond the end of the file.
    """
    path, full_name = _path(parent), _joined(parent, name)
    dataset = _child(parent, name, h5py.Dataset)
    with hdf5_errors(path, full_name):
        shape, offset, given = dataset.shape, dataset.id.get_offset(), dataset.dtype
        file_size = path.stat().st_size
    if given != np.dtype(dtype) or shape is None or len(shape) != n_dimensions:
        refuse(
            path, full_name, f"expected {n_dimensions} dimensions of {dtype}, not {given} {shape}"
        )
    location = ArrayLocation(full_name, offset or 0, tuple(shape), dtype)
    if location.n_bytes and offset is None:
        refuse(path, full_name, "it is not contiguous")
    if location.offset + location.n_bytes > file_size:
        refuse(path, full_name, f"it reaches beyond the end of the file, {file_size:,} bytes")
    return location


def read_array(parent: h5py.Group, name: str, dtype: str, n_dimensions: int = 1) -> np.ndarray:
    """Read a dataset whole; the arguments are those of :func:`array_location`.

    Raises:
        StoreError: As :func:`array_location`, or if the file cannot be read.
    """
    path, location = _path(parent), array_location(parent, name, dtype, n_dimensions)
    with hdf5_errors(path, location.name):
        count = math.prod(location.shape)
        values = np.fromfile(path, location.dtype, count, offset=location.offset)
        return values.reshape(location.shape)


def text_attribute(item: h5py.Group, name: str) -> str:
    """An attribute that is one text.

    Raises:
        StoreError: If it is missing, something else, or holds a NUL character.
    """
    value = _attribute(item, name)
    if not isinstance(value, str) or "\0" in value:
        refuse(_path(item), _joined(item, f"@{name}"), "expected a text")
    with hdf5_errors(_path(item), _joined(item, f"@{name}")):
        value.encode()  # h5py reads what is no UTF-8 as half characters
    return value


def text_attributes(item: h5py.Group, prefix: str) -> Mapping[str, str]:
    """The attributes whose names begin with a prefix, by the rest of their names.

    Raises:
        StoreError: If one is no text.
    """
    with hdf5_errors(_path(item), item.name):
        names = [name for name in item.attrs if name.startswith(prefix)]
    return {name.removeprefix(prefix): text_attribute(item, name) for name in names}


def whole_number_attribute(item: h5py.Group, name: str) -> int:
    """An attribute that is one whole number.

    Raises:
        StoreError: If it is missing or something else.
    """
    value = _attribute(item, name)
    if not isinstance(value, np.integer):
        refuse(_path(item), _joined(item, f"@{name}"), "expected a whole number")
    return int(value)


def whole_numbers_attribute(item: h5py.Group, name: str, count: int) -> tuple[int, ...]:
    """An attribute that is a few whole numbers.

    Raises:
        StoreError: If it is missing or something else.
    """
    value = _attribute(item, name, shape=(count,))
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
        refuse(_path(item), _joined(item, f"@{name}"), f"expected {count} whole numbers")
    return tuple(value.tolist())


def _attribute(item: h5py.Group, name: str, shape: tuple[int, ...] = ()) -> object:
    """The value of an attribute, of that shape."""
    path, full_name = _path(item), _joined(item, f"@{name}")
    with hdf5_errors(path, full_name):
        if name not in item.attrs:
            refuse(path, full_name, "it is missing")
        given = item.attrs.get_id(name).shape
        if given != shape:  # looked at before an array is made
            refuse(path, full_name, f"expected the shape {shape}, not {given}")
        value: object = item.attrs[name]
        return value


def _child(parent: h5py.Group, name: str, kind: type[h5py.HLObject]) -> h5py.HLObject:
    """An object of a group, of that kind, that lies in this very file."""
    path, full_name = _path(parent), _joined(parent, name)
    with hdf5_errors(path, full_name):
        link = parent.get(name, getlink=True)
        if link is None:
            refuse(path, full_name, "it is missing")
        if not isinstance(link, h5py.HardLink):
            refuse(path, full_name, "it is a link")
        item = parent[name]
        if not isinstance(item, kind):
            refuse(path, full_name, f"expected a {kind.__name__.lower()}")
        return item


def _path(item: h5py.HLObject) -> Path:
    return Path(item.file.filename)


def _joined(parent: h5py.Group, name: str) -> str:
    return f"{parent.name}/{name}".lstrip("/")
