"""Caption normaliser of the ALBEF / X-VLM / CUSA line of work."""

from __future__ import annotations

import re
from collections.abc import Callable

from cusa.data.errors import CusaError

# Each of these becomes a space, after lower-casing.
_PUNCTUATION = str.maketrans(dict.fromkeys(",.'!?\"()*#:;~-/", " "))

NORMALIZERS = ("albef", "none")


def normalize_caption(caption: str, max_words: int = 64) -> str:
    r"""Lower-case, drop punctuation, cut to ``max_words`` words.

    The rule, in order: lower case; each of ``, . ' ! ? " ( ) * # : ; ~ - /`` becomes a space; ``<person>`` becomes
    ``person``; runs of two or more white-space characters become one space; newlines at the end and spaces at both
    ends go; the first ``max_words`` words, split at single spaces, stay. A single tab or newline inside survives.

    Args:
        caption: The caption as written.
        max_words: Number of words kept.

    Returns:
        The normalised caption.

    Raises:
        CusaError: If nothing is left.
    """
    text = caption.lower().translate(_PUNCTUATION).replace("<person>", "person")
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    text = " ".join(text.split(" ")[:max_words])
    if not text:
        raise CusaError(f"caption {caption!r} is empty once normalised; give it words or remove it")
    return text


def normalizer(name: str) -> Callable[[str], str]:
    """The caption normaliser of that name, ``str -> str``.

    Args:
        name: ``"albef"`` (:func:`normalize_caption`) or ``"none"`` (captions as written; blank ones are refused).

    Raises:
        CusaError: If the name is unknown.
    """
    if name == "albef":
        return normalize_caption
    if name == "none":
        return _as_written
    raise CusaError(f"unknown caption normaliser {name!r}; known: {', '.join(NORMALIZERS)}")


def _as_written(caption: str) -> str:
    if not caption.strip():
        raise CusaError(f"caption {caption!r} is empty; give it words or remove it")
    return caption
