"""The embedded data set ``demo`` as files: made in seconds, the same bytes for the same seed. See demo_world.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cusa.data.datasets import load_dataset
from cusa.data.demo_render import render
from cusa.data.demo_world import draw_captions, draw_scenes, stream, truth_of
from cusa.data.files import atomic_file
from cusa.data.records import SPLITS, Dataset, Truth

VERSION = 1  # of the world; raise it with every change to images, captions or truth, so that old folders are redone


def make_demo(folder: Path, *, seed: int = 0, n_train: int = 2000, n_val: int = 400, n_test: int = 400) -> Dataset:
    """Render the data set under ``folder``, or load it if it lies there complete.

    Args:
        folder: Gets ``images/``, ``manifest.jsonl`` (a caption a line, in the form of a user's own data), ``truth.npz``
            and, last, ``demo.json``, which says what was made. A folder that lacks it, or that was made from other
            arguments or another version, is made anew.
        seed: Of everything; the same seed gives the same bytes.
        n_train: Number of training images.
        n_val: Number of validation images.
        n_test: Number of test images.

    Returns:
        The data set ``demo`` with splits train, val and test, and the known relevance of each.
    """
    sizes = dict(zip(SPLITS, (n_train, n_val, n_test), strict=True))
    made = json.dumps({"name": "demo", "version": VERSION, "seed": seed, "images": sizes}) + "\n"
    if not _is_complete(folder, made, sizes):
        _make(folder, made, sizes, seed)
    manifest = load_dataset(folder / "manifest.jsonl")
    splits = manifest.splits
    with np.load(folder / "truth.npz") as arrays:
        truth = {s: Truth(*(arrays[f"{s}_{name}"] for name in ("image_labels", "indptr", "indices"))) for s in splits}
    return Dataset("demo", folder, splits, truth, files=manifest.files)


def _is_complete(folder: Path, made: str, sizes: Mapping[str, int]) -> bool:
    marker = folder / "demo.json"
    if not marker.is_file() or marker.read_text(encoding="utf-8") != made:
        return False
    files = [folder / "manifest.jsonl", folder / "truth.npz"]
    return all(f.is_file() for f in files + [folder / _image_path(s, i) for s, n in sizes.items() for i in range(n)])


def _make(folder: Path, made: str, sizes: Mapping[str, int], seed: int) -> None:
    (folder / "demo.json").unlink(missing_ok=True)  # from here until it is back, the folder is not complete
    for left_over in folder.glob("images/*/demo-*.jpg"):
        left_over.unlink()
    lines: list[str] = []
    arrays: dict[str, np.ndarray] = {}
    for split, n in sizes.items():
        scenes = draw_scenes(split, n, seed)
        captions = [draw_captions(scene, stream(seed, split, i, "captions")) for i, scene in enumerate(scenes)]
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
        part.write_text(made, encoding="utf-8")


def _image_path(split: str, i: int) -> str:
    return f"images/{split}/demo-{split}-{i:05d}.jpg"
