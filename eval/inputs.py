"""What a model is given to embed: paths, pictures, arrays, tensors and texts, one or many, each item checked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from cusa.data.errors import DataError, ImageError
from cusa.data.images import as_viewed, load_image

# A path; a picture; a uint8 array [h, w], [h, w, channels] or tensor [h, w], [channels, h, w] of 1, 3 or 4 channels.
ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor
T = TypeVar("T")

_CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency
_SHAPES = (
    "an array is [h, w] or [h, w, channels], a tensor [h, w] or [channels, h, w], with 1, 3 or 4 channels; several in "
    "one have n in front: [n, h, w, channels], [n, channels, h, w]"
)


def one_or_many_images(images: ImageLike | Iterable[ImageLike]) -> tuple[bool, Iterable[ImageLike]]:
    """Whether one image is given, and the images.

    Args:
        images: One image; an array or a tensor of several; or any other iterable of images.

    Raises:
        ImageError: If it is none of these, or the shape fits neither one image nor several.
    """
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return True, [images]
    if isinstance(images, np.ndarray) and images.dtype.kind not in "biufc":
        return False, images.tolist()  # of paths
    if isinstance(images, (np.ndarray, torch.Tensor)):
        if images.ndim == 4 and _has_channels(images):
            return False, iter(images)
        return True, [images]
    if not isinstance(images, Iterable):
        raise ImageError(f"images are paths, pictures, arrays or tensors, or several of them; got {_kind(images)}")
    return False, images


def one_or_many_texts(texts: str | Iterable[str]) -> tuple[bool, Iterable[str]]:
    """Whether one text is given, and the texts.

    Raises:
        DataError: If it is neither a text nor an iterable.
    """
    if isinstance(texts, str):
        return True, [texts]
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise DataError(f"texts are strings, one or several; got {_kind(texts)}")
    return False, texts


def opened_images(images: Iterable[tuple[int, ImageLike]]) -> Iterator[Image.Image]:
    """Numbered images as pictures of 8 bits per channel; files are decoded one by one.

    Raises:
        ImageError: If an item is no image, or a file is missing or cannot be decoded; names the number.
    """
    for number, image in images:
        if isinstance(image, (str, os.PathLike)):
            yield load_image(Path(image))
        elif isinstance(image, Image.Image):
            yield as_viewed(image)
        elif isinstance(image, (np.ndarray, torch.Tensor)):
            yield as_viewed(_picture(image, number))
        else:
            raise ImageError(
                f"image {number} is {_kind(image)}; pass a path, a Pillow image, an array or a tensor",
                location=f"image {number}",
            )


def checked_texts(texts: Iterable[str]) -> Iterator[str]:
    """The texts.

    Raises:
        DataError: If an item is no string.
    """
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"text {number} is {_kind(text)}; pass strings", location=f"text {number}")
        yield text


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items, so many at a time; none is taken before its batch.

    Raises:
        ValueError: If ``size`` is below 1.
    """
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {size}")
    iterator = iter(items)
    return iter(lambda: list(islice(iterator, size)), [])


def _picture(image: np.ndarray | torch.Tensor, number: int) -> Image.Image:
    """A picture of an array or a tensor."""
    where = f"image {number}"
    given = f"{where} is {'a tensor' if isinstance(image, torch.Tensor) else 'an array'}"
    if not (image.ndim == 2 or (image.ndim == 3 and _has_channels(image))) or 0 in image.shape:
        raise ImageError(f"{given} of shape {list(image.shape)}; {_SHAPES}", location=where)
    if image.dtype not in (np.uint8, torch.uint8):
        raise ImageError(
            f"{given} of {str(image.dtype).removeprefix('torch.')}; pass uint8, from 0 to 255: of values x from 0 to 1 "
            "that is round(255 * x)",
            location=where,
        )
    pixels = image
    if isinstance(pixels, torch.Tensor):
        pixels = pixels.movedim(0, -1) if pixels.ndim == 3 else pixels
        pixels = pixels.cpu().numpy()
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _has_channels(images: np.ndarray | torch.Tensor) -> bool:
    """Whether a picture's channels, or those of several, are where they should be: last in arrays, first in tensors."""
    return images.shape[-3 if isinstance(images, torch.Tensor) else -1] in _CHANNELS


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
