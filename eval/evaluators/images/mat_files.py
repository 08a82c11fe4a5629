"""Lists in MATLAB files, read in a process of their own: damaged ones crash or hang scipy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cusa.data.errors import FileFormatError, first_line
from cusa.data.foreign.guarded_process import Read, read_in_child


def read_annotations(path: Path, name_field: str) -> list[tuple[str, str]]:
    """Read the struct array ``annotations`` of a MATLAB file.

    Args:
        path: The file.
        name_field: Its field that names the image.

    Returns:
        Name and class of each annotation, as texts.

    Raises:
        FileFormatError: If the file is missing, damaged, or has no such array, or a name is blank
            or padded: scipy fills up with blanks what a damaged file lacks.
    """
    if not path.is_file():
        message = f"{path} does not exist; it belongs to the published data set, put it there"
        raise FileFormatError(message, path=path)
    content, _ = read_in_child(read_here, "MATLAB", path, name_field)
    for number, (name, _) in enumerate(content, start=1):
        if not name or name != name.strip():
            location = f"annotation {number}"
            message = (
                f"{path} {location}: {name[:80]!r} is no name of an image; fetch the file again"
            )
            raise FileFormatError(message, path=path, location=location)
    return [(name, label) for name, label in content]


def read_here(path: str, name_field: str) -> Read:
    """Read as :func:`read_annotations` does, in this process."""
    from scipy.io import loadmat

    try:
        content = loadmat(path, squeeze_me=True, variable_names="annotations")
        array = np.atleast_1d(content["annotations"])
        pairs = zip(array[name_field], array["class"], strict=True)
        return [[str(name), str(class_number)] for name, class_number in pairs], None
    except Exception as error:  # whatever broken bytes make scipy meet
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise FileFormatError(
            f"{path} has no struct array 'annotations' with the fields {name_field} and class "
            f"({problem}); fetch the file again"
        ) from None
