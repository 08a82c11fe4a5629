"""Checked access to HDF5 objects, with errors that name the file and the object.

h5py returns objects of any type, raises errors of many classes on damaged files, follows links into
other files, and allocates an array as large as a file claims before it reads a byte. Here the type
of an object and its size within the file are checked first, and anything unexpected becomes a
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

# What h5py raises on objects of unexpected types and on damaged files.
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
    """The place of a contiguous dataset on disk: a plain array at an offset of a file.

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
        """Return its length in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@contextmanager
def hdf5_errors(file_path: Path, name: str = "") -> Iterator[None]:
    """Turn what h5py raises within the block into an error that names the file and the object.

    Raises:
        StoreError: In place of h5py's errors. A :class:`CusaError` passes unchanged.
    """
    try:
        yield
    except CusaError:
        raise
    except _HDF5_ERRORS as error:
        refuse(file_path, name, first_line(error).strip("'\""))


def refuse(
    file_path: Path,
    name: str,
    problem: str,
) -> NoReturn:
    """Raise the error that says what is wrong with an object of a file."""
    subject = str(file_path)
    if name:
        subject = f"{file_path}: {name}"
    message = f"{subject} is damaged or has another layout ({problem}); see cusa-store verify"
    raise StoreError(message, path=file_path, name=name)


@contextmanager
def open_hdf5(file_path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, without a lock.

    Raises:
        StoreError: If it is not an HDF5 file; also in place of what h5py raises within the block.
    """
    with hdf5_errors(file_path):
        file = h5py.File(file_path, "r", locking=False)
    with file, hdf5_errors(file_path):
        yield file


def child_group(parent: h5py.Group, child_name: str) -> h5py.Group:
    """Return a group that lies directly in another.

    Raises:
        StoreError: If it is missing, a link, or not a group.
    """
    return _child(parent, child_name, h5py.Group)


def child_groups(parent: h5py.Group) -> dict[str, h5py.Group]:
    """Return the members of a group by name, all of which must be groups.

    Raises:
        StoreError: If a member is a link or not a group.
    """
    with hdf5_errors(_file_path(parent), parent.name):
        # An exception raised during the iteration would leave HDF5's lock held.
        names = list(parent)
        for name in names:
            _require_unicode(name)
    return {name: child_group(parent, name) for name in names}


def array_location(
    parent: h5py.Group,
    dataset_name: str,
    dtype: str,
    n_dimensions: int = 1,
) -> ArrayLocation:
    """Find the place of a dataset in its file.

    Args:
        parent: The group that it is in.
        dataset_name: Its name in the group.
        dtype: The dtype that it must have, such as ``"<i8"``.
        n_dimensions: The number of dimensions that it must have.

    Raises:
        StoreError: If it is missing or a link, of another dtype or number of dimensions, not
            contiguous, or reaches beyond the end of the file.
    """
    file_path = _file_path(parent)
    full_name = _joined(parent, dataset_name)
    dataset = _child(parent, dataset_name, h5py.Dataset)
    with hdf5_errors(file_path, full_name):
        shape = dataset.shape
        offset = dataset.id.get_offset()
        stored_dtype = dataset.dtype
        file_size = file_path.stat().st_size

    if stored_dtype != np.dtype(dtype) or shape is None or len(shape) != n_dimensions:
        expected = f"{n_dimensions} dimensions of {dtype}"
        refuse(file_path, full_name, f"expected {expected}, not {stored_dtype} {shape}")
    location = ArrayLocation(full_name, offset or 0, tuple(shape), dtype)
    # Chunked datasets have no offset; neither do empty ones, which need none.
    if location.n_bytes and offset is None:
        refuse(file_path, full_name, "it is not contiguous")
    if location.offset + location.n_bytes > file_size:
        refuse(file_path, full_name, f"it reaches beyond the end of the file, {file_size:,} bytes")
    return location


def read_array(
    parent: h5py.Group,
    dataset_name: str,
    dtype: str,
    n_dimensions: int = 1,
) -> np.ndarray:
    """Read a whole dataset; the arguments are those of :func:`array_location`.

    Raises:
        StoreError: As :func:`array_location`, or if the file cannot be read.
    """
    file_path = _file_path(parent)
    location = array_location(parent, dataset_name, dtype, n_dimensions)
    with hdf5_errors(file_path, location.name):
        n_values = math.prod(location.shape)
        # Read without the HDF5 library, now that the bytes are known to be within the file.
        values = np.fromfile(file_path, location.dtype, n_values, offset=location.offset)
        return values.reshape(location.shape)


def text_attribute(owner: h5py.Group, attribute_name: str) -> str:
    """Read an attribute that is a text.

    Raises:
        StoreError: If it is missing, not a text, or holds a NUL character.
    """
    value = _attribute(owner, attribute_name)
    file_path = _file_path(owner)
    full_name = _joined(owner, f"@{attribute_name}")
    if not isinstance(value, str) or "\0" in value:
        refuse(file_path, full_name, "expected a text")
    with hdf5_errors(file_path, full_name):
        _require_unicode(value)
    return value


def text_attributes(owner: h5py.Group, prefix: str) -> Mapping[str, str]:
    """Read the text attributes whose names begin with a prefix, by name without the prefix.

    Raises:
        StoreError: If one of them is not a text.
    """
    with hdf5_errors(_file_path(owner), owner.name):
        names = [name for name in owner.attrs if name.startswith(prefix)]
    return {name.removeprefix(prefix): text_attribute(owner, name) for name in names}


def whole_number_attribute(owner: h5py.Group, attribute_name: str) -> int:
    """Read an attribute that is a whole number.

    Raises:
        StoreError: If it is missing, or not a whole number.
    """
    value = _attribute(owner, attribute_name)
    if not isinstance(value, np.integer):
        refuse(_file_path(owner), _joined(owner, f"@{attribute_name}"), "expected a whole number")
    return int(value)


def whole_numbers_attribute(
    owner: h5py.Group,
    attribute_name: str,
    count: int,
) -> tuple[int, ...]:
    """Read an attribute that is an array of ``count`` whole numbers.

    Raises:
        StoreError: If it is missing, or not such an array.
    """
    value = _attribute(owner, attribute_name, shape=(count,))
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
        refuse(
            _file_path(owner),
            _joined(owner, f"@{attribute_name}"),
            f"expected {count} whole numbers",
        )
    return tuple(value.tolist())


def _attribute(
    owner: h5py.Group,
    attribute_name: str,
    shape: tuple[int, ...] = (),
) -> object:
    """Read the value of an attribute, which must have the given shape."""
    file_path = _file_path(owner)
    full_name = _joined(owner, f"@{attribute_name}")
    with hdf5_errors(file_path, full_name):
        if attribute_name not in owner.attrs:
            refuse(file_path, full_name, "it is missing")
        # Checked before h5py allocates an array for it.
        stored_shape = owner.attrs.get_id(attribute_name).shape
        if stored_shape != shape:
            refuse(file_path, full_name, f"expected the shape {shape}, not {stored_shape}")
        value: object = owner.attrs[attribute_name]
        return value


def _child(
    parent: h5py.Group,
    child_name: str,
    kind: type[h5py.HLObject],
) -> h5py.HLObject:
    """Return a member of a group, which must be of a type and in this file, not a link."""
    file_path = _file_path(parent)
    full_name = _joined(parent, child_name)
    with hdf5_errors(file_path, full_name):
        link = parent.get(child_name, getlink=True)
        if link is None:
            refuse(file_path, full_name, "it is missing")
        if not isinstance(link, h5py.HardLink):
            refuse(file_path, full_name, "it is a link")
        child = parent[child_name]
        if not isinstance(child, kind):
            refuse(file_path, full_name, f"expected a {kind.__name__.lower()}")
        return child


def _require_unicode(text: str) -> None:
    """Raise UnicodeEncodeError for lone surrogates, as which h5py decodes invalid UTF-8."""
    text.encode()


def _file_path(item: h5py.HLObject) -> Path:
    return Path(item.file.filename)


def _joined(parent: h5py.Group, name: str) -> str:
    return f"{parent.name}/{name}".lstrip("/")
