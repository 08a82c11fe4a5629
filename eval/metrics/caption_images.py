"""The image of each caption: checked, and as lists of relevant candidates both ways."""

from __future__ import annotations

import numpy as np

from cusa.data.errors import EmbeddingsError

# indptr int64 [n + 1] and indices int64: query q's relevant candidates are the rows
# indices[indptr[q]:indptr[q + 1]].
RelevantRows = tuple[np.ndarray, np.ndarray]


def checked_caption_image(
    caption_image: np.ndarray,
    n_images: int,
    n_texts: int,
) -> np.ndarray:
    """Check which image each caption belongs to.

    Args:
        caption_image: ``[n_texts]`` of any integer type: index of each caption's image, -1 for
            none.
        n_images: Number of images.
        n_texts: Number of captions.

    Returns:
        The same as int64.

    Raises:
        EmbeddingsError: If it has another shape or type, or holds anything but indices of images,
            such as ids.
    """
    image_indices = np.asarray(caption_image)
    is_integer = image_indices.dtype.kind in "iu" or not image_indices.size
    if image_indices.shape != (n_texts,) or not is_integer:
        raise EmbeddingsError(
            f"caption_image is {image_indices.dtype} {image_indices.shape} for {n_texts:,} "
            f"captions; give integers [{n_texts}]: the index of each caption's image",
            name="caption_image",
        )
    is_out_of_range = (image_indices < -1) | (image_indices >= n_images)
    if is_out_of_range.any():
        position = int(is_out_of_range.argmax())
        raise EmbeddingsError(
            f"caption_image[{position}] is {image_indices[position]}, which is not an index into "
            f"{n_images:,} images; give positions from 0 to {n_images - 1}, not ids, or -1 for a "
            "caption without an image",
            name="caption_image",
            location=f"entry {position}",
        )
    return image_indices.astype(np.int64)


def cross_modal_relevance(
    caption_image: np.ndarray,
    n_images: int,
) -> tuple[RelevantRows, RelevantRows]:
    """List the captions of each image, and the image of each caption.

    Args:
        caption_image: int64 ``[n_captions]``: index of each caption's image, -1 for none.
        n_images: Number of images.

    Returns:
        The relevant candidates of image-to-text and of text-to-image retrieval.
    """
    captions_by_image = np.argsort(caption_image, kind="stable")
    ordered_images = caption_image[captions_by_image]
    image_bounds = np.searchsorted(ordered_images, np.arange(n_images + 1))

    has_image = caption_image >= 0
    n_paired = np.cumsum(has_image)
    caption_bounds = np.concatenate([[0], n_paired])
    return (image_bounds, captions_by_image), (caption_bounds, caption_image[has_image])
