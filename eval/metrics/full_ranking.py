"""Ranks and precisions of queries in full rankings of their candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cusa.eval.metrics.per_query import Bounds, Rankings
from cusa.eval.metrics.precisions import block_precisions
from cusa.eval.metrics.ranks import RankBounds, block_bounds, join_bounds
from cusa.eval.metrics.similarity_blocks import over_blocks


def rank_all(
    queries: np.ndarray,
    candidates: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    exclude: np.ndarray | None = None,
    n_relevant: np.ndarray | None = None,
) -> Rankings:
    """Compute rank, R-Precision and average precision (Musgrave et al. 2020, section 4) per query.

    Args:
        queries: float ``[n, d]``; this and the next four arguments are those of
            :func:`cusa.eval.metrics.ranks.rank_bounds`.
        candidates: float ``[m, d]``.
        indptr: int64 ``[n + 1]``.
        indices: int64, without duplicates within a query.
        exclude: int64 ``[n]`` or ``None``.
        n_relevant: int64 ``[n]``: R of each query, if relevant items exist that are not among the
            candidates; by default the number of its relevant candidates.

    Raises:
        EmbeddingsError: If an embedding is not finite, or its dot products cannot be ranked.
    """
    ranking = FullRanking(indptr, indices, exclude, n_relevant)
    blocks = over_blocks(ranking.rank_block, queries, candidates)
    n_candidates = max(0, len(candidates) - int(exclude is not None))
    return ranking.rankings(blocks, n_candidates)


class FullRanking:
    """Ranks and precisions of queries, from blocks of similarities.

    Args:
        indptr: int64 ``[n + 1]``; all arguments are those of :func:`rank_all`.
        indices: int64.
        exclude: int64 ``[n]`` or ``None``.
        n_relevant: int64 ``[n]`` or ``None``.
    """

    def __init__(
        self,
        indptr: np.ndarray,
        indices: np.ndarray,
        exclude: np.ndarray | None = None,
        n_relevant: np.ndarray | None = None,
    ) -> None:
        self._indptr = indptr
        self._indices = indices
        self._exclude = exclude
        self._depths = np.diff(indptr) if n_relevant is None else n_relevant
        self._precisions = np.zeros((4, len(indptr) - 1))

    def rank_block(self, start: int, scores: np.ndarray) -> RankBounds:
        """Rank a block of queries; may be called from several threads.

        Args:
            start: The block's first query.
            scores: float ``[b, m]``, finite; may be overwritten.
        """
        # Ranks come first, since block_bounds removes the query itself from the scores.
        best = block_bounds(start, scores, self._indptr, self._indices, self._exclude)
        stop = start + len(scores)
        self._precisions[:, start:stop] = block_precisions(
            scores, self._indptr[start : stop + 1], self._indices, self._depths[start:stop]
        )
        return best

    def rankings(self, blocks: Sequence[RankBounds], n_candidates: int) -> Rankings:
        """Return the rankings of all queries, whose blocks are ranked.

        Args:
            blocks: What :meth:`rank_block` returned, in the order of the queries.
            n_candidates: Number of candidates of each query.
        """
        r_precision = Bounds(*self._precisions[:2])
        average_precision = Bounds(*self._precisions[2:])
        return Rankings(join_bounds(blocks), n_candidates, r_precision, average_precision)
