"""Similarities that a matrix of scores holds, of which blocks are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, TypeVar

import numpy as np
import torch

from cusa.data.errors import EmbeddingsError
from cusa.eval.metrics.full_ranking import FullRanking
from cusa.eval.metrics.one_core_threads import one_core_threads
from cusa.eval.metrics.per_query import Rankings
from cusa.eval.metrics.ranks import RankBounds, TwoWayRanking, block_bounds, join_bounds
from cusa.eval.metrics.similarities import Direction, taken

T = TypeVar("T")
BlockWork = Callable[[int, np.ndarray], T]

_BLOCK_BYTES = 64 * 2**20  # most scores that all threads together read at once


class ScoreMatrix:
    """Scores of images with captions, of which blocks are read: the matrix may be memory-mapped.

    Args:
        scores: float or int ``[images, captions]``, of which the errors count rows and columns.
        images: int64: rows of the images; ``None`` for all.
        captions: int64: columns of the captions; ``None`` for all.

    Raises:
        EmbeddingsError: If the scores are not real numbers. Ranking raises it if they are not
            finite.
    """

    def __init__(
        self,
        scores: np.ndarray,
        images: np.ndarray | None = None,
        captions: np.ndarray | None = None,
    ) -> None:
        if scores.dtype.kind not in "fiu":
            raise EmbeddingsError(
                f"scores of {scores.dtype} cannot be ranked; give float16, float32 or float64",
                name="scores",
            )
        self._scores = scores
        self._dtype: np.dtype = np.dtype(np.float64)
        if np.result_type(scores, np.float32) == np.float32:
            self._dtype = np.dtype(np.float32)
        self._rows = images
        self._columns = captions
        self.n_images, self.n_captions = scores.shape
        if images is not None:
            self.n_images = len(images)
        if captions is not None:
            self.n_captions = len(captions)

    def select(
        self,
        images: np.ndarray | None = None,
        captions: np.ndarray | None = None,
    ) -> ScoreMatrix:
        """Select some images and captions by position, ``None`` for all; nothing is read."""
        rows = _composed(self._rows, images)
        return ScoreMatrix(self._scores, rows, _composed(self._columns, captions))

    def rank_both_ways(
        self,
        caption_image: np.ndarray,
    ) -> tuple[RankBounds, RankBounds]:
        """Rank from images to their captions and back, in one pass over the scores."""
        pair_scores = np.full(self.n_captions, np.inf, self._dtype)
        paired = np.flatnonzero(caption_image >= 0)
        pair_rows = _taken_positions(self._rows, caption_image[paired])
        pair_columns = _taken_positions(self._columns, paired)
        pair_scores[paired] = self._scores[pair_rows, pair_columns]
        ranking = TwoWayRanking(pair_scores, caption_image, self.n_images)
        blocks = self._over_blocks("i2t", ranking.rank_block)
        return join_bounds(blocks), ranking.text_bounds()

    def rank_best(
        self,
        direction: Direction,
        indptr: np.ndarray,
        indices: np.ndarray,
    ) -> RankBounds:
        """Rank the best relevant candidate of each query."""

        def rank_block(start: int, scores: np.ndarray) -> RankBounds:
            return block_bounds(start, scores, indptr, indices)

        return join_bounds(self._over_blocks(direction, rank_block))

    def rank_all(
        self,
        direction: Direction,
        indptr: np.ndarray,
        indices: np.ndarray,
        n_relevant: np.ndarray | None = None,
    ) -> Rankings:
        """Compute ranks and precisions of each query."""
        ranking = FullRanking(indptr, indices, n_relevant=n_relevant)
        blocks = self._over_blocks(direction, ranking.rank_block)
        n_candidates = self.n_captions
        if direction == "t2i":
            n_candidates = self.n_images
        return ranking.rankings(blocks, n_candidates)

    def _over_blocks(
        self,
        direction: Direction,
        work: BlockWork[T],
    ) -> list[T]:
        """Apply a function to blocks of queries: its first query, and scores ``[b, m]``."""
        n_queries = self.n_images
        # A query is read with all of its candidates, also those that are not selected.
        n_read = self._scores.shape[1]
        if direction == "t2i":
            n_queries = self.n_captions
            n_read = self._scores.shape[0]
        n_threads = torch.get_num_threads()
        bytes_per_query = max(1, n_read * self._dtype.itemsize)
        block_size = max(1, _BLOCK_BYTES // n_threads // bytes_per_query)

        def work_on_block(start: int) -> T:
            stop = min(start + block_size, n_queries)
            queries = np.arange(start, stop)
            if direction == "i2t":
                scores = self._read(queries, None)
            else:
                scores = np.ascontiguousarray(self._read(None, queries).T)
            return work(start, scores)

        starts = range(0, n_queries, block_size)
        with one_core_threads(n_threads) as pool:
            return list(pool.map(work_on_block, starts))

    def _read(
        self,
        images: np.ndarray | None,
        captions: np.ndarray | None,
    ) -> np.ndarray:
        """Read the scores of some images with some captions, either of which are all."""
        rows = _composed(self._rows, images)
        columns = _composed(self._columns, captions)
        # The smaller selection first, so that the copy between is small, too.
        if images is not None:
            block = taken(taken(self._scores, rows), columns, axis=1)
        else:
            block = taken(taken(self._scores, columns, axis=1), rows)
        block = block.astype(self._dtype)
        # NaN compares as "not ahead" and would look like a perfect rank.
        is_finite = np.isfinite(block)
        if not is_finite.all():
            first_row, first_column = np.argwhere(~is_finite)[0]
            row = _taken_positions(rows, first_row)
            column = _taken_positions(columns, first_column)
            _refuse_not_finite(int(row), int(column))
        return block


def _taken_positions(
    positions: np.ndarray | None,
    selected: np.ndarray,
) -> np.ndarray:
    """Return the positions of selected ones; without positions, all are in their place."""
    if positions is None:
        return selected
    return positions[selected]


def _composed(
    positions: np.ndarray | None,
    selected: np.ndarray | None,
) -> np.ndarray | None:
    if selected is None:
        return positions
    return _taken_positions(positions, selected)


def _refuse_not_finite(row: int, column: int) -> NoReturn:
    raise EmbeddingsError(
        f"the score in row {row:,}, column {column:,} (from 0) is NaN or infinite and cannot be "
        "ranked; give pairs that were not scored a number below all others",
        name="scores",
        location=f"row {row}, column {column}",
    )
