"""Recall at k: the cut-offs in use, the keys of the figures, and RSUM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

CUTS = (1, 5, 10)


def recall_name(cut: int) -> str:
    """Return the key of R@cut in metrics: ``"r5"`` for 5."""
    return f"r{cut}"


# Keys in metrics.json; validation scores prefix them with the direction.
RECALL_NAMES = tuple(recall_name(cut) for cut in CUTS)


def is_hit(
    ranks: np.ndarray,
    cut: int,
) -> np.ndarray:
    """Tell which queries have a relevant candidate among the first ``cut``: bool ``[n]``.

    Args:
        ranks: int64 ``[n]``: rank of each query's best relevant candidate, 0 being first; -1 for
            a query without any, which is a miss.
        cut: Number of candidates that count, k of R@k.
    """
    return (ranks >= 0) & (ranks < cut)


def recall_at(
    ranks: np.ndarray,
    cut: int,
) -> float:
    """Return the percentage of queries that are hits, as :func:`is_hit` counts them.

    Args:
        ranks: int64 ``[n]``, n at least 1.
        cut: Number of candidates that count, k of R@k.
    """
    # A plain int, since figures are written as JSON.
    n_hits = int(np.count_nonzero(is_hit(ranks, cut)))
    return 100.0 * n_hits / len(ranks)


def recall_sum(directions: Sequence[Mapping[str, Any]]) -> Any:
    """Sum R@1, R@5 and R@10 over all directions; over both cross-modal directions this is RSUM.

    Args:
        directions: Recalls of each direction by :data:`RECALL_NAMES`: numbers, or arrays
            ``[samples]`` of resampled ones.

    Returns:
        The sum, of the same type.
    """
    # The order of summation is fixed, so that RSUM is the same to the bit wherever it is computed.
    total: Any = 0
    for recalls in directions:
        for name in RECALL_NAMES:
            total = total + recalls[name]
    return total
