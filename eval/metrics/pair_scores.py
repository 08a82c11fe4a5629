"""Similarity of each caption with its image, bit for bit the same for equal pairs."""

from __future__ import annotations

import numpy as np
import torch

from cusa.eval.metrics.caption_images import cross_modal_relevance
from cusa.eval.metrics.equal_rows import copied_columns, first_equal_row

# A block computes the products of all its captions with all its images, and needs the diagonal
# alone; blocks of this size are a small part of all products.
_PAIRS_AT_ONCE = 512


class PairScores:
    """Similarity of each caption with its image, computed once for all equal pairs.

    These scores replace those of the large matrix product: a caption's column spans many blocks of
    it, and a BLAS may round the scores of equal images differently from block to block.

    Args:
        images: float32 or float64 ``[n, d]``.
        texts: ``[m, d]``, in the dtype of ``images``.
        caption_image: int64 ``[m]``: index of each caption's image, -1 for none.

    Attributes:
        scores: ``[m]``, in the same dtype: similarity of each caption with its image; infinite for
            a caption without one.
    """

    def __init__(
        self,
        images: np.ndarray,
        texts: np.ndarray,
        caption_image: np.ndarray,
    ) -> None:
        self._first_image = first_equal_row(images)
        first_text = first_equal_row(texts)
        self._copies, self._originals = copied_columns(first_text)

        paired = np.flatnonzero(caption_image >= 0)
        # The first image that equals each caption's own.
        first_image = np.full(len(texts), -1)
        first_image[paired] = self._first_image[caption_image[paired]]

        # Equal pairs have equal numbers; one pair of each number is computed.
        pair_numbers = first_image[paired] * len(texts) + first_text[paired]
        _, representatives, distinct_of_pair = np.unique(
            pair_numbers,
            return_index=True,
            return_inverse=True,
        )
        captions = paired[representatives]
        distinct_scores = np.empty(len(captions), images.dtype)
        for start in range(0, len(captions), _PAIRS_AT_ONCE):
            block = captions[start : start + _PAIRS_AT_ONCE]
            products = _pair_products(images, first_image[block], texts[block])
            distinct_scores[start : start + len(block)] = products
        self.scores = np.full(len(texts), np.inf, images.dtype)
        self.scores[paired] = distinct_scores[distinct_of_pair]

        # Columns and scores of the captions of each image, one image after the other.
        i2t, _ = cross_modal_relevance(first_image, len(images))
        bounds, captions = i2t
        self._bounds: list[int] = bounds.tolist()
        self._columns = first_text[captions]
        self._column_scores = self.scores[captions]

    def put(
        self,
        start: int,
        scores: np.ndarray,
    ) -> None:
        """Write the scores into a block of products: for each image, the captions of its equals.

        Args:
            start: The block's first image.
            scores: ``[b, m]``, products of ``b`` images with all captions; overwritten.
        """
        first_images = self._first_image[start : start + len(scores)]
        for row, image in enumerate(first_images.tolist()):
            first, stop = self._bounds[image : image + 2]
            captions = slice(first, stop)
            columns = self._columns[captions]
            scores[row, columns] = self._column_scores[captions]
        scores[:, self._copies] = scores[:, self._originals]


def _pair_products(
    images: np.ndarray,
    image_indices: np.ndarray,
    texts: np.ndarray,
) -> np.ndarray:
    """Compute the dot product of each text with its image, rounded as a matrix product rounds."""
    distinct, row_numbers = np.unique(image_indices, return_inverse=True)
    image_rows = torch.from_numpy(images[distinct])
    text_rows = torch.from_numpy(texts)
    products = torch.mm(image_rows, text_rows.T).numpy()
    return products[row_numbers, np.arange(len(texts))]
