"""Decoding of image files as viewers show them: upright, over white."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from cusa.data.errors import ImageError, SettingError, first_line

# How images are decoded, as recorded in image teachers' settings; older stores have neither key.
DECODING = {"orientation": "exif", "transparency": "white"}
MAX_PIXELS_VARIABLE = "CUSA_MAX_PIXELS"
# An RGB image of that size takes 800 MB while it is decoded.
DEFAULT_MAX_PIXELS = 200_000_000
_MAX_DIGITS = 15  # of the variable's value
# A JPEG of more pixels is halved while it is decoded, as long as both sides keep _HUGE_SIDE pixels.
HUGE_PIXELS = 89_478_485
_HUGE_SIDE = 4096
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
# What Pillow multiplies a PNG's 2-bit and 4-bit grey samples by.
_GREY_FACTORS = {"L;2": 85, "L;4": 17}
_pillow_limit_lock = threading.Lock()


def load_image(file_path: Path, content: bytes | None = None) -> Image.Image:
    """Decode an image file completely, as a viewer shows it (:func:`as_viewed`).

    Of an animation, the first frame is decoded. A JPEG of more than :data:`HUGE_PIXELS` pixels is
    halved, once or repeatedly, while it is decoded.

    Args:
        file_path: The file; errors name it.
        content: The file's bytes, if they are not to be read from the path, such as those of a
            file within a tar.

    Raises:
        ImageError: If the file is missing, unreadable, empty, truncated or not an image, or has
            more pixels than :func:`max_pixels`.
        SettingError: If ``CUSA_MAX_PIXELS`` is no number.
    """
    with open_image(file_path, content) as image:
        if image.width * image.height > HUGE_PIXELS:
            # This has an effect on JPEGs only.
            image.draft(None, (_HUGE_SIDE, _HUGE_SIDE))
        return as_viewed(image)


def read_image_file(file_path: Path) -> bytes:
    """Read the bytes of an image file.

    Raises:
        ImageError: If it is missing or cannot be read.
    """
    try:
        return file_path.read_bytes()
    except FileNotFoundError:
        raise _missing(file_path) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _undecodable(file_path, error) from None


@contextmanager
def open_image(file_path: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image and read its header; a failure within the block is blamed on the file.

    Args:
        file_path: The file; errors name it.
        content: The file's bytes; ``None``: they are read from the path.

    Raises:
        ImageError: As :func:`load_image`.
        SettingError: If ``CUSA_MAX_PIXELS`` is no number.
    """
    limit = max_pixels()
    try:
        n_bytes = file_path.stat().st_size if content is None else len(content)
        if n_bytes == 0:
            raise ImageError(
                f"image {file_path} has zero bytes; replace or remove it", path=file_path
            )
        with warnings.catch_warnings():
            # Pillow warns of odd EXIF blocks (the pixels are fine) and of its own pixel limit.
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            source = file_path if content is None else BytesIO(content)
            with _opened(source) as image:
                # Bytes have no name, and a message of as_viewed gives the image's.
                image.filename = str(file_path)
                n_pixels = image.width * image.height
                if n_pixels > limit:
                    raise ImageError(
                        f"image {file_path} has {image.width:,} x {image.height:,} pixels, more "
                        f"than {limit:,}; make it smaller or set {MAX_PIXELS_VARIABLE}={n_pixels} "
                        "in the environment",
                        path=file_path,
                    )
                yield image
    except FileNotFoundError:
        raise _missing(file_path) from None
    except UnidentifiedImageError:
        message = f"image {file_path} is not an image that Pillow can read; replace or remove it"
        raise ImageError(message, path=file_path) from None
    except (ImageError, SettingError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise _undecodable(file_path, error) from None


def _missing(file_path: Path) -> ImageError:
    message = f"image {file_path} does not exist; check the image root (--image-root)"
    return ImageError(message, path=file_path)


def _undecodable(file_path: Path, error: Exception) -> ImageError:
    message = f"image {file_path} cannot be decoded ({first_line(error)}); replace or remove it"
    return ImageError(message, path=file_path)


def max_pixels() -> int:
    """Return how many pixels an image may have.

    The environment variable ``CUSA_MAX_PIXELS`` sets the limit; by default it is 200 million.

    Raises:
        SettingError: If the variable is not a whole number above zero.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE, "").strip()
    if not text:
        return DEFAULT_MAX_PIXELS
    is_number = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    if not is_number or int(text) == 0:
        raise SettingError(
            f"{MAX_PIXELS_VARIABLE}={text!r}: expected a number of pixels such as "
            f"{DEFAULT_MAX_PIXELS}",
            name=MAX_PIXELS_VARIABLE,
        )
    return int(text)


def _opened(source: Path | BytesIO) -> ImageFile.ImageFile:
    """Open an image regardless of Pillow's own pixel limit."""
    try:
        return Image.open(source)
    except Image.DecompressionBombError:
        # The limit is global to the process, so it is lifted only while the header is read.
        with _pillow_limit_lock:
            limit = Image.MAX_IMAGE_PIXELS
            Image.MAX_IMAGE_PIXELS = None
            try:
                return Image.open(source)
            finally:
                Image.MAX_IMAGE_PIXELS = limit


# --- as a viewer shows it


def as_viewed(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says, and lay it over white if it is transparent.

    An image without orientation or transparent pixels keeps its pixels and its mode, with two
    exceptions: 16-bit grey becomes 8-bit grey (Pillow would clip it to white), and black-and-white
    becomes 8-bit grey (Pillow would resize it to black and white alone).

    Args:
        image: Any image; its pixels need not be decoded yet.

    Returns:
        The image as a viewer shows it, its pixels decoded.

    Raises:
        ImageError: If its pixels are floating-point numbers or 32-bit integers.
    """
    _scale_transparent_colour(image)
    # This also reads what follows the pixels in the file, such as the EXIF block of a PNG.
    image.load()
    turn = _TURNS.get(exif_orientation(image))
    upright = _eight_bit(_over_white(image))
    if turn is not None:
        upright = upright.transpose(turn)
        # Drop the orientation, so that the image is not turned twice.
        upright.info.clear()
    return upright


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if there is none or it is damaged."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # the block is damaged; the pixels are fine
        return 1
    if isinstance(orientation, int) and orientation in _TURNS:
        return orientation
    return 1


def has_transparent_pixels(image: Image.Image) -> bool:
    """Return whether any pixel is not opaque.

    Images with an alpha channel or a transparent colour are decoded for this.
    """
    _scale_transparent_colour(image)
    return image.has_transparency_data and not _is_opaque(_with_alpha(image))


def _scale_transparent_colour(image: Image.Image) -> None:
    """Scale a PNG's transparent colour to 8 bits, since Pillow scales only the samples."""
    tiles = getattr(image, "tile", None)
    if image.format != "PNG" or not tiles:
        return
    raw_mode = tiles[0].args
    colour = image.info.get("transparency")
    if raw_mode in _GREY_FACTORS and isinstance(colour, int):
        image.info["transparency"] = colour * _GREY_FACTORS[raw_mode]
    elif raw_mode == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(channel >> 8 for channel in colour)


def _over_white(image: Image.Image) -> Image.Image:
    """Lay an image over white if any of its pixels is not opaque."""
    if not image.has_transparency_data:
        return image
    rgba = _with_alpha(image)
    if not _is_opaque(rgba):
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    # The image names a transparent colour that no pixel has; Pillow would warn of it later.
    if "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]
    return image


def _with_alpha(image: Image.Image) -> Image.Image:
    """Convert an image with transparency to RGBA."""
    # 16-bit grey with one transparent value, which Pillow would clip.
    if image.mode.startswith("I"):
        is_transparent = np.asarray(image) == image.info["transparency"]
        alpha = np.where(is_transparent, 0, 255).astype(np.uint8)
        rgba = _eight_bit(image).convert("RGBA")
        rgba.putalpha(Image.fromarray(alpha))
        return rgba
    # Pillow cannot convert premultiplied grey to RGBA directly.
    if image.mode == "La":
        image = image.convert("LA")
    return image.convert("RGBA")


def _is_opaque(rgba: Image.Image) -> bool:
    least, _ = rgba.getchannel("A").getextrema()
    return least == 255


def _eight_bit(image: Image.Image) -> Image.Image:
    """Convert 16-bit grey and black-and-white to 8-bit grey; other modes stay as they are."""
    if image.mode == "F":
        raise _unknown_white_error(image, "floating-point")
    # In other formats, mode I may also hold 16-bit samples.
    if image.mode == "I" and image.format == "TIFF":
        raise _unknown_white_error(image, "32-bit")
    if image.mode.startswith("I"):
        values = np.asarray(image).clip(0, 65535) // 257  # 65535 / 257 is 255
        return Image.fromarray(values.astype(np.uint8))
    if image.mode == "1":
        return image.convert("L")
    return image


def _unknown_white_error(image: Image.Image, kind: str) -> ImageError:
    """Return the error of an image that does not say which pixel value is white."""
    name = getattr(image, "filename", "")
    file_path = None
    if name:
        file_path = Path(name)
    return ImageError(f"image {name} holds {kind} pixels; convert it to 8 bits", path=file_path)
