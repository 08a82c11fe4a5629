"""Similarity of each caption with its image, by itself: equal pairs get one value, to the bit."""

from __future__ import annotations

import numpy as np
import torch

from cusa.eval.metrics.caption_images import cross_modal_relevance
from cusa.eval.metrics.equal_rows import copied_columns, first_equal_row

# The products of these pairs' captions with all their images are few beside those of all pairs.
_PAIRS_AT_ONCE = 512


class PairScores:
    """Similarity of each caption with its image: one for equal captions of equal images.

    These are computed by themselves, once for all equal pairs, and take the place of what the large
    product gives: a caption's column lies in many blocks of it, in each of which a BLAS may give
    equal images other values.

    Args:
        images: float32 or float64 ``[n, d]``.
        texts: Same dtype, ``[m, d]``.
        caption_image: int64 ``[m]``: index of each caption's image, -1 for none.

    Attributes:
        scores: Same dtype, ``[m]``: similarity of each caption with its image; infinite for a
            caption without one.
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
        first_image = np.full(len(texts), -1)  # of each caption: the first that equals its own
        first_image[paired] = self._first_image[caption_image[paired]]

        # Number the pairs, equal ones alike, and compute the similarity of one of each number.
        pair_numbers = first_image[paired] * len(texts) + first_text[paired]
        _, chosen, copies = np.unique(
            pair_numbers,
            return_index=True,
            return_inverse=True,
        )
        captions = paired[chosen]
        distinct_scores = np.empty(len(captions), images.dtype)
        for start in range(0, len(captions), _PAIRS_AT_ONCE):
            block = captions[start : start + _PAIRS_AT_ONCE]
            products = _pair_products(images, first_image[block], texts[block])
            distinct_scores[start : start + len(block)] = products
        self.scores = np.full(len(texts), np.inf, images.dtype)
        self.scores[paired] = distinct_scores[copies]

        # Column and similarity of each image's captions, one image after the other.
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
        """Write them into a block of products: to each image the captions of all equal images.

        Args:
            start: The block's first image.
            scores: ``[b, m]``, of ``b`` images with all captions; overwritten.
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
    """Compute the dot product of each text with its image, rounded as in a product of matrices."""
    distinct, row_numbers = np.unique(image_indices, return_inverse=True)
    image_rows = torch.from_numpy(images[distinct])
    text_rows = torch.from_numpy(texts)
    products = torch.mm(image_rows, text_rows.T).numpy()
    return products[row_numbers, np.arange(len(texts))]
