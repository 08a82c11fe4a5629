"""Resizing, cropping and normalising of decoded images into arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from cusa.data.errors import ImageError
from cusa.data.images import max_pixels

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class ImageTransform:
    """Resize the shorter side, crop the centre, convert to RGB, scale and normalise.

    Attributes:
        resize: Length of the shorter side after resizing, in pixels; the aspect ratio is kept.
        crop: Side of the centre crop, in pixels.
        mean: Per-channel mean to subtract, after scaling to [0, 1].
        std: Per-channel standard deviation to divide by.
        interpolation: ``"bicubic"`` or ``"bilinear"``, antialiased as Pillow does it.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Transform an image to float32 ``[3, crop, crop]``, normalised.

        Raises:
            ImageError: If the image is too narrow to be resized.
        """
        resized = resize_shorter(image, self.resize, self.interpolation)
        # Converted to RGB after resizing and cropping, as in Unicom's published transform; this
        # matters for palette images.
        rgb = center_crop(resized, self.crop).convert("RGB")

        pixels = np.asarray(rgb, np.float32) / np.float32(255)
        mean = np.asarray(self.mean, np.float32)
        std = np.asarray(self.std, np.float32)
        normalised = (pixels - mean) / std
        # [height, width, channel] -> [channel, height, width]
        return np.ascontiguousarray(normalised.transpose(2, 0, 1), np.float32)


def resize_shorter(image: Image.Image, size: int, interpolation: str) -> Image.Image:
    """Resize so that the shorter side is ``size`` pixels; the longer one is rounded down.

    torchvision rounds the same way.

    Args:
        image: The image.
        size: Length of the shorter side, in pixels.
        interpolation: ``"bicubic"`` or ``"bilinear"``.

    Raises:
        ImageError: If the image is too narrow; see :func:`refuse_narrow`.
    """
    refuse_narrow(image, size)
    width, height = image.size
    if width <= height:
        new_size = (size, int(size * height / width))
    else:
        new_size = (int(size * width / height), size)
    if new_size == image.size:
        return image
    return image.resize(new_size, _RESAMPLING[interpolation])


def refuse_narrow(image: Image.Image, shorter_side: int) -> None:
    """Refuse an image, such as one of 1 x 1,000,000 pixels, that would be huge once resized.

    Args:
        image: The image.
        shorter_side: Length in pixels that its shorter side is resized to, at the same aspect
            ratio.

    Raises:
        ImageError: If the resized image would have more pixels than :func:`max_pixels`.
    """
    shorter, longer = sorted(image.size)
    if not shorter:
        return
    longer_side = shorter_side * longer / shorter
    if shorter_side * longer_side > max_pixels():
        raise ImageError(
            f"{image.width:,} x {image.height:,} pixels are too narrow to be resized to "
            f"{shorter_side} pixels on the shorter side"
        )


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Cut out the central ``size x size`` square; the image must be at least that large."""
    width, height = image.size
    x_start = round((width - size) / 2.0)
    y_start = round((height - size) / 2.0)
    return image.crop((x_start, y_start, x_start + size, y_start + size))
