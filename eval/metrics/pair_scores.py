"""Similarity of each caption with its image, by itself: equal pairs get one value, to the bit."""

from __future__ import annotations

import numpy as np
import torch

from cusa.eval.metrics.caption_images import cross_modal_relevance
from cusa.eval.metrics.equal_rows import (
    column_sharing,
    first_equal_row,
)

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
        self._first_text = first_equal_row(texts)
        self._share_columns = column_sharing(self._first_text)

        paired = np.flatnonzero(caption_image >= 0)
        first_image = np.full(len(texts), -1)  # of each caption: the first that equals its own
        first_image[paired] = self._first_image[caption_image[paired]]

        # Number the pairs, equal ones alike, and compute the similarity of one of each number.
        first_pairs = first_image[paired] * len(texts)
        pair_numbers = first_pairs + self._first_text[paired]
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

        i2t, _ = cross_modal_relevance(first_image, len(images))
        self._bounds, self._captions = i2t
        n_images = len(images)
        n_equal = np.bincount(self._first_image, minlength=n_images)
        self._has_equals = n_equal[self._first_image] > 1

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
        images = np.arange(start, start + len(scores))
        has_equals = self._has_equals[images]

        unique_images = images[~has_equals]
        starts = self._bounds[unique_images]
        n_captions = self._bounds[unique_images + 1] - starts
        rows = np.repeat(unique_images - start, n_captions)
        captions = self._captions_of(unique_images, n_captions)
        self._write(scores, rows, captions)

        # One by one: if all images are equal, each has the captions of all.
        for image in images[has_equals].tolist():
            first_image = self._first_image[image]
            first, stop = self._bounds[first_image : first_image + 2]
            captions = self._captions[first:stop]
            rows = np.full(len(captions), image - start)
            self._write(scores, rows, captions)
        self._share_columns(scores)

    def _captions_of(
        self,
        images: np.ndarray,
        n_captions: np.ndarray,
    ) -> np.ndarray:
        """Return the captions of several images, one image after the other: int64 ``[p]``."""
        n_before = np.cumsum(n_captions) - n_captions
        starts = self._bounds[images] - n_before
        offsets = np.arange(n_captions.sum())
        positions = np.repeat(starts, n_captions) + offsets
        return self._captions[positions]

    def _write(
        self,
        scores: np.ndarray,
        rows: np.ndarray,
        captions: np.ndarray,
    ) -> None:
        columns = self._first_text[captions]
        scores[rows, columns] = self.scores[captions]


def _pair_products(
    images: np.ndarray,
    image_indices: np.ndarray,
    texts: np.ndarray,
) -> np.ndarray:
    """Compute the dot product of each text with its image, rounded as in a product of matrices.

    Args:
        images: float32 or float64 ``[n, d]``.
        image_indices: int64 ``[p]``: index of each text's image.
        texts: Same dtype as the images, ``[p, d]``.

    Returns:
        Same dtype, ``[p]``.
    """
    distinct, row_numbers = np.unique(image_indices, return_inverse=True)
    image_rows = torch.from_numpy(images[distinct])
    text_rows = torch.from_numpy(texts)
    products = torch.mm(image_rows, text_rows.T).numpy()
    return products[row_numbers, np.arange(len(texts))]
