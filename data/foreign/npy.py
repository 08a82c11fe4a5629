"""Arrays in .npy and .npz files: what a header promises is compared with the file."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from cusa.data.errors import FileFormatError, first_line

_PLAIN_KINDS = "biufcSU"
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_ARCHIVE = b"PK\x03\x04"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # numpy writes no others
_MOST_DIMENSIONS = 64  # of numpy's arrays
_CODE_POINTS, _HALF_CHARACTERS = 0x110000, range(0xD800, 0xE000)  # of Unicode
_MOST_EXPANDED = 1100  # deflate makes a byte of 1,032 at most
_MOST_BYTES = 2 * 2**30  # of an archive's arrays together


def open_npy(path: Path) -> np.ndarray:
    """Map the array of a .npy file into memory.

    Args:
        path: The file: numbers or texts of a fixed length; Python objects and records are never
            loaded.

    Returns:
        The array, read-only; nothing of it is read yet.

    Raises:
        FileFormatError: If the file is missing, no .npy file, damaged, shorter than its header
            says, or holds anything else.
    """
    shape, is_fortran, dtype, offset = read_npy_header(path)
    if dtype.hasobject:
        raise FileFormatError(
            f"{path} holds Python objects, which are never loaded; save an array of numbers or strings "
            "(for a dictionary of the published code: cusa-store import --allow-pickle)",
            path=path,
        )
    if dtype.kind not in _PLAIN_KINDS or dtype.subdtype is not None or not dtype.itemsize:
        raise FileFormatError(
            f"{path} holds {dtype}; save an array of numbers or strings", path=path
        )
    promised, size = offset + math.prod(shape) * dtype.itemsize, path.stat().st_size
    if promised > size:
        raise FileFormatError(
            f"{path} cannot be read: its header promises {promised:,} bytes, it has {size:,}; copy it again",
            path=path,
        )
    if not math.prod(shape):
        return np.empty(shape, dtype)
    array = np.memmap(path, dtype, "r", offset, shape, "F" if is_fortran else "C")
    if not _holds_characters(array):
        raise FileFormatError(
            f"{path} is damaged: its texts hold what is no character; copy it again", path=path
        )
    return array


def read_npy_header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Read what a .npy file says of its array.

    Returns:
        Shape, whether it is in Fortran's order, type, and the byte at which the array begins.

    Raises:
        FileFormatError: If the file is missing, or no .npy file.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_ARCHIVE)) == _ARCHIVE:
                raise FileFormatError(
                    f"{path} is an .npz archive; save its array as .npy", path=path
                )
            file.seek(0)
            return _parse_header(file)
    except FileNotFoundError:
        raise FileFormatError(f"{path} does not exist", path=path) from None
    except (FileFormatError, PermissionError):
        raise
    except Exception as error:  # the header is a Python literal: damaged bytes may make it any
        problem = first_line(error)
        raise FileFormatError(
            f"{path} cannot be read as .npy ({problem}); it is damaged, or not what its suffix says",
            path=path,
        ) from None


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz archive.

    Args:
        path: The file; Python objects and records are never loaded.

    Returns:
        The arrays by name.

    Raises:
        FileFormatError: If the file is missing, no such archive, damaged, larger in memory than its
            bytes can explain, or holds anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if size > min(_MOST_BYTES, _MOST_EXPANDED * path.stat().st_size):
                raise ValueError(f"its arrays would have {size:,} bytes")
            return {
                member.filename.removesuffix(".npy"): _read_member(archive, member)
                for member in members
            }
    except FileNotFoundError:
        raise FileFormatError(f"{path} does not exist", path=path) from None
    except PermissionError:
        raise
    except (
        Exception
    ) as error:  # of the archive, of what is compressed in it, or of an array's header
        problem = first_line(error)
        raise FileFormatError(
            f"{path} cannot be read as .npz ({problem}); it is damaged", path=path
        ) from None


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """An array, once it is known that its header promises what the archive holds."""
    if member.compress_type not in _METHODS:
        raise ValueError(f"{member.filename} is compressed in another way than numpy compresses")
    with archive.open(member) as file:
        shape, is_fortran, dtype, offset = _parse_header(file)
        if dtype.kind not in _PLAIN_KINDS or dtype.subdtype is not None or not dtype.itemsize:
            raise ValueError(f"{member.filename} holds {dtype}")
        if offset + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"{member.filename} has a header of another array")
        content = bytearray(file.read())
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")
    if not _holds_characters(array):
        raise ValueError(f"{member.filename} holds what is no character")
    return array


def _holds_characters(array: np.ndarray) -> bool:
    """Whether all of an array's texts are of characters: numpy keeps any number, and half ones."""
    if array.dtype.kind != "U":
        return True
    codes = np.frombuffer(array.tobytes(), np.dtype("u4").newbyteorder(array.dtype.byteorder))
    is_half = (codes >= _HALF_CHARACTERS.start) & (codes < _HALF_CHARACTERS.stop)
    return bool((codes < _CODE_POINTS).all()) and not is_half.any()


def _parse_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    shape, is_fortran, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
    if (
        not all(type(length) is int and length >= 0 for length in shape)
        or len(shape) > _MOST_DIMENSIONS
    ):
        raise ValueError(f"shape {shape}")
    # numpy multiplies the lengths without the zeros among them, in 64 bits.
    if math.prod(length for length in shape if length) * max(1, dtype.itemsize) >= 2**63:
        raise ValueError(f"shape {shape}")
    return shape, is_fortran, dtype, file.tell()
