"""Tiny models, images and texts under COCO's kind of ids, and what the commands wrote
about them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers import make_images, make_tiny_clip, make_tiny_sentence, make_tiny_vit, run_ok

SPLITS = {"train": 16, "val": 4, "test": 6}


def make_home(folder: Path) -> Path:
    """Models ``clip``, ``vit``, ``bert``; ``tiny.json`` in Karpathy's form with its images."""
    make_tiny_clip(folder / "clip")
    make_tiny_vit(folder / "vit")
    make_tiny_sentence(folder / "bert")
    names = iter(make_images(folder / "images", sum(SPLITS.values())))
    images = []
    for split, n in SPLITS.items():
        for _ in range(n):
            number = len(images)
            captions = [
                {
                    "raw": f"picture number {number} version {c + 3 * (number % 7)}",
                    "sentid": caption_id(number, c),
                }
                for c in range(2)
            ]
            image = {
                "filename": next(names),
                "cocoid": image_id(number),
                "split": split,
                "sentences": captions,
            }
            images.append(image)
    for name in ("tiny", "coco"):
        (folder / "images" / f"{name}.json").write_text(
            json.dumps({"dataset": name, "images": images})
        )
    return folder


def image_id(number: int) -> int:
    """Of the number-th image; those of the test are 20 to 25."""
    return 900 + 7 * number


def caption_id(number: int, c: int) -> int:
    """Of its c-th caption."""
    return 40_000 + 10 * number + c


def make_run(home: Path) -> Path:
    """A store of tiny.json, and an adapter trained on it."""
    teachers = ("--teacher", f"see={home / 'vit'}", "--teacher", f"read={home / 'bert'}")
    run_ok(
        "precompute",
        "--dataset",
        home / "images" / "tiny.json",
        *teachers,
        "--out",
        home / "store" / "tiny.h5",
    )
    args = (
        "--embeddings",
        home / "store" / "tiny.h5",
        "--student",
        "adapter",
        "--run-dir",
        home / "runs" / "adapter",
    )
    run_ok(
        "train",
        *args,
        "--batch-size",
        8,
        "--epochs",
        1,
        "--set",
        "student.embed_dim=8",
        "--loss",
        "cusa",
    )
    return home / "runs" / "adapter"


def make_classes(folder: Path, classes: int = 4, each: int = 3) -> Path:
    """A folder of images per class, and one class of a single image."""
    for number in range(classes):
        make_images(folder / f"class {number}", each if number else 1, seed=number)
    return folder


def make_inshop(folder: Path) -> Path:
    """In-Shop in its published layout: 5 items, each with a query and two gallery images."""
    rows = []
    for item in range(5):
        place = f"img/MEN/Denim/id_{item:08d}"
        names = make_images(folder / place, 3, seed=item)
        for name, status in zip(names, ("query", "gallery", "gallery"), strict=True):
            rows.append(f"{place}/{name} id_{item:08d} {status}\n")
    head = f"{len(rows)}\nimage_name item_id evaluation_status\n"
    (folder / "list_eval_partition.txt").write_text(head + "".join(rows))
    return folder


def make_sts(folder: Path, pairs: int = 12) -> Path:
    """STS12, STSBenchmark and SICK-R in SentEval's layout, of fewer pairs than published."""
    rng = np.random.default_rng(0)

    def pair() -> tuple[str, str, str]:
        first, second = rng.integers(0, 50, (2, 3)).tolist()
        return *(
            f"picture number {' '.join(map(str, of))}" for of in (first, second)
        ), f"{rng.integers(0, 26) / 5:g}"

    years = folder / "STS" / "STS12-en-test"
    years.mkdir(parents=True)
    for name in ("MSRpar", "MSRvid"):
        rows = [pair() for _ in range(pairs)]
        (years / f"STS.input.{name}.txt").write_text("".join(f"{a}\t{b}\n" for a, b, _ in rows))
        (years / f"STS.gs.{name}.txt").write_text("".join(f"{score}\n" for *_, score in rows))
    (folder / "STS" / "STSBenchmark").mkdir()
    rows = [pair() for _ in range(pairs)]
    lines = (f"g\tf\ty\t{i}\t{score}\t{a}\t{b}\n" for i, (a, b, score) in enumerate(rows))
    (folder / "STS" / "STSBenchmark" / "sts-test.csv").write_text("".join(lines))
    (folder / "SICK").mkdir()
    lines = (
        f"{i}\t{a}\t{b}\t{score}\tX\n"
        for i, (a, b, score) in enumerate(pair() for _ in range(pairs))
    )
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
    (folder / "SICK" / "SICK_test_annotated.txt").write_text(header + "".join(lines))
    return folder


def make_cxc(folder: Path) -> Path:
    """Judgements of the test's captions and images, both kinds and across: all pairs of different
    numbers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(20, 26)
    captions = {n: f"COCO_val2014:sentid:{caption_id(n, 1)}" for n in numbers}
    images = {n: f"COCO_val2014_{image_id(n):012d}.jpg" for n in numbers}
    kinds = {
        "sts": ("caption1,caption2", captions, captions),
        "sis": ("image1,image2", images, images),
        "sits": ("caption,image", captions, images),
    }
    for kind, (columns, first, second) in kinds.items():
        pairs = ((a, b) for a in numbers for b in numbers if a != b)
        rows = (f"{first[a]},{second[b]},{cxc_score(a, b)}\n" for a, b in pairs)
        (folder / f"{kind}_test.csv").write_text(f"{columns},agg_score\n{''.join(rows)}")
    return folder


def cxc_score(a: int, b: int) -> float:
    """Of a pair of the test's images by number; no other pair has it."""
    return round(17 * (6 * (a - 20) + b - 20) % 36 * 0.13, 2)


def strict(path: Path) -> dict[str, Any]:
    """Content of a JSON file that holds no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(), parse_constant=refuse)
