"""The caption normaliser of the ALBEF / X-VLM / CUSA line of work."""

from __future__ import annotations

import re
from collections.abc import Callable

from cusa.data.errors import DataError, SettingError

# Each of these becomes a space, after lower-casing.
_PUNCTUATION = str.maketrans(dict.fromkeys(",.'!?\"()*#:;~-/", " "))

NORMALIZERS = ("albef", "none")
MAX_WORDS = 64
# Characters of a caption that a message quotes.
_MAX_SHOWN = 60


def normalize_caption(caption: str, max_words: int = MAX_WORDS) -> str:
    r"""Lower-case a caption, drop its punctuation and cut it to ``max_words`` words.

    The rule, in order: lower case; each of ``, . ' ! ? " ( ) * # : ; ~ - /`` becomes a space;
    ``<person>`` becomes ``person``; runs of two or more white-space characters become one space;
    newlines at the end and spaces at both ends are stripped; the first ``max_words`` words, split
    at single spaces, are kept. A single tab or newline inside survives.

    Args:
        caption: The caption as written.
        max_words: Number of words to keep.

    Returns:
        The normalised caption.

    Raises:
        DataError: If nothing is left.
    """
    text = " ".join(_words(caption)[:max_words])
    if not text:
        message = (
            f"caption {shown_caption(caption)} is empty once normalised; give it words or remove it"
        )
        raise DataError(message, name="caption")
    return text


def _words(caption: str) -> list[str]:
    text = caption.lower().translate(_PUNCTUATION).replace("<person>", "person")
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return text.split(" ")


def is_cut(caption: str, normalizer_name: str) -> bool:
    """Return whether a normaliser drops words of a caption, as it has more than 64.

    Args:
        caption: The caption as written.
        normalizer_name: Name of the caption normaliser.
    """
    # So many words, with a space between any two, need more characters than that.
    if normalizer_name != "albef" or len(caption) <= 2 * MAX_WORDS:
        return False
    return len(_words(caption)) > MAX_WORDS


def normalizer(name: str) -> Callable[[str], str]:
    """Return a caption normaliser by its name, ``str -> str``.

    Args:
        name: ``"albef"`` (:func:`normalize_caption`) or ``"none"`` (captions as written; blank ones
            are refused).

    Raises:
        SettingError: If the name is unknown.
    """
    if name not in NORMALIZERS:
        message = f"unknown caption normaliser {name!r}; known: {', '.join(NORMALIZERS)}"
        raise SettingError(message, name="normalizer")
    return normalize_caption if name == "albef" else _as_written


def _as_written(caption: str) -> str:
    if not caption.strip():
        message = f"caption {shown_caption(caption)} is empty; give it words or remove it"
        raise DataError(message, name="caption")
    return caption


def shown_caption(caption: str) -> str:
    """Quote a caption for a message, shortened if it is long."""
    if len(caption) <= _MAX_SHOWN:
        return repr(caption)
    return f"{caption[:_MAX_SHOWN]!r}…"
