"""The embedded data set ``demo`` as files: made in seconds, the same bytes for the same seed. See demo_world.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cusa.data.datasets import load_dataset
from cusa.data.demo_set.render import render
from cusa.data.demo_set.world import draw_captions, draw_scenes, stream, truth_of
from cusa.data.errors import FileFormatError
from cusa.data.files import atomic_file, file_digest
from cusa.data.parsing import read_json
from cusa.data.records import SPLITS, Dataset, Truth

VERSION = 1  # of the world; raise it with every change to images, captions or truth, so that old folders are redone


def make_demo(
    folder: Path, *, seed: int = 0, n_train: int = 2000, n_val: int = 400, n_test: int = 400
) -> Dataset:
    """Render the data set under ``folder``, or load it if it lies there complete.

    Args:
        folder: Gets ``images/``, ``manifest.jsonl`` (a caption a line, in the form of a user's own data), ``truth.npz``
            and, last, ``demo.json``, which says what was made, and the checksums of the former two.
            A folder that lacks it, that was made from other arguments or another version, or whose
            files have changed, is made anew.
        seed: Of everything; the same seed gives the same bytes.
        n_train: Number of training images.
        n_val: Number of validation images.
        n_test: Number of test images.

    Returns:
        The data set ``demo`` with splits train, val and test, and the known relevance of each.
    """
    sizes = dict(zip(SPLITS, (n_train, n_val, n_test), strict=True))
    made = {"name": "demo", "version": VERSION, "seed": seed, "images": sizes}
    if not _is_complete(folder, made, sizes):
        _make(folder, made, sizes, seed)
    manifest = load_dataset(folder / "manifest.jsonl")
    splits = manifest.splits
    with np.load(folder / "truth.npz") as arrays:
        truth = {
            s: Truth(*(arrays[f"{s}_{name}"] for name in ("image_labels", "indptr", "indices")))
            for s in splits
        }
    return Dataset("demo", folder, splits, truth, files=manifest.files)


def _is_complete(folder: Path, made: Mapping[str, Any], sizes: Mapping[str, int]) -> bool:
    """Whether all that was made is there; a damaged picture is noticed when it is decoded."""
    marker = folder / "demo.json"
    try:
        content = read_json(marker) if marker.is_file() else None
        if content != {**made, "sha256": _digests(folder)}:
            return False
    except (FileFormatError, OSError):
        return False
    return all(
        (folder / _image_path(split, i)).is_file() for split, n in sizes.items() for i in range(n)
    )


def _digests(folder: Path) -> dict[str, str]:
    return {name: file_digest(folder / name).hex() for name in ("manifest.jsonl", "truth.npz")}


def _make(folder: Path, made: Mapping[str, Any], sizes: Mapping[str, int], seed: int) -> None:
    (folder / "demo.json").unlink(
        missing_ok=True
    )  # from here until it is back, the folder is not complete
    for left_over in folder.glob("images/*/demo-*.jpg"):
        left_over.unlink()
    lines: list[str] = []
    arrays: dict[str, np.ndarray] = {}
    for split, n in sizes.items():
        scenes = draw_scenes(split, n, seed)
        captions = [
            draw_captions(scene, stream(seed, split, i, "captions"))
            for i, scene in enumerate(scenes)
        ]
        truth = truth_of(scenes, [claim for of_image in captions for claim in of_image.values()])
        arrays |= {f"{split}_{name}": array for name, array in vars(truth).items()}
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        for i, scene in enumerate(scenes):
            path = _image_path(split, i)
            render(scene, stream(seed, split, i, "pixels")).save(folder / path, quality=90)
            row = {"image": path, "image_id": Path(path).stem, "split": split}
            lines += [json.dumps(row | {"caption": text}) + "\n" for text in captions[i]]
    with atomic_file(folder / "manifest.jsonl") as part:
        part.write_text("".join(lines), encoding="utf-8")
    with atomic_file(folder / "truth.npz") as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes **arrays for allow_pickle
    with atomic_file(folder / "demo.json") as part:
        part.write_text(json.dumps({**made, "sha256": _digests(folder)}) + "\n", encoding="utf-8")


def _image_path(split: str, i: int) -> str:
    return f"images/{split}/demo-{split}-{i:05d}.jpg"
