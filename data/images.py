"""Images from files: decode, resize, crop, to arrays."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from cusa.data.errors import CusaError

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def load_image(path: Path, at_least: int | None = None) -> Image.Image:
    """Decode a whole image file, in its own mode.

    Args:
        path: The file.
        at_least: A JPEG may be halved, once or more, while it is decoded, as long as both sides keep this many pixels:
            faster, and not quite the same pixels. ``None``: never.

    Raises:
        CusaError: If the file is missing, unreadable, empty, truncated or not an image.
    """
    try:
        if path.stat().st_size == 0:
            raise CusaError(f"image {path} has zero bytes; replace or remove it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # e.g. odd EXIF blocks: the pixels are fine
            with Image.open(path) as image:  # closes the file also when decoding fails
                if at_least is not None:
                    image.draft(None, (at_least, at_least))  # does nothing but to JPEGs
                image.load()
                return eight_bit(image)
    except FileNotFoundError:
        raise CusaError(f"image {path} does not exist; check the image root (--image-root)") from None
    except UnidentifiedImageError:
        raise CusaError(f"image {path} is not an image that Pillow can read; replace or remove it") from None
    except CusaError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise CusaError(f"image {path} cannot be decoded ({error}); replace or remove it") from None


def eight_bit(image: Image.Image) -> Image.Image:
    """An image of 8 bits per channel: Pillow would clip 16-bit grey to white, and resize black-and-white without greys.

    Raises:
        CusaError: If its pixels are floating-point numbers.
    """
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode == "F":
        raise CusaError(f"image {getattr(image, 'filename', '')} holds floating-point pixels; convert it to 8 bits")
    return image.convert("L") if image.mode == "1" else image


@dataclass(frozen=True)
class ImageTransform:
    """Resize the shorter side, crop the centre, convert to RGB, scale and normalise.

    Attributes:
        resize: The shorter side, in pixels, after resizing with the aspect kept.
        crop: Side of the centre crop in pixels.
        mean: Per-channel mean that is subtracted after scaling to [0, 1].
        std: Per-channel standard deviation that is divided by.
        interpolation: ``"bicubic"`` or ``"bilinear"``, antialiased as Pillow does it.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"

    def __call__(self, image: Image.Image) -> np.ndarray:
        """float32 ``[3, crop, crop]``, normalised."""
        # RGB comes after resize and crop, as in Unicom's published transform; for palette images that matters.
        rgb = center_crop(resize_shorter(image, self.resize, self.interpolation), self.crop).convert("RGB")
        pixels = np.asarray(rgb, np.float32) / np.float32(255)
        normalised = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normalised.transpose(2, 0, 1), np.float32)


def resize_shorter(image: Image.Image, size: int, interpolation: str) -> Image.Image:
    """Resize so that the shorter side is ``size``; the longer one is cut to whole pixels, as torchvision does."""
    width, height = image.size
    if width <= height:
        target = (size, int(size * height / width))
    else:
        target = (int(size * width / height), size)
    return image if target == image.size else image.resize(target, _RESAMPLING[interpolation])


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The central ``size x size`` square; the image must be at least that large."""
    width, height = image.size
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))
