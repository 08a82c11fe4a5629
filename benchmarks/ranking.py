"""Exact ranks against row-by-row sorting, image retrieval against pytorch-metric-learning, FAISS's
approximate indexes.

    python benchmarks/ranking.py --out benchmarks/results/ranking.json

COCO 5K's size, 5,000 images and 25,000 captions, d = 512, random unit rows: all recalls both ways,
from the embeddings and from the score matrix, against what published code does: one product, then
an argsort of every row of it and of its transpose, from which the ranks of the right ones are
looked up. Stanford Online Products' size, 60,502 rows in 11,316 classes, d = 512: R@1, R-Precision
and mAP@R against pytorch-metric-learning's AccuracyCalculator, both from float32 rows. A gallery of
a million: FAISS exact, HNSW and IVF, with the recall that approximation loses; rows in clusters,
since no index can do anything for rows without neighbours. Ways take turns; ratios are medians over
rounds. Memory: the peak of the resident set above the inputs, in a fresh process each.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from cusa.data.environment import cpu_count
from cusa.eval.evaluators.retrieval.measure import (
    cross_modal_recalls,
    cross_modal_recalls_from_scores,
)
from cusa.eval.metrics.by_class import image_retrieval
from cusa.eval.search.approximate import make_index, recall_of_exact

from timing import in_turns

SMOKE = (
    "--images 40 --sop-images 90 --rounds 1 --image-rounds 1 "
    "--gallery 2500 --gallery-dim 8 --gallery-queries 5",
)
N_IMAGES, PER_IMAGE, DIM = 5_000, 5, 512
SOP_IMAGES, SOP_IMAGES_PER_CLASS = 60_502, 5.3466


def unit_rows(n: int, dim: int, seed: int) -> np.ndarray:
    """Random float32 ``[n, dim]``, L2-normalised."""
    rows = np.random.default_rng(seed).standard_normal((n, dim), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def coco_rows(n_images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, captions near them, and the image of each."""
    images, noise = unit_rows(n_images, DIM, 0), unit_rows(n_images * PER_IMAGE, DIM, 1)
    caption_image = np.repeat(np.arange(n_images), PER_IMAGE)
    texts = 0.17 * images[caption_image] + noise
    return images, texts / np.linalg.norm(texts, axis=1, keepdims=True), caption_image


def sorted_rows(images: np.ndarray, texts: np.ndarray, caption_image: np.ndarray) -> list[float]:
    """The six recalls, by sorting every row."""
    scores = (torch.from_numpy(images) @ torch.from_numpy(texts).T).numpy()
    return sorted_scores(scores, scores.T.copy(), caption_image)


def sorted_scores(i2t: np.ndarray, t2i: np.ndarray, caption_image: np.ndarray) -> list[float]:
    """As :func:`sorted_rows`, from the matrix and its transpose."""
    of_image = np.split(
        np.argsort(caption_image, kind="stable"), np.cumsum(np.bincount(caption_image))[:-1]
    )
    ranks_i2t = np.empty(len(i2t))
    for i, row in enumerate(i2t):
        order = np.argsort(row)[::-1]
        ranks_i2t[i] = min(np.where(order == c)[0][0] for c in of_image[i])
    ranks_t2i = np.empty(len(t2i))
    for c, row in enumerate(t2i):
        ranks_t2i[c] = np.where(np.argsort(row)[::-1] == caption_image[c])[0][0]
    return [100.0 * float(np.mean(r < k)) for r in (ranks_i2t, ranks_t2i) for k in (1, 5, 10)]


def six(found: dict[str, Any]) -> list[float]:
    """The recalls of ours."""
    return [found[way][f"r{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10)]


def against_sorting(n_images: int, rounds: int) -> dict[str, Any]:
    """Times of all recalls both ways, and whether they are the same."""
    images, texts, caption_image = coco_rows(n_images)
    scores = images @ texts.T
    both = scores, scores.T.copy()
    results: dict[str, list[float]] = {}

    def keep(name: str, work: Callable[[], list[float]]) -> Callable[[], None]:
        return lambda: results.__setitem__(name, work())

    ways = {
        "embeddings": keep("ours", lambda: six(cross_modal_recalls(images, texts, caption_image))),
        "embeddings, sorted": keep("sorted", lambda: sorted_rows(images, texts, caption_image)),
        "scores": keep(
            "ours from scores", lambda: six(cross_modal_recalls_from_scores(*both, caption_image))
        ),
        "scores, sorted": keep("sorted from scores", lambda: sorted_scores(*both, caption_image)),
        "product alone": lambda: torch.from_numpy(images) @ torch.from_numpy(texts).T,
    }
    times = in_turns(ways, rounds)
    memory = {way: _in_fresh_process(n_images, way) for way in ("ours", "sorted")}
    return {
        "seconds": {name: statistics.median(found) for name, found in times.items()},
        "faster_from_embeddings": _ratio(times, "embeddings, sorted", "embeddings"),
        "faster_from_scores": _ratio(times, "scores, sorted", "scores"),
        "recalls": results,
        "extra_bytes": memory,
        "memory_over_sorting": memory["ours"] / memory["sorted"],
        "rounds_s": times,
    }


def _ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def _in_fresh_process(n_images: int, way: str) -> int:
    command = [sys.executable, __file__, "--images", str(n_images), "--memory", way]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def extra_memory(n_images: int, way: str) -> int:
    """Bytes at the peak above those of the inputs; in this process, which should be fresh."""
    inputs = coco_rows(n_images)
    torch.mm(torch.zeros(256, DIM), torch.zeros(DIM, 256))  # the library's own buffers
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    cross_modal_recalls(*inputs) if way == "ours" else sorted_rows(*inputs)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


def against_metric_learning(n_images: int, rounds: int) -> dict[str, Any]:
    """Times of R@1, R-Precision and mAP@R on SOP's size, and how far the figures are apart."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    rng = np.random.default_rng(0)
    n_classes = round(n_images / SOP_IMAGES_PER_CLASS)
    labels = np.concatenate(
        [np.repeat(np.arange(n_classes), 2), rng.integers(0, n_classes, n_images)]
    )
    labels = rng.permutation(labels[:n_images])
    centres = unit_rows(n_classes, DIM, 2)
    rows = 0.6 * centres[labels] + unit_rows(n_images, DIM, 3)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
    found: dict[str, Any] = {}

    def ours() -> None:
        found["ours"] = image_retrieval(rows, labels)

    def theirs() -> None:
        found["theirs"] = calculator.get_accuracy(torch.from_numpy(rows), torch.from_numpy(labels))

    times = in_turns({"ours": ours, "pytorch-metric-learning": theirs}, rounds)
    both = zip(("precision_at_1", "r_precision", "map_at_r"), names, strict=True)
    apart = {a: abs(found["ours"][a] - 100 * float(found["theirs"][b])) for a, b in both}
    return {
        "seconds": {name: statistics.median(t) for name, t in times.items()},
        "faster": _ratio(times, "pytorch-metric-learning", "ours"),
        "percent_apart": apart,
        "map_at_r": found["ours"]["map_at_r"],
        "rounds_s": times,
    }


def approximate_gallery(n: int, dim: int, queries: int) -> dict[str, Any]:
    """Search of a large gallery, exact and approximate."""
    rng = np.random.default_rng(0)
    centres = unit_rows(max(1, n // 50), dim, 4)
    gallery = np.empty((n, dim), np.float32)
    for a in range(0, n, 100_000):
        part = gallery[a : a + 100_000]
        part[:] = centres[rng.integers(len(centres), size=len(part))] + 0.7 * unit_rows(
            len(part), dim, 5 + a
        )
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    asked = gallery[rng.choice(n, queries, replace=False)] + 0.5 * unit_rows(queries, dim, 6)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    began = time.perf_counter()
    _, exact = faiss.knn(asked, gallery, 10, metric=faiss.METRIC_INNER_PRODUCT)
    found: dict[str, Any] = {"rows": n, "dim": dim, "queries": queries}
    found["exact"] = {"ms_per_query": 1000 * (time.perf_counter() - began) / queries}
    for kind in ("ivf", "hnsw"):
        began = time.perf_counter()
        index = make_index(gallery, kind)  # type: ignore[arg-type]
        built = time.perf_counter() - began
        began = time.perf_counter()
        _, hits = index.search(asked, 10)
        taken = 1000 * (time.perf_counter() - began) / queries
        found[kind] = {
            "build_s": built,
            "ms_per_query": taken,
            "faster_than_exact": found["exact"]["ms_per_query"] / taken,
            "recall_of_exact_top10": recall_of_exact(hits, exact),
            "first_hit_kept": 100.0 * float(np.mean(hits[:, 0] == exact[:, 0])),
        }
        del index
    return found


@click.command()
@click.option("--images", default=N_IMAGES, help="With five captions each; COCO 5K's number.")
@click.option("--rounds", default=5)
@click.option(
    "--sop-images", default=SOP_IMAGES, help="In classes; Stanford Online Products' number."
)
@click.option("--image-rounds", default=3)
@click.option("--gallery", default=1_000_000, help="Rows of the large gallery; 0: leave it out.")
@click.option("--gallery-dim", default=128)
@click.option("--gallery-queries", default=2_000)
@click.option("--only", type=click.Choice(["sorting", "images", "gallery"]), multiple=True)
@click.option("--memory", type=click.Choice(["ours", "sorted"]), hidden=True)
@click.option("--out", type=click.Path(path_type=Path))
def main(
    images: int,
    rounds: int,
    sop_images: int,
    image_rounds: int,
    gallery: int,
    gallery_dim: int,
    gallery_queries: int,
    only: tuple[str, ...],
    memory: str | None,
    out: Path | None,
) -> None:
    """Measure, print tables, write the figures to --out; parts that are left out keep
    theirs there.
    """
    if memory:
        click.echo(extra_memory(images, memory))
        return
    results = json.loads(out.read_text()) if out and out.exists() else {}
    results |= {"machine": platform.platform(), "torch": torch.__version__, "cores": cpu_count()}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "sorting": lambda: against_sorting(images, rounds),
        "images": lambda: against_metric_learning(sop_images, image_rounds),
        "gallery": lambda: approximate_gallery(gallery, gallery_dim, gallery_queries),
    }
    for name, work in parts.items():
        if (only and name not in only) or (name == "gallery" and not gallery):
            continue
        results[name] = work()
        table = Table("figure", "value", title=name)
        for key, value in results[name].items():
            if key != "rounds_s":
                table.add_row(key, json.dumps(value))
        Console(width=160).print(table)
        if out is not None:
            out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
