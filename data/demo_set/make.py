"""The files of the embedded data set ``demo``, made in seconds: the same seed gives the same bytes.

:mod:`cusa.data.demo_set.world` describes the data set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cusa.data.datasets import load_dataset
from cusa.data.demo_set.captions import draw_captions
from cusa.data.demo_set.render import render
from cusa.data.demo_set.truth import truth_of
from cusa.data.demo_set.world import Claim, draw_scenes, image_generator
from cusa.data.errors import FileFormatError
from cusa.data.files import atomic_file, file_digest
from cusa.data.parsing import read_json
from cusa.data.records import SPLITS, TRUTH_ARRAYS, Dataset, Truth

# Raise this with every change to images, captions or truth, so that old folders are made anew.
VERSION = 1
_JPEG_QUALITY = 90


def make_demo(
    folder: Path,
    *,
    seed: int = 0,
    n_train: int = 2000,
    n_val: int = 400,
    n_test: int = 400,
) -> Dataset:
    """Render the data set under ``folder``, or load it if it is already there and complete.

    Args:
        folder: Where ``images/``, ``manifest.jsonl`` (one caption a line, in the format of a user's
            own data), ``truth.npz`` and, last, ``demo.json`` are written. The latter has the
            arguments, and the checksums of the manifest and the truth. The data set is made anew if
            ``demo.json`` is missing, names other arguments or another version, or a file has
            changed.
        seed: Seed of all random numbers; the same seed gives the same bytes.
        n_train: Number of training images.
        n_val: Number of validation images.
        n_test: Number of test images.

    Returns:
        The data set ``demo`` with splits train, val and test, and the known relevance of each.
    """
    sizes = dict(zip(SPLITS, (n_train, n_val, n_test), strict=True))
    contents = {"name": "demo", "version": VERSION, "seed": seed, "images": sizes}
    if not _is_complete(folder, contents, sizes):
        _make(folder, contents, sizes, seed)

    manifest = load_dataset(folder / "manifest.jsonl")
    truth = {}
    with np.load(folder / "truth.npz") as arrays:
        for split_name in manifest.splits:
            truth[split_name] = Truth(*(arrays[f"{split_name}_{name}"] for name in TRUTH_ARRAYS))
    return Dataset("demo", folder, manifest.splits, truth, files=manifest.files)


def _is_complete(
    folder: Path,
    contents: Mapping[str, Any],
    sizes: Mapping[str, int],
) -> bool:
    """Return whether all files exist; a damaged image is noticed only when it is decoded."""
    try:
        if read_json(folder / "demo.json") != {**contents, "sha256": _digests(folder)}:
            return False
    except (FileFormatError, OSError):
        return False
    for split_name, n_images in sizes.items():
        for image_number in range(n_images):
            if not (folder / _image_path(split_name, image_number)).is_file():
                return False
    return True


def _digests(folder: Path) -> dict[str, str]:
    return {name: file_digest(folder / name).hex() for name in ("manifest.jsonl", "truth.npz")}


def _make(
    folder: Path,
    contents: Mapping[str, Any],
    sizes: Mapping[str, int],
    seed: int,
) -> None:
    """Write all files; without ``demo.json``, removed first and written last, it is incomplete."""
    (folder / "demo.json").unlink(missing_ok=True)
    for old_image in folder.glob("images/*/demo-*.jpg"):
        old_image.unlink()

    lines: list[str] = []
    arrays: dict[str, np.ndarray] = {}
    for split_name, n_images in sizes.items():
        split_lines, truth = _make_split(folder, split_name, n_images, seed)
        lines.extend(split_lines)
        for name in TRUTH_ARRAYS:
            arrays[f"{split_name}_{name}"] = getattr(truth, name)

    with atomic_file(folder / "manifest.jsonl") as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
    with atomic_file(folder / "truth.npz") as temporary, temporary.open("wb") as file:
        # numpy's type stub mistakes **arrays for the parameter allow_pickle.
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    with atomic_file(folder / "demo.json") as temporary:
        marker = {**contents, "sha256": _digests(folder)}
        temporary.write_text(json.dumps(marker) + "\n", encoding="utf-8")


def _make_split(
    folder: Path,
    split_name: str,
    n_images: int,
    seed: int,
) -> tuple[list[str], Truth]:
    """Render the images of a split; return its manifest lines and its known relevance."""
    (folder / "images" / split_name).mkdir(parents=True, exist_ok=True)
    scenes = draw_scenes(split_name, n_images, seed)
    claims: list[Claim] = []
    lines: list[str] = []
    for image_number, scene in enumerate(scenes):
        image_path = _image_path(split_name, image_number)
        generator_for = partial(image_generator, seed, split_name, image_number)
        image = render(scene, generator_for("pixels"))
        image.save(folder / image_path, quality=_JPEG_QUALITY)

        captions = draw_captions(scene, generator_for("captions"))
        claims.extend(captions.values())
        for caption in captions:
            entry = {
                "image": image_path,
                "image_id": Path(image_path).stem,
                "split": split_name,
                "caption": caption,
            }
            lines.append(json.dumps(entry) + "\n")
    return lines, truth_of(scenes, claims)


def _image_path(
    split_name: str,
    image_number: int,
) -> str:
    return f"images/{split_name}/demo-{split_name}-{image_number:05d}.jpg"
