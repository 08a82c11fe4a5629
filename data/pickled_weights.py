"""Checks of pickled weights."""

from __future__ import annotations

import zipfile
from pathlib import Path

from cusa.data.errors import FileFormatError, first_line


def refuse_damaged_pickles(folder: Path) -> None:
    """Refuse pickled weights whose archive is damaged or compressed; torch.save never compresses.

    transformers maps these files into memory: it would read compressed bytes as weights, and it
    verifies no checksum.

    Args:
        folder: A model's folder, searched with its subfolders. It need not exist.

    Raises:
        FileFormatError: Names the file.
    """
    for path in sorted(folder.rglob("*.bin")):
        if not zipfile.is_zipfile(path):
            continue
        problem = _archive_problem(path)
        if problem is not None:
            raise FileFormatError(
                f"{path} is damaged ({problem}); download it again, or write it with torch.save",
                path=path,
            )


def _archive_problem(path: Path) -> str | None:
    """Describe what is wrong with an archive of weights, if anything."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    return f"{member.filename} is compressed"
            damaged_member = archive.testzip()
    except Exception as error:  # zipfile raises a dozen things
        return first_line(error)
    if damaged_member is None:
        return None
    return f"the checksum of {damaged_member} differs"
