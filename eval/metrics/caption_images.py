"""Which image each caption belongs to, checked, and as lists of relevant candidates both ways."""

from __future__ import annotations

import numpy as np

from cusa.data.errors import EmbeddingsError


def checked_caption_image(caption_image: np.ndarray, n_images: int, n_texts: int) -> np.ndarray:
    """Check which image each caption belongs to.

    Args:
        caption_image: ``[n_texts]`` of any integer type: index of each caption's image, -1 for
            none.
        n_images: Number of images.
        n_texts: Number of captions.

    Returns:
        The same as int64.

    Raises:
        EmbeddingsError: If it has another shape or type, or holds something else than indices, such
            as ids.
    """
    given = np.asarray(caption_image)
    if given.shape != (n_texts,) or (given.size and given.dtype.kind not in "iu"):
        raise EmbeddingsError(
            f"caption_image is {given.dtype} {given.shape} for {n_texts:,} captions; give integers [{n_texts}]: the "
            "index of each caption's image",
            name="caption_image",
        )
    wrong = (given < -1) | (given >= n_images)
    if wrong.any():
        position = int(wrong.argmax())
        raise EmbeddingsError(
            f"caption_image[{position}] is {given[position]}, which is no index of one of {n_images:,} images; give "
            f"positions from 0 to {n_images - 1}, not ids, or -1 for a caption without an image",
            name="caption_image",
            location=f"entry {position}",
        )
    return given.astype(np.int64)


def cross_modal_relevance(
    caption_image: np.ndarray, n_images: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Relevance of captions to images and back, by the labels.

    Args:
        caption_image: int64 ``[n_captions]``: index of each caption's image, -1 for none.
        n_images: Number of images.

    Returns:
        (indptr, indices) for image-to-text and for text-to-image, as :func:`rank_bounds` takes them.
    """
    order = np.argsort(caption_image, kind="stable")
    bounds = np.searchsorted(caption_image[order], np.arange(n_images + 1))
    has_image = np.concatenate([[0], np.cumsum(caption_image >= 0)])
    return (bounds, order), (has_image, caption_image[caption_image >= 0])
