"""Errors of libraries on damaged files, turned into one line that names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cusa.data.errors import CusaError, FileFormatError, first_line


@contextmanager
def reading(file_path: Path, form: str) -> Iterator[None]:
    """Turn any error while a file is read into one that names the file and its format.

    Args:
        file_path: The file.
        form: The format that the file should have, such as ``".npy"``.

    Raises:
        FileFormatError: For any error except :class:`CusaError` and ``PermissionError``, which pass
            unchanged.
    """
    try:
        yield
    except (CusaError, PermissionError):
        raise
    except FileNotFoundError:
        raise FileFormatError(f"{file_path} does not exist", path=file_path) from None
    # Damaged bytes make a library raise nearly anything.
    except Exception as error:
        raise FileFormatError(
            f"{file_path} cannot be read as {form} ({first_line(error)}); it is damaged, or not "
            "what its suffix says",
            path=file_path,
        ) from None
