"""Whatever a library raises on a damaged file, as one line that names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cusa.data.errors import CusaError, FileFormatError, first_line


@contextmanager
def reading(file_path: Path, form: str) -> Iterator[None]:
    """Turn what goes wrong while a file is read into an error that says what it should be.

    Args:
        file_path: The file.
        form: What it should be, such as ``".npy"``.

    Raises:
        FileFormatError: For any error but that of a file that may not be read.
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
