"""Arrays in .npy files that others wrote: what a header promises is compared with the file before it is believed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from cusa.data.errors import FileFormatError, first_line

_PLAIN_KINDS = "biufcSU"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_ARCHIVE = b"PK\x03\x04"


def open_npy(path: Path) -> np.ndarray:
    """Map the array of a .npy file into memory.

    Args:
        path: The file: numbers or texts of a fixed length; Python objects and records are never loaded.

    Returns:
        The array, read-only; nothing of it is read yet.

    Raises:
        FileFormatError: If the file is missing, no .npy file, damaged, shorter than its header says, or holds anything
            else.
    """
    shape, is_fortran, dtype, offset = read_npy_header(path)
    if dtype.hasobject:
        raise FileFormatError(
            f"{path} holds Python objects, which are never loaded; save an array of numbers or strings "
            "(for a dictionary of the published code: cusa-store import --allow-pickle)",
            path=path,
        )
    if dtype.kind not in _PLAIN_KINDS or dtype.subdtype is not None or not dtype.itemsize:
        raise FileFormatError(f"{path} holds {dtype}; save an array of numbers or strings", path=path)
    promised, size = offset + math.prod(shape) * dtype.itemsize, path.stat().st_size
    if promised > size:
        raise FileFormatError(
            f"{path} cannot be read: its header promises {promised:,} bytes, it has {size:,}; copy it again", path=path
        )
    if not math.prod(shape):
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape, "F" if is_fortran else "C")


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
                raise FileFormatError(f"{path} is an .npz archive; save its array as .npy", path=path)
            file.seek(0)
            shape, is_fortran, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
            if any(length < 0 for length in shape):
                raise ValueError(f"shape {shape}")
            return shape, is_fortran, dtype, file.tell()
    except FileNotFoundError:
        raise FileFormatError(f"{path} does not exist", path=path) from None
    except (FileFormatError, PermissionError):
        raise
    except Exception as error:  # the header is a Python literal: damaged bytes may make it any
        problem = first_line(error)
        raise FileFormatError(
            f"{path} cannot be read as .npy ({problem}); it is damaged, or not what its suffix says", path=path
        ) from None
