"""The names that annotation files give to splits."""

from __future__ import annotations

import re
from pathlib import Path

from cusa.data.errors import DataError
from cusa.data.parsing import described
from cusa.data.records import SPLITS

SPLIT_ALIASES = {"restval": "train", "valid": "val", "validation": "val", "dev": "val"}


def canonical_split(name: str, path: Path | None = None, location: str = "") -> str:
    """Return ``"train"``, ``"val"`` or ``"test"`` for a split's name or alias (``"restval"``).

    Args:
        name: The name or alias.
        path: The file that has the name, for the message.
        location: Where in the file the name is, for the message.

    Raises:
        DataError: If there is no such split.
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
    """Return the split with this name or alias, or ``None``."""
    split = SPLIT_ALIASES.get(name, name)
    if split in SPLITS:
        return split
    return None


def split_in_file_name(file_stem: str) -> str | None:
    """Return the first split that a file's name contains as a word, or ``None``.

    A word may be followed by a year: ``captions_val2017``.
    """
    # Words consist of letters only here, so a year ends one.
    words = re.findall(r"[a-z]+", file_stem.lower())
    return next(filter(None, map(split_by_alias, words)), None)
