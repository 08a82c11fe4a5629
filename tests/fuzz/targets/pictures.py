"""Pictures, as precompute and the trainer decode them, against Pillow's own decoding."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cusa.data.image_transform import center_crop, resize_shorter
from cusa.data.images import load_image
from cusa.precompute.pictures import changed_decoding
from tests.fuzz.harness import Target
from tests.fuzz.mutations import BYTE_MUTATORS

_SIZE = (40, 24)


def _picture(mode: str) -> Image.Image:
    width, height = _SIZE
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 255, (3, 5, channels)).astype(np.uint8)
    picture = Image.fromarray(values.squeeze() if channels == 1 else values, mode)
    return picture.resize((width, height))


def _encoded(mode: str, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    _picture(mode).save(out, form, **options)
    return out.getvalue()


def _read(path: Path) -> tuple[str, tuple[int, int], bytes]:
    changed_decoding(path)
    picture = load_image(path)
    center_crop(resize_shorter(picture, 16, "bicubic"), 16)
    return picture.mode, picture.size, picture.tobytes()


def _is_pillows(
    valid: tuple[str, tuple[int, int], bytes], value: tuple[str, tuple[int, int], bytes], path: Path
) -> bool:
    """Equal to the valid one, or as many pixels as Pillow finds: whole lines of damaged pixels
    cannot be told.
    """
    if value == valid:
        return True
    with Image.open(path) as picture:
        picture.load()
        return picture.width * picture.height == value[1][0] * value[1][1]


def _orientation() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _mutate_png_chunk(content: bytes, rng: random.Random) -> bytes:
    """Change the header or another chunk of a PNG, its checksum made true."""
    place = content.find(rng.choice((b"IHDR", b"IDAT", b"tRNS", b"eXIf", b"IEND")))
    if place < 4:
        return rng.choice(BYTE_MUTATORS)(content, rng)
    size = int.from_bytes(content[place - 4 : place], "big")
    chunk = bytearray(content[place : place + 4 + size])
    if rng.random() < 0.5 and chunk.startswith(b"IHDR") and size >= 13:
        width, height = rng.choice(
            ((1, 1_000_000), (1_000_000, 1), (0, 1), (2**31 - 1, 2**31 - 1), (60_000, 60_000))
        )
        chunk[4:12] = struct.pack(">II", width, height)
    elif len(chunk) > 4:
        chunk[rng.randrange(4, len(chunk))] = rng.randrange(256)
    checksum = zlib.crc32(chunk).to_bytes(4, "big")
    return content[:place] + bytes(chunk) + checksum + content[place + 8 + size :]


def _target(name: str, content: bytes, *mutators: Any) -> Target:
    return Target(
        name=f"pictures/{name}",
        make=_writer(f"picture.{name.split('-')[0]}", content),
        mutators=(*mutators, *BYTE_MUTATORS),
        read=_read,
        agrees=_is_pillows,
    )


def _writer(file_name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / file_name
        path.write_bytes(content)
        return path

    return make


TARGETS = (
    _target("jpg", _encoded("RGB", "JPEG", exif=_orientation())),
    _target("jpg-progressive", _encoded("L", "JPEG", progressive=True)),
    _target("png", _encoded("RGBA", "PNG", exif=_orientation()), *[_mutate_png_chunk] * 6),
    _target("png-palette", _encoded("P", "PNG", transparency=1), *[_mutate_png_chunk] * 6),
    _target("gif", _encoded("P", "GIF")),
    _target("bmp", _encoded("RGB", "BMP")),
    _target("webp", _encoded("RGB", "WEBP")),
    _target("tiff", _encoded("RGB", "TIFF", compression="tiff_lzw")),
)
