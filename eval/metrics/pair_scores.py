"""Similarity of each caption with its image, by itself: equal pairs get one value, to the bit."""

from __future__ import annotations

import numpy as np
import torch

from cusa.eval.metrics.caption_images import cross_modal_relevance
from cusa.eval.metrics.equal_rows import column_sharing, first_equal_row

_PAIRS_AT_ONCE = 512  # their products with all images of these pairs are few beside the large one


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
        scores: Same dtype, ``[m]``: similarity of each caption with its image; infinite without one.
    """

    def __init__(self, images: np.ndarray, texts: np.ndarray, caption_image: np.ndarray) -> None:
        paired = np.flatnonzero(caption_image >= 0)
        self._first_image, self._first_text = first_equal_row(images), first_equal_row(texts)
        self._share_columns = column_sharing(self._first_text)
        image = np.full(len(texts), -1)  # of each caption: the first that equals its own
        image[paired] = self._first_image[caption_image[paired]]
        pair_number = image[paired] * len(texts) + self._first_text[paired]
        _, chosen, copies = np.unique(pair_number, return_index=True, return_inverse=True)
        captions = paired[chosen]
        scores = np.empty(len(captions), images.dtype)
        for start in range(0, len(captions), _PAIRS_AT_ONCE):
            part = captions[start : start + _PAIRS_AT_ONCE]
            scores[start : start + len(part)] = _pair_products(images, image[part], texts[part])
        self.scores = np.full(len(texts), np.inf, images.dtype)
        self.scores[paired] = scores[copies]
        (self._bounds, self._captions), _ = cross_modal_relevance(image, len(images))
        self._is_shared = (
            np.bincount(self._first_image, minlength=len(images))[self._first_image] > 1
        )

    def put(self, start: int, scores: np.ndarray) -> None:
        """Set them in a block of products: for each image the captions of all equal images.

        Args:
            start: The block's first image.
            scores: ``[b, m]``, of ``b`` images with all captions.
        """
        images = np.arange(start, start + len(scores))
        alone = images[~self._is_shared[images]]
        counts = self._bounds[alone + 1] - self._bounds[alone]
        self._set(scores, np.repeat(alone - start, counts), self._slices(alone, counts))
        for image in images[
            self._is_shared[images]
        ].tolist():  # one by one: all images may be equal
            first = self._first_image[image]
            captions = self._captions[self._bounds[first] : self._bounds[first + 1]]
            self._set(scores, np.full(len(captions), image - start), captions)
        self._share_columns(scores)

    def _slices(self, images: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Captions of several images, one image after the other."""
        starts = self._bounds[images] - (np.cumsum(counts) - counts)
        return self._captions[np.repeat(starts, counts) + np.arange(counts.sum())]

    def _set(self, scores: np.ndarray, rows: np.ndarray, captions: np.ndarray) -> None:
        scores[rows, self._first_text[captions]] = self.scores[captions]


def _pair_products(images: np.ndarray, image: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Dot product of each text with its image, rounded as a product of matrices rounds it: ``[n]``."""
    distinct, places = np.unique(image, return_inverse=True)
    products = torch.mm(torch.from_numpy(images[distinct]), torch.from_numpy(texts).T)
    return products.numpy()[places, np.arange(len(texts))]
