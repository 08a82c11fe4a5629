"""Recall at k in one place: its cuts, the names under which figures are kept, and RSUM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

CUTS = (1, 5, 10)


def recall_name(cut: int) -> str:
    """Return the key of R@cut in metrics: ``"r5"`` for 5."""
    return f"r{cut}"


# The keys of metrics.json, and those of validation after their direction.
RECALL_NAMES = tuple(recall_name(cut) for cut in CUTS)


def is_hit(
    ranks: np.ndarray,
    cut: int,
) -> np.ndarray:
    """Tell which queries have a relevant candidate among the first ``cut``: bool ``[n]``.

    Args:
        ranks: int64 ``[n]``: rank of each query's best relevant candidate, 0 being first; -1 for
            a query without any, which is a miss.
        cut: Number of candidates that are looked at.
    """
    return (ranks >= 0) & (ranks < cut)


def recall_at(
    ranks: np.ndarray,
    cut: int,
) -> float:
    """Return the percentage of queries that are hits, as :func:`is_hit` counts them.

    Args:
        ranks: int64 ``[n]``, n at least 1.
        cut: Number of candidates that are looked at.
    """
    # A plain number: figures are written as JSON.
    n_hits = int(np.count_nonzero(is_hit(ranks, cut)))
    return 100.0 * n_hits / len(ranks)


def recall_sum(directions: Sequence[Mapping[str, Any]]) -> Any:
    """Add up R@1, R@5 and R@10 of all directions; of both cross-modal directions this is RSUM.

    Args:
        directions: Recalls of each direction by :data:`RECALL_NAMES`: numbers, or arrays of
            resampled ones.
    """
    # One after the other from zero: RSUM is the same to the bit wherever it is computed.
    total: Any = 0
    for recalls in directions:
        for name in RECALL_NAMES:
            total = total + recalls[name]
    return total
