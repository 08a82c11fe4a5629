"""Similarities of images and captions, whose ranks are the same whatever gives them."""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import numpy as np

from cusa.eval.metrics.full_ranking import rank_all
from cusa.eval.metrics.per_query import Rankings
from cusa.eval.metrics.ranks import (
    RankBounds,
    rank_bounds,
    two_way_rank_bounds,
)

Direction = Literal["i2t", "t2i"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


class Similarities(Protocol):
    """Similarities of images with captions.

    Relevant candidates of a direction are ``indices[indptr[q]:indptr[q + 1]]`` for query q.

    Attributes:
        n_images: Number of images.
        n_captions: Number of captions.
    """

    n_images: int
    n_captions: int

    def select(
        self,
        images: np.ndarray | None = None,
        captions: np.ndarray | None = None,
    ) -> Similarities:
        """Select some images and captions by position; ``None`` for all."""
        ...

    def rank_both_ways(
        self,
        caption_image: np.ndarray,
    ) -> tuple[RankBounds, RankBounds]:
        """Rank from images to their captions and back.

        Args:
            caption_image: int64 ``[n_captions]``: index of each caption's image, -1 for none.
        """
        ...

    def rank_best(
        self,
        direction: Direction,
        indptr: np.ndarray,
        indices: np.ndarray,
    ) -> RankBounds:
        """Rank the best relevant candidate of each query."""
        ...

    def rank_all(
        self,
        direction: Direction,
        indptr: np.ndarray,
        indices: np.ndarray,
        n_relevant: np.ndarray | None = None,
    ) -> Rankings:
        """Compute what :func:`cusa.eval.metrics.full_ranking.rank_all` does."""
        ...


class DotProducts:
    """Dot products of embeddings.

    Args:
        images: float ``[n_images, d]``.
        texts: float ``[n_captions, d]``.
    """

    def __init__(self, images: np.ndarray, texts: np.ndarray) -> None:
        self.n_images = len(images)
        self.n_captions = len(texts)
        self._images = images
        self._texts = texts

    def select(
        self,
        images: np.ndarray | None = None,
        captions: np.ndarray | None = None,
    ) -> DotProducts:
        """Select some images and captions by position; ``None`` for all."""
        return DotProducts(taken(self._images, images), taken(self._texts, captions))

    def rank_both_ways(
        self,
        caption_image: np.ndarray,
    ) -> tuple[RankBounds, RankBounds]:
        """Rank from images to their captions and back, in one pass over the products."""
        return two_way_rank_bounds(self._images, self._texts, caption_image)

    def rank_best(
        self,
        direction: Direction,
        indptr: np.ndarray,
        indices: np.ndarray,
    ) -> RankBounds:
        """Rank the best relevant candidate of each query."""
        return rank_bounds(*self._sides(direction), indptr, indices)

    def rank_all(
        self,
        direction: Direction,
        indptr: np.ndarray,
        indices: np.ndarray,
        n_relevant: np.ndarray | None = None,
    ) -> Rankings:
        """Compute ranks and precisions of each query."""
        return rank_all(*self._sides(direction), indptr, indices, n_relevant=n_relevant)

    def _sides(
        self,
        direction: Direction,
    ) -> tuple[np.ndarray, np.ndarray]:
        if direction == "i2t":
            return self._images, self._texts
        return self._texts, self._images


def taken(
    array: np.ndarray,
    positions: np.ndarray | None,
    axis: int = 0,
) -> np.ndarray:
    """Select rows of an array, or items along another axis, by position; ``None`` for all."""
    if positions is None:
        return array
    return array.take(positions, axis)
