"""Texts that occur more than once in a long column, found by their hashes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import compress

import numpy as np

from cusa.data.texts import BLOCK, Texts


def text_hashes(texts: Iterable[str]) -> np.ndarray:
    """Return a hash of each text, int64 ``[n]``; it differs from process to process."""
    return np.fromiter(map(hash, texts), np.int64)


def first_rows(
    texts: Texts,
    hashes: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows whose texts occur before or after, and the first row with the text of each.

    Memory is needed for the hashes, and for the rows that are found.

    Args:
        texts: The column.
        hashes: int64 ``[n]``, a hash of each text: equal for equal texts. Different texts may have
            the same.

    Returns:
        Rows, int64 ``[m]``, ascending, and int64 ``[m]``: the first row with the same text as each.
        They include all texts that occur more than once, and may include others.
    """
    rows = rows_of_repeated_hashes(hashes)
    if not len(rows):
        return rows, rows
    order = np.argsort(hashes[rows], kind="stable")
    ordered_hashes = hashes[rows[order]]
    begins_group = np.ones(len(rows), bool)
    begins_group[1:] = ordered_hashes[1:] != ordered_hashes[:-1]
    groups = np.cumsum(begins_group) - 1
    rows_in_order = rows[order]
    firsts = np.empty_like(rows)
    firsts[order] = rows_in_order[begins_group][groups]
    _separate_texts(texts, rows, firsts)
    return rows, firsts


def rows_of_repeated_hashes(hashes: np.ndarray) -> np.ndarray:
    """Return the rows of hashes that occur more than once: int64 ``[m]``, ascending."""
    ascending_hashes = np.sort(hashes)
    is_repeated = ascending_hashes[1:] == ascending_hashes[:-1]
    repeated_hashes = np.unique(ascending_hashes[1:][is_repeated])
    # There may be millions.
    del ascending_hashes, is_repeated
    return np.flatnonzero(_hashes_are_among(hashes, repeated_hashes))


def _separate_texts(
    texts: Texts,
    rows: np.ndarray,
    firsts: np.ndarray,
) -> None:
    """Change the first row of each text that only has the same hash as another one."""
    # By text, as soon as one differs from the first with its hash.
    row_of_text: dict[bytes, int] = {}
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        row_texts = texts.encoded(rows[block])
        first_texts = texts.encoded(firsts[block])
        pairs = zip(row_texts, first_texts, strict=True)
        for number, (text, first_text) in enumerate(pairs, start):
            if text != first_text:
                row = int(rows[number])
                firsts[number] = row_of_text.setdefault(bytes(text), row)


def shared_text(texts: Texts, stored_texts: Texts) -> str | None:
    """Return the first text that another column has, too; ``None`` if there is none."""
    hashes = np.sort(text_hashes(texts))
    candidates: set[str] = set()
    for start in range(0, len(stored_texts), BLOCK):
        block = stored_texts[start : start + BLOCK]
        candidates.update(compress(block, are_among(block, hashes)))
    # Most columns share none, and need not be read again.
    if not candidates:
        return None
    return next(filter(candidates.__contains__, texts), None)


def are_among(texts: Iterable[str], ascending_hashes: np.ndarray) -> np.ndarray:
    """Return whether each text has one of the hashes: bool ``[n]``."""
    return _hashes_are_among(text_hashes(texts), ascending_hashes)


def _hashes_are_among(hashes: np.ndarray, ascending_hashes: np.ndarray) -> np.ndarray:
    if not len(ascending_hashes):
        return np.zeros(len(hashes), bool)
    positions = np.searchsorted(ascending_hashes, hashes)
    # Greater hashes than all are compared with the last.
    np.minimum(positions, len(ascending_hashes) - 1, out=positions)
    return ascending_hashes[positions] == hashes
