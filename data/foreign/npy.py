"""Arrays in .npy and .npz files, with the sizes in a header checked against the file."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Literal

import numpy as np

from cusa.data.errors import FileFormatError
from cusa.data.foreign.damaged_files import reading

Order = Literal["C", "F"]

_PLAIN_KINDS = "biufcSU"
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_ARCHIVE = b"PK\x03\x04"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # numpy writes no others
# The most that a numpy array may have.
_MAX_DIMENSIONS = 64
# Unicode's code points, and the surrogates among them.
_N_CODE_POINTS = 0x110000
_SURROGATES = range(0xD800, 0xE000)
# Deflate expands a byte to at most 1,032 bytes.
MAX_EXPANSION = 1100
# All arrays of an archive together.
_MAX_BYTES = 2 * 2**30


def open_npy(file_path: Path) -> np.ndarray:
    """Map the array of a .npy file into memory.

    Args:
        file_path: The file, of numbers or of texts of a fixed length; Python objects and records
            are never loaded.

    Returns:
        The array, read-only, of the file's shape and dtype; numbers are not read yet.

    Raises:
        FileFormatError: If the file is missing, not a .npy file, damaged, shorter than its header
            says, or holds anything else.
    """
    shape, order, dtype, offset = read_npy_header(file_path)
    if dtype.hasobject:
        raise FileFormatError(
            f"{file_path} holds Python objects, which are never loaded; save an array of numbers "
            "or strings (for a dictionary of the published code: cusa-store import --allow-pickle)",
            path=file_path,
        )
    if not _is_plain(dtype):
        message = f"{file_path} holds {dtype}; save an array of numbers or strings"
        raise FileFormatError(message, path=file_path)

    promised = offset + math.prod(shape) * dtype.itemsize
    size = file_path.stat().st_size
    if promised > size:
        message = (
            f"{file_path}: its header promises {promised:,} bytes, not {size:,}; copy it again"
        )
        raise FileFormatError(message, path=file_path)
    # An empty file cannot be mapped.
    if not math.prod(shape):
        return np.empty(shape, dtype)
    array = np.memmap(
        file_path,
        dtype,
        "r",
        offset,
        shape,
        order,
    )
    if not _holds_characters(array):
        message = f"{file_path} is damaged: its texts hold illegal characters; copy it again"
        raise FileFormatError(message, path=file_path)
    return array


def _is_plain(dtype: np.dtype) -> bool:
    """Return whether elements are numbers or texts of a fixed length."""
    return dtype.kind in _PLAIN_KINDS and dtype.subdtype is None and dtype.itemsize > 0


def read_npy_header(file_path: Path) -> tuple[tuple[int, ...], Order, np.dtype, int]:
    """Read the header of a .npy file.

    Returns:
        Shape, order, dtype, and the byte at which the array begins.

    Raises:
        FileFormatError: If the file is missing, or not a .npy file.
    """
    with reading(file_path, ".npy"), file_path.open("rb") as file:
        # For an archive, np.load would not return an array.
        if file.read(len(_ARCHIVE)) == _ARCHIVE:
            message = f"{file_path} is an .npz archive; save its array as .npy"
            raise FileFormatError(message, path=file_path)
        file.seek(0)
        return _parse_header(file)


def read_npz(file_path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz archive.

    Args:
        file_path: The file, of numbers or of texts of a fixed length; Python objects and records
            are never loaded.

    Returns:
        The arrays by name.

    Raises:
        FileFormatError: If the file is missing, not such an archive, damaged, larger in memory than
            its bytes can explain, or holds anything else.
    """
    with reading(file_path, ".npz"), zipfile.ZipFile(file_path) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)
        if size > min(_MAX_BYTES, MAX_EXPANSION * file_path.stat().st_size):
            raise ValueError(f"its arrays would have {size:,} bytes")
        arrays: dict[str, np.ndarray] = {}
        for member in members:
            arrays[member.filename.removesuffix(".npy")] = _read_member(archive, member)
        return arrays


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read an array, after checking that its header agrees with the archive."""
    if member.compress_type not in _METHODS:
        raise ValueError(f"{member.filename} is compressed by a method that numpy does not use")
    with archive.open(member) as file:
        shape, order, dtype, offset = _parse_header(file)
        if not _is_plain(dtype):
            raise ValueError(f"{member.filename} holds {dtype}")
        if offset + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"{member.filename} does not have the size that its header states")
        content = bytearray(file.read())
    array = np.frombuffer(content, dtype).reshape(shape, order=order)
    if not _holds_characters(array):
        raise ValueError(f"{member.filename} holds illegal characters")
    return array


def _holds_characters(array: np.ndarray) -> bool:
    """Return whether all texts of an array consist of legal characters.

    numpy stores any number in place of a character, even a lone surrogate.
    """
    if array.dtype.kind != "U":
        return True
    code_type = np.dtype("u4").newbyteorder(array.dtype.byteorder)
    codes = np.frombuffer(array.tobytes(), code_type)
    is_surrogate = (codes >= _SURROGATES.start) & (codes < _SURROGATES.stop)
    return bool((codes < _N_CODE_POINTS).all()) and not is_surrogate.any()


def _parse_header(file: IO[bytes]) -> tuple[tuple[int, ...], Order, np.dtype, int]:
    """Read a header, and leave the file positioned at the array."""
    read_header = _HEADERS[np.lib.format.read_magic(file)]
    shape, is_fortran, dtype = read_header(file)
    has_legal_lengths = all(type(length) is int and length >= 0 for length in shape)
    if not has_legal_lengths or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"shape {shape}")
    # numpy multiplies the lengths that are not zero, in 64 bits.
    n_elements = math.prod(length for length in shape if length)
    if n_elements * max(1, dtype.itemsize) >= 2**63:
        raise ValueError(f"shape {shape}")
    return shape, "F" if is_fortran else "C", dtype, file.tell()
