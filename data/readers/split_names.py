"""The names that annotation files give to splits."""

from __future__ import annotations

import re
from pathlib import Path

from cusa.data.errors import DataError
from cusa.data.parsing import described
from cusa.data.records import SPLITS

SPLIT_ALIASES = {"restval": "train", "valid": "val", "validation": "val", "dev": "val"}


def canonical_split(name: str, path: Path | None = None, location: str = "") -> str:
    """Return ``"train"``, ``"val"`` or ``"test"`` for any name of it, such as ``"restval"``.

    Args:
        name: The name.
        path: The file that has it, for the message.
        location: Where in it.

    Raises:
        DataError: If it is no split's name.
    """
    split = split_by_alias(name)
    if split is None:
        legal = f"legal: {', '.join(SPLITS)} (or {', '.join(SPLIT_ALIASES)})"
        message = f"unknown split {described(name)}; {legal}"
        if path is not None or location:
            subject = f"{path or ''} {location}".strip()
            message = f"{subject}: {message}"
        raise DataError(message, path=path, location=location, name=name)
    return split


def split_by_alias(name: str) -> str | None:
    """Return the split that a name stands for, in any case, if any."""
    name = name.lower()
    split = SPLIT_ALIASES.get(name, name)
    if split in SPLITS:
        return split
    return None


def split_in_file_name(file_stem: str) -> str | None:
    """Return the first split that a file's name has as a word.

    Also with a year: ``captions_val2017``.
    """
    # Only letters make words here, so a year at the end does not matter.
    words = re.findall(r"[a-z]+", file_stem, re.IGNORECASE)
    return next(filter(None, map(split_by_alias, words)), None)
