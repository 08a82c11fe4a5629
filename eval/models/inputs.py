"""Images and texts as callers pass them: one or many; as paths, pictures, arrays or tensors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from cusa.data.errors import DataError, ImageError, first_line
from cusa.data.images import as_viewed, load_image
from cusa.data.parsing import refuse_lone_surrogates

# A path, a Pillow image, or uint8 pixels: an array [h, w] or [h, w, channels], or a tensor [h, w]
# or [channels, h, w], with 1, 3 or 4 channels.
ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor
T = TypeVar("T")

_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_LEGAL_SHAPES = (
    "legal are arrays [h, w], [h, w, channels] and [n, h, w, channels], and tensors [h, w], "
    "[channels, h, w] and [n, channels, h, w], with 1, 3 or 4 channels"
)


def one_or_many_images(images: ImageLike | Iterable[ImageLike]) -> tuple[bool, Iterable[ImageLike]]:
    """Tell a single image from several.

    Args:
        images: An image, an array or tensor that stacks several, or any iterable of images.

    Returns:
        Whether it is a single image, and the images.

    Raises:
        ImageError: If it is neither an image nor an iterable.
    """
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return True, [images]
    if isinstance(images, np.ndarray) and images.dtype.kind not in "biufc":
        # An array of strings or objects holds a path, paths, or images of several sizes.
        return one_or_many_images(images.tolist())
    if isinstance(images, (np.ndarray, torch.Tensor)):
        # A batch has four axes; an array with three is one image, never a batch of grey ones.
        is_stack = images.ndim == 4 and _channels(images) in _CHANNELS
        if is_stack:
            return False, iter(images)
        return True, [images]
    if isinstance(images, (bytes, bytearray)) or not isinstance(images, Iterable):
        legal = "paths, pictures, arrays or tensors, one or many"
        raise ImageError(f"images must be {legal}; got {_named_type(images)}", name="images")
    return False, images


def one_or_many_texts(texts: str | Iterable[str]) -> tuple[bool, Iterable[str]]:
    """Tell a single text from several.

    Args:
        texts: A text, or any iterable of texts.

    Returns:
        Whether it is a single text, and the texts.

    Raises:
        DataError: If it is neither a text nor an iterable.
    """
    if isinstance(texts, str):
        return True, [texts]
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        message = f"texts must be strings, one or many; got {_named_type(texts)}"
        raise DataError(message, name="texts")
    return False, texts


def opened_images(
    images: Iterable[tuple[int, ImageLike]],
) -> Iterator[Image.Image]:
    """Open numbered images as pictures of 8 bits per channel, one at a time.

    Args:
        images: Number and image, of which the number is for errors.

    Raises:
        ImageError: If an item is no image, or its file is missing or cannot be decoded.
    """
    for number, image in images:
        location = f"image {number}"
        if isinstance(image, (str, os.PathLike)):
            yield load_image(Path(image))
        elif isinstance(image, Image.Image):
            yield _viewed(image, location)
        elif isinstance(image, (np.ndarray, torch.Tensor)):
            yield as_viewed(_picture(image, location))
        else:
            legal = "a path, a Pillow image, an array or a tensor"
            message = f"{location} is {_named_type(image)}; pass {legal}"
            raise ImageError(message, location=location)


def checked_texts(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts, after checking each.

    Raises:
        DataError: If an item is no string, or holds half a character (a lone surrogate).
    """
    for number, text in enumerate(texts):
        location = f"text {number}"
        if not isinstance(text, str):
            message = f"{location} is {_named_type(text)}; pass a string"
            raise DataError(message, location=location)
        try:
            refuse_lone_surrogates(text)
        except ValueError as error:
            message = f"{location}, {text!a}, cannot be embedded: {error}; correct it"
            raise DataError(message, location=location) from None
        yield text


def batches(
    items: Iterable[T],
    size: int,
) -> Iterator[list[T]]:
    """Yield lists of ``size`` items, the last of which may be shorter; items are consumed lazily.

    Raises:
        ValueError: If ``size`` is not an integer of at least 1.
    """
    if not isinstance(size, (int, np.integer)) or size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {size!r}")
    iterator = iter(items)
    return iter(lambda: list(islice(iterator, size)), [])


def _viewed(image: Image.Image, location: str) -> Image.Image:
    """Orient a picture as a viewer shows it, decoding it if it was only opened.

    Raises:
        ImageError: If its pixels cannot be decoded.
    """
    try:
        return as_viewed(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything
        message = f"{location} cannot be decoded ({first_line(error)}); replace it"
        raise ImageError(message, location=location) from None


def _picture(
    image: np.ndarray | torch.Tensor,
    location: str,
) -> Image.Image:
    """Convert an array or a tensor to a picture."""
    kind = "a tensor" if isinstance(image, torch.Tensor) else "an array"
    has_legal_shape = image.ndim == 2 or (image.ndim == 3 and _channels(image) in _CHANNELS)
    if not has_legal_shape or 0 in image.shape:
        message = f"{location} is {kind} of shape {list(image.shape)}; {_LEGAL_SHAPES}"
        raise ImageError(message, location=location)
    if image.dtype not in (np.uint8, torch.uint8):
        dtype = str(image.dtype).removeprefix("torch.")
        raise ImageError(
            f"{location} is {kind} of {dtype}; pass uint8 values from 0 to 255, such as "
            "round(255 * x) for x from 0 to 1",
            location=location,
        )
    pixels: Any = image
    if isinstance(image, torch.Tensor):
        if image.layout != torch.strided or image.is_meta:
            message = f"{location} is a tensor without pixels in memory; pass a dense one"
            raise ImageError(message, location=location)
        channels_last = image if image.ndim == 2 else image.movedim(0, -1)
        pixels = channels_last.cpu().numpy()
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _channels(images: np.ndarray | torch.Tensor) -> int:
    """Return the number of channels, whose axis is last in arrays, but before h, w in tensors."""
    channel_axis = -3 if isinstance(images, torch.Tensor) else -1
    return images.shape[channel_axis]


def _named_type(value: object) -> str:
    if value is None:
        return "None"
    return f"an object of type {type(value).__name__}"
