"""Tars as img2dataset writes them, made here."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(seed: int) -> bytes:
    """A small picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 24, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def pair(number: int) -> list[tuple[str, bytes]]:
    """The files of a sample: a picture, its caption, and both in JSON."""
    caption = f"picture number {number % 50}"
    return [
        (f"{number:06d}.jpg", jpeg(number)),
        (f"{number:06d}.txt", caption.encode()),
        (f"{number:06d}.json", json.dumps({"caption": caption, "all": [caption, "two"]}).encode()),
    ]


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """Write a tar of some files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def write_tars(folder: Path, n_tars: int, n_pairs: int) -> list[Path]:
    """Write tars of pairs that are numbered through."""
    paths = []
    for tar in range(n_tars):
        members = []
        for number in range(tar * n_pairs, (tar + 1) * n_pairs):
            members += pair(number)
        paths.append(write_tar(folder / f"{tar:05d}.tar", members))
    return paths
