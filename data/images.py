"""Images from files: decode, turn upright, lay over white, resize, crop, to arrays."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from cusa.data.errors import ImageError, SettingError, first_line

# How pictures are decoded, as image teachers' settings record it; older rows have neither key.
DECODING = {"orientation": "exif", "transparency": "white"}
MAX_PIXELS_VARIABLE = "CUSA_MAX_PIXELS"
DEFAULT_MAX_PIXELS = 200_000_000  # in RGB, 800 MB while it is decoded
# Above Pillow's own warning, JPEGs are halved while decoded, as long as both sides keep so many.
HUGE_PIXELS, _HUGE_SIDE = 89_478_485, 4096
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_pillow_limit_lock = threading.Lock()


def load_image(path: Path, at_least: int | None = None) -> Image.Image:
    """Decode a whole image file as a viewer shows it (:func:`as_viewed`).

    Of an animation, the first frame is taken.

    Args:
        path: The file.
        at_least: A JPEG may be halved, once or more, while it is decoded, as long as both sides
            keep this many pixels: faster, and not quite the same pixels. ``None``: only where it
            has more than :data:`HUGE_PIXELS`.

    Raises:
        ImageError: If the file is missing, unreadable, empty, truncated or not an image, or has
            more pixels than :func:`max_pixels`.
        SettingError: If ``CUSA_MAX_PIXELS`` is no number.
    """
    with open_image(path) as image:
        if at_least is None and image.width * image.height > HUGE_PIXELS:
            at_least = _HUGE_SIDE
        if at_least is not None:
            image.draft(None, (at_least, at_least))  # does nothing but to JPEGs
        return as_viewed(image)


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """An image whose header is read; what fails in the block is an error of the file.

    Raises:
        ImageError: As :func:`load_image`.
        SettingError: If ``CUSA_MAX_PIXELS`` is no number.
    """
    limit = max_pixels()
    try:
        if path.stat().st_size == 0:
            raise ImageError(f"image {path} has zero bytes; replace or remove it", path=path)
        with warnings.catch_warnings():
            # Of odd EXIF blocks (the pixels are fine), and of Pillow's limit, which is not ours.
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with _opened(path) as image:
                _refuse_pixels(image.size, limit, path)
                yield image
    except FileNotFoundError:
        message = f"image {path} does not exist; check the image root (--image-root)"
        raise ImageError(message, path=path) from None
    except UnidentifiedImageError:
        message = f"image {path} is not an image that Pillow can read; replace or remove it"
        raise ImageError(message, path=path) from None
    except (ImageError, SettingError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        message = f"image {path} cannot be decoded ({first_line(error)}); replace or remove it"
        raise ImageError(message, path=path) from None


def max_pixels() -> int:
    """Most pixels of an image: ``CUSA_MAX_PIXELS`` of the environment, or 200 million.

    Raises:
        SettingError: If the variable is no whole number above zero.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE, "").strip()
    if not text:
        return DEFAULT_MAX_PIXELS
    if not (text.isascii() and text.isdigit() and len(text) <= 15 and int(text) > 0):
        legal = f"expected a number of pixels such as {DEFAULT_MAX_PIXELS}"
        message = f"{MAX_PIXELS_VARIABLE}={text!r}: {legal}"
        raise SettingError(message, name=MAX_PIXELS_VARIABLE)
    return int(text)


def _opened(path: Path) -> Image.Image:
    """An image with Pillow's limit of pixels out of the way."""
    try:
        return Image.open(path)
    except Image.DecompressionBombError:
        # The limit is the whole process's: lifted for the moment in which a header is read.
        with _pillow_limit_lock:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return Image.open(path)
            finally:
                Image.MAX_IMAGE_PIXELS = limit


def _refuse_pixels(size: tuple[int, int], limit: int, path: Path) -> None:
    width, height = size
    if width * height > limit:
        raise ImageError(
            f"image {path} has {width:,} x {height:,} pixels, more than {limit:,}; make it smaller "
            f"or set {MAX_PIXELS_VARIABLE}={width * height} in the environment",
            path=path,
        )


# --- as a viewer shows it


def as_viewed(image: Image.Image) -> Image.Image:
    """The picture as a viewer shows it: turned as its EXIF orientation says, over white.

    Where there is neither orientation nor a transparent pixel, the pixels and the mode stay as they
    are, but that 16-bit grey becomes 8-bit grey (Pillow would clip it to white), and
    black-and-white becomes grey (Pillow would resize it without greys).

    Args:
        image: Any image; it may be one that was just opened, whose pixels are not decoded yet.

    Raises:
        ImageError: If its pixels are floating-point numbers or 32-bit greys.
    """
    _scale_transparent_colour(image)
    image.load()  # also what comes after the pixels in a file, such as the EXIF block of a PNG
    turn = _TURNS.get(exif_orientation(image))
    upright = _eight_bit(_over_white(image))
    if turn is not None:
        upright = upright.transpose(turn)
        upright.info.clear()  # nobody shall turn it again
    return upright


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) if there is none or its block is damaged."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a damaged block: the pixels are fine
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def has_transparent_pixels(image: Image.Image) -> bool:
    """Whether a pixel is not opaque; decodes images with an alpha channel or transparent colour."""
    _scale_transparent_colour(image)
    return image.has_transparency_data and not _is_opaque(_with_alpha(image))


def _scale_transparent_colour(image: Image.Image) -> None:
    """Scale the transparent colour of a PNG to 8 bits, as Pillow scales the samples alone."""
    colour = image.info.get("transparency")
    tiles = getattr(image, "tile", None)
    samples = tiles[0].args if image.format == "PNG" and tiles else None
    if samples in ("L;2", "L;4") and isinstance(colour, int):
        image.info["transparency"] = colour * (85 if samples == "L;2" else 17)
    elif samples == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _over_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    layer = _with_alpha(image)
    if _is_opaque(layer):
        if "transparency" in image.info:  # a colour of no pixel; Pillow would warn later
            image = image.copy()
            del image.info["transparency"]
        return image
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _with_alpha(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey of which one value is transparent
        values = np.asarray(image)
        alpha = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
        layer = _eight_bit(image).convert("RGBA")
        layer.putalpha(Image.fromarray(alpha))
        return layer
    return image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")


def _is_opaque(layer: Image.Image) -> bool:
    return layer.getchannel("A").getextrema()[0] == 255


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise _of_unknown_white(image, "floating-point")
    if (
        image.mode == "I" and image.format == "TIFF"
    ):  # other formats' 16 bits may be in that mode, too
        raise _of_unknown_white(image, "32-bit")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    return image.convert("L") if image.mode == "1" else image


def _of_unknown_white(image: Image.Image, kind: str) -> ImageError:
    """The error of pixels of which nothing tells what number is white."""
    name = getattr(image, "filename", "")
    message = f"image {name} holds {kind} pixels; convert it to 8 bits"
    return ImageError(message, path=Path(name) if name else None)


def changed_decoding(path: Path) -> str | None:
    """Why a file decodes to other pixels than before pictures were turned upright, if it does.

    Reads the header, and the pixels only where that names an alpha channel or a transparent colour,
    and of PNGs.

    Raises:
        ImageError: As :func:`load_image`.
        SettingError: If ``CUSA_MAX_PIXELS`` is no number.
    """
    with open_image(path) as image:
        orientation = exif_orientation(image)
        if orientation != 1 and image.format != "TIFF":  # Pillow itself has always turned those
            return f"EXIF orientation {orientation}"
        if image.format in ("JPEG", "MPO") and image.width * image.height > HUGE_PIXELS:
            return f"more than {HUGE_PIXELS:,} pixels"
        return "transparent pixels" if has_transparent_pixels(image) else None


# --- resize and crop


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
        """float32 ``[3, crop, crop]``, normalised.

        Raises:
            ImageError: If the image is too narrow to be resized.
        """
        # RGB comes after resize and crop, as in Unicom's published transform; for palette images that matters.
        rgb = center_crop(
            resize_shorter(image, self.resize, self.interpolation), self.crop
        ).convert("RGB")
        pixels = np.asarray(rgb, np.float32) / np.float32(255)
        normalised = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normalised.transpose(2, 0, 1), np.float32)


def resize_shorter(image: Image.Image, size: int, interpolation: str) -> Image.Image:
    """Resize so that the shorter side is ``size``, and cut the longer one to whole pixels.

    torchvision does so, too.

    Raises:
        ImageError: If the image is too narrow: see :func:`refuse_narrow`.
    """
    refuse_narrow(image, size)
    width, height = image.size
    if width <= height:
        target = (size, int(size * height / width))
    else:
        target = (int(size * width / height), size)
    return image if target == image.size else image.resize(target, _RESAMPLING[interpolation])


def refuse_narrow(image: Image.Image, shorter_side: int) -> None:
    """Refuse an image such as one of 1 x 1,000,000 pixels: no memory would hold it enlarged.

    Args:
        image: The image.
        shorter_side: Pixels that its shorter side is resized to, with the aspect kept.

    Raises:
        ImageError: If the resized image would have more pixels than :func:`max_pixels`.
    """
    shorter, longer = sorted(image.size)
    if shorter and shorter_side * (shorter_side * longer / shorter) > max_pixels():
        raise ImageError(
            f"{image.width:,} x {image.height:,} pixels are too narrow to be resized to "
            f"{shorter_side} pixels on the shorter side"
        )


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The central ``size x size`` square; the image must be at least that large."""
    width, height = image.size
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))
