"""Exact ranks by similarity; the trainer's validation and cusa-eval share them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cusa.eval.metrics.ahead_counts import AheadCounts, count_ahead
from cusa.eval.metrics.caption_images import checked_caption_image, cross_modal_relevance
from cusa.eval.metrics.pair_scores import PairScores
from cusa.eval.metrics.similarity_blocks import (
    over_blocks,
    over_products,
    rankable_rows,
)


class RankBounds(NamedTuple):
    """Ranks of each query's best relevant candidate, 0 being first.

    Both are int64 ``[n]``, -1 for a query that has no relevant candidate.

    Attributes:
        optimistic: Number of irrelevant candidates that are more similar: ties count for the query.
        pessimistic: Number of irrelevant candidates that are at least as similar: ties count
            against the query.
    """

    optimistic: np.ndarray
    pessimistic: np.ndarray


def rank_bounds(
    queries: np.ndarray,
    candidates: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    exclude: np.ndarray | None = None,
) -> RankBounds:
    """Rank the best relevant candidate of each query.

    Args:
        queries: float ``[n, d]``; similarities are dot products, in float64 if either array is
            float64, else in float32.
        candidates: float ``[m, d]``; equal candidates get bit for bit the same similarity.
        indptr: int64 ``[n + 1]``; query i's relevant candidates are
            ``indices[indptr[i]:indptr[i + 1]]``.
        indices: int64 candidate rows.
        exclude: int64 ``[n]``: for each query, the candidate that is the query itself and does not
            count; -1 for none.

    Raises:
        EmbeddingsError: As :func:`cusa.eval.metrics.similarity_blocks.over_blocks`.
    """

    def rank_block(
        start: int,
        scores: np.ndarray,
    ) -> RankBounds:
        return block_bounds(start, scores, indptr, indices, exclude)

    return join_bounds(over_blocks(rank_block, queries, candidates))


def two_way_rank_bounds(
    images: np.ndarray,
    texts: np.ndarray,
    caption_image: np.ndarray,
) -> tuple[RankBounds, RankBounds]:
    """Rank from images to their captions and back, in one pass over the similarities.

    Args:
        images: float ``[n, d]``; similarities are dot products, in float64 if either array is
            float64, else in float32. Equal images get bit for bit the same similarity to a caption,
            and equal captions to an image.
        texts: float ``[m, d]``.
        caption_image: int ``[m]``: index of each caption's image, -1 for none.

    Returns:
        Ranks of each image's best caption, and of each caption's image.

    Raises:
        EmbeddingsError: As :func:`cusa.eval.metrics.similarity_blocks.over_blocks`; also if
            ``caption_image`` has another length, or holds anything but indices of images.
    """
    caption_image = checked_caption_image(caption_image, len(images), len(texts))
    images, texts = rankable_rows(images, texts)
    pairs = PairScores(images, texts, caption_image)
    ranking = TwoWayRanking(pairs.scores, caption_image, len(images))

    def rank_block(
        start: int,
        scores: np.ndarray,
    ) -> RankBounds:
        pairs.put(start, scores)
        return ranking.rank_block(start, scores)

    blocks = over_products(rank_block, images, texts)
    return join_bounds(blocks), ranking.text_bounds()


class TwoWayRanking:
    """Ranks from images to their captions and back, from blocks of similarities.

    Args:
        pair_scores: float ``[m]``: similarity of each caption with its image; infinite for a
            caption without one.
        caption_image: int64 ``[m]``: index of each caption's image, -1 for none.
        n_images: Number of images.
    """

    def __init__(
        self,
        pair_scores: np.ndarray,
        caption_image: np.ndarray,
        n_images: int,
    ) -> None:
        self._pair_scores = pair_scores
        self._caption_image = caption_image
        i2t, _ = cross_modal_relevance(caption_image, n_images)
        self._bounds, self._captions_by_image = i2t
        # Images ahead of each caption's own, summed over the blocks.
        self._images_ahead = AheadCounts.zeros(len(pair_scores))
        self._images_ahead_lock = threading.Lock()

    def rank_block(
        self,
        start: int,
        scores: np.ndarray,
    ) -> RankBounds:
        """Rank the best caption of each image of a block; may be called from several threads.

        Args:
            start: The block's first image.
            scores: float ``[b, m]``, in the dtype of ``pair_scores``, and equal to these where they
                are of the same pair.
        """
        stop = start + len(scores)
        captions = self._captions_by_image[self._bounds[start] : self._bounds[stop]]
        rows = self._caption_image[captions] - start
        pair_scores = self._pair_scores[captions]
        best = _best_by_row(pair_scores, rows, len(scores))
        by_row, by_column = count_ahead(scores, best, self._pair_scores)
        by_column.reaching[captions] -= 1  # a caption's own image is not ahead of itself
        with self._images_ahead_lock:
            self._images_ahead.above[:] += by_column.above
            self._images_ahead.reaching[:] += by_column.reaching
        n_relevant = np.diff(self._bounds[start : stop + 1])
        return _bounds_of_best(by_row, best, rows, pair_scores, n_relevant)

    def text_bounds(self) -> RankBounds:
        """Return the rank of each caption's image, once all blocks are ranked."""
        has_image = self._caption_image >= 0
        return RankBounds(
            np.where(has_image, self._images_ahead.above, -1),
            np.where(has_image, self._images_ahead.reaching, -1),
        )


def block_bounds(
    start: int,
    scores: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    exclude: np.ndarray | None = None,
) -> RankBounds:
    """Rank the best relevant candidate of each query of a block.

    Args:
        start: The block's first query.
        scores: float ``[b, m]``, finite; overwritten where ``exclude`` names an entry.
        indptr: int64 ``[n + 1]``, of all queries.
        indices: int64 candidate rows.
        exclude: int64 ``[n]`` or ``None``.

    Returns:
        Ranks of the block's queries, int64 ``[b]`` each.
    """
    stop = start + len(scores)
    # A score of minus infinity puts the query itself behind all others.
    if exclude is not None:
        own_positions = exclude[start:stop]
        excluding = np.flatnonzero(own_positions >= 0)
        scores[excluding, own_positions[excluding]] = -np.inf
    indptr = indptr[start : stop + 1]
    n_relevant = np.diff(indptr)
    rows = np.repeat(np.arange(len(scores)), n_relevant)
    columns = indices[indptr[0] : indptr[-1]]
    relevant_scores = scores[rows, columns]
    best = _best_by_row(relevant_scores, rows, len(scores))
    by_row, _ = count_ahead(scores, best, None)
    return _bounds_of_best(by_row, best, rows, relevant_scores, n_relevant)


def join_bounds(blocks: Sequence[RankBounds]) -> RankBounds:
    """Concatenate the ranks of consecutive blocks of queries, of which there may be none."""
    no_ranks = np.zeros(0, np.int64)
    optimistic, pessimistic = zip(
        RankBounds(no_ranks, no_ranks),
        *blocks,
        strict=True,
    )
    return RankBounds(
        np.concatenate(optimistic),
        np.concatenate(pessimistic),
    )


def _best_by_row(
    relevant_scores: np.ndarray,
    rows: np.ndarray,
    n_rows: int,
) -> np.ndarray:
    """Return each row's greatest relevant score, ``[n_rows]``; minus infinity without any."""
    best = np.full(n_rows, -np.inf, relevant_scores.dtype)
    np.maximum.at(best, rows, relevant_scores)
    return best


def _bounds_of_best(
    by_row: AheadCounts,
    best: np.ndarray,
    rows: np.ndarray,
    relevant_scores: np.ndarray,
    n_relevant: np.ndarray,
) -> RankBounds:
    """Turn counts of all candidates ahead of the best relevant one into its rank.

    Args:
        by_row: Counts of each row's scores above, and at or above, its best relevant score.
        best: ``[n]``: that score.
        rows: int64 ``[p]``: row of each relevant pair.
        relevant_scores: ``[p]``: its score.
        n_relevant: int64 ``[n]``: relevant candidates of each row; rows without any have rank -1.
    """
    reaching_best = relevant_scores >= best[rows]
    relevant_reaching = np.bincount(rows[reaching_best], minlength=len(best))
    has_relevant = n_relevant > 0
    return RankBounds(
        np.where(has_relevant, by_row.above, -1),
        np.where(has_relevant, by_row.reaching - relevant_reaching, -1),
    )
