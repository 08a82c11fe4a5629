"""Tars as img2dataset writes them, made here."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cusa.data.store.shards import ShardHeader, stored_rows, write_shard
from cusa.data.tars.manifest import write_manifest
from cusa.data.tars.manifest_building import build_manifest
from cusa.data.tars.origin import SetOrigin
from cusa.data.tars.pair_files import write_pairs
from cusa.data.tars.pairs import read_pairs_of_tar
from cusa.data.tars.paths import common_folder
from cusa.data.tars.tar_set import TarSet
from tests.helpers import settings

DIM = 3  # of the rows of a set that is written here


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


def write_rows(folder, pairs, teacher, modality, skipped=(), scale=1, **transform):
    """Write the rows of a teacher for a tar; ``scale`` tells them from another teacher's."""
    n_rows = sum(len(r.captions) if modality == "text" else 1 for r in pairs.records)
    # The first number of a row is the row, so that a wrong join shows.
    rows = np.full((n_rows, DIM), scale * (1 + int(pairs.name)), np.float32)
    rows[:, 0] = np.arange(n_rows)
    rows[list(skipped)] = np.nan
    own = settings(modality, DIM, transform=transform or {"size": 8})
    header = ShardHeader(teacher, pairs.name, pairs.records.fingerprint, 0, n_rows, own)
    rows = rows.astype(own.dtype) if skipped else stored_rows(rows, own.dtype)
    write_shard(folder, f"{teacher}/{pairs.name}.h5", header, rows, list(skipped))


def write_set(folder, tars, skipped=(), caption="txt"):
    """Write the rows of two teachers for tars, the pairs and the manifest."""
    for tar in tars:
        pairs = read_pairs_of_tar(tar, caption, False)
        write_rows(folder, pairs, "eyes", "image", skipped)
        write_rows(folder, pairs, "words", "text")
        write_pairs(folder, pairs)
    origin = SetOrigin(image_root=common_folder(tars))
    write_manifest(folder, build_manifest(folder, origin))
    return TarSet(folder)


def contents(folder):
    """All files below a folder: their bytes, by their paths in it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def files_of_tars(folder):
    """The files of pairs and rows of a set, without those that name the folder of the tars."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("*/*.h5")
    }
