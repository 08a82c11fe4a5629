"""What halving large JPEGs while they are decoded does to embeddings, and what it saves.

    python benchmarks/jpeg_draft.py FOLDER --out benchmarks/results/jpeg_draft.json

FOLDER holds photographs of a camera's size or, with --enlarge 3, smaller ones that are made larger here and saved again
(they have less fine detail than a camera's, which favours halving; the run's own comparison sees the real ones).
The margin is how many times the teacher's input size both sides of a halved picture keep; cusa-precompute uses 3, and
only where its own comparison on the user's pictures finds no cosine below 0.999.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from cusa.precompute.reading import read_image
from cusa.precompute.teachers import parse_teacher
from cusa.precompute.teachers.base import stacked

SMOKE = ("{images} --teacher vit={vit} --rounds 1",)


def enlarged(source: Path, target: Path, factor: int) -> list[Path]:
    """The pictures of a folder, larger."""
    made = []
    for path in sorted(source.glob("*.jpg")):
        with Image.open(path) as image:
            size = image.width * factor, image.height * factor
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(
                target / path.name, quality=92
            )
        made.append(target / path.name)
    return made


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--teacher", "name", default="efficientnet-lite0")
@click.option("--enlarge", default=3)
@click.option("--rounds", default=3)
@click.option("--out", type=click.Path(path_type=Path))
def main(folder: Path, name: str, enlarge: int, rounds: int, out: Path | None) -> None:
    """Measure, print a table, write the figures to --out."""
    teacher = parse_teacher(name).load("cpu")
    assert teacher.input_size is not None, "the teacher must tell its input size"
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        paths = enlarged(folder, Path(temporary), enlarge)
        rows: dict[str, np.ndarray] = {}
        seconds: dict[str, list[float]] = {}
        for _ in range(rounds):
            for margin in (None, 1, 1.5, 2, 3):
                key = "full" if margin is None else f"margin {margin}"
                size = None if margin is None else int(margin * teacher.input_size)
                began = time.perf_counter()
                pixels = [read_image(path, replace(teacher, draft_size=size)) for path in paths]
                seconds.setdefault(key, []).append((time.perf_counter() - began) / len(paths))
                if key not in rows:
                    parts = [teacher.rows(stacked([p]), "cpu", "fp32") for p in pixels]
                    rows[key] = np.concatenate(parts)
        full = statistics.median(seconds["full"])
        for key, found in rows.items():
            cosines = (found * rows["full"]).sum(axis=1)
            ms = 1e3 * statistics.median(seconds[key])
            results[key] = {
                "least_cosine": float(cosines.min()),
                "mean_cosine": float(cosines.mean()),
                "ms_per_image": ms,
                "speed_over_full": 1e3 * full / ms,
            }
    table = Table(f"{name}, {len(paths)} pictures", *next(iter(results.values())))
    for key, values in results.items():
        table.add_row(key, *(f"{v:.4f}" for v in values.values()))
    Console(width=110).print(table)
    if out is not None:
        out.write_text(
            json.dumps({"machine": platform.platform(), "results": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
