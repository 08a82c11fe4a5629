"""Contrastive, CSA, USA and CUSA on a small COCO: mean and standard deviation over seeds.

Trains the adapter student on split train and measures split val. The epoch is the last one:
choosing the best epoch on the split that is reported would flatter every method. Usage, on a store
that cusa-precompute made:

    python benchmarks/coco_sample.py runs/sample/coco.h5 --text-teacher mpnet --out results.json
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cusa.data.store.reader import EmbeddingStore
from cusa.eval.evaluators.retrieval.measure import measure_split
from cusa.eval.metrics.validation import validation_scores
from cusa.train.config_building import build_config, merge, parse_settings
from cusa.train.encode_split import encode_split
from cusa.train.loss.config import TERMS
from cusa.train.preset_files import load_preset
from cusa.train.processes import Processes
from cusa.train.saving.run_dir import load_trained
from cusa.train.sources import student_sources
from cusa.train.trainer import Trainer

from timing import machine, mean_and_deviation

SMOKE = (
    "{store} --text-teacher words --image-teacher vision "
    "--image-encoder vision --text-encoder words "
    "--seeds 2 --set train.epochs=1 --set train.batch_size=8",
)

LOSSES = [loss for loss, terms in TERMS.items() if terms]


def measure(store: Path, settings: dict[str, Any], run_dir: Path) -> dict[str, float]:
    """Train one run and measure its last epoch on val.

    Args:
        store: The store.
        settings: What differs from the preset ``adapter-published``.
        run_dir: Where the run goes.
    """
    config = build_config(merge(load_preset("adapter-published"), settings))
    started = time.perf_counter()
    Trainer(
        config, Processes("cpu"), 0, run_dir, resume=False, validation_scores=validation_scores
    ).fit()
    seconds = time.perf_counter() - started
    loaded = load_trained(run_dir, "last")
    student = settings["student"]
    encoders = {"image": student["image_encoder"], "text": student["text_encoder"]}
    sources = student_sources(EmbeddingStore(store), "val", config, encoders)
    metrics, _ = measure_split(encode_split(loaded.student, sources, "cpu"), sources.split, "uni")
    heads = metrics["heads"]
    return {
        "rsum": heads["cross"]["retrieval"]["rsum"],
        "i2t_r1": heads["cross"]["retrieval"]["i2t"]["r1"],
        "t2i_r1": heads["cross"]["retrieval"]["t2i"]["r1"],
        "t2t_r1_uni": heads["uni"]["unimodal"]["t2t"]["r1"],
        "t2t_r1_cross": heads["cross"]["unimodal"]["t2t"]["r1"],
        "seconds": seconds,
    }


@click.command()
@click.argument("store", type=click.Path(path_type=Path, exists=True))
@click.option("--text-teacher", "text_teachers", multiple=True, default=["mpnet", "minilm"])
@click.option("--image-teacher", default="efficientnet-lite0")
@click.option("--image-encoder", default="efficientnet-lite0")
@click.option("--text-encoder", default="minilm")
@click.option(
    "--set", "more", multiple=True, metavar="NAME=VALUE", help="Another setting, as of cusa-train."
)
@click.option("--seeds", default=5)
@click.option("--out", type=click.Path(path_type=Path))
def main(
    store: Path,
    text_teachers: tuple[str, ...],
    image_teacher: str,
    image_encoder: str,
    text_encoder: str,
    more: tuple[str, ...],
    seeds: int,
    out: Path | None,
) -> None:
    """Run the grid on STORE, print a table, write every single figure to --out."""
    student = {"image_encoder": image_encoder, "text_encoder": text_encoder}
    grid = [(t, loss, seed) for t in text_teachers for loss in LOSSES for seed in range(seeds)]
    results: dict[str, dict[str, list[dict[str, float]]]] = {
        t: {loss: [] for loss in LOSSES} for t in text_teachers
    }
    with tempfile.TemporaryDirectory() as folder:
        for text_teacher, loss, seed in track(grid, console=Console(stderr=True)):
            run_dir = Path(folder) / f"{text_teacher}-{loss}-{seed}"
            teachers = {"image_teacher": image_teacher, "text_teacher": text_teacher}
            settings = merge(
                {"student": student, "loss": {"terms": TERMS[loss]}, "train": {"seed": seed}},
                parse_settings(more),
            )
            settings = merge(settings, {"data": {"embeddings": str(store), **teachers}})
            results[text_teacher][loss].append(measure(store, settings, run_dir))
    names = list(results[text_teachers[0]]["cusa"][0])
    table = Table(
        "text teacher",
        "loss",
        *names,
        title=f"mean and standard deviation of {seeds} seeds, last epoch, val",
    )
    for text_teacher, by_loss in results.items():
        for loss, runs in by_loss.items():
            cells = []
            for name in names:
                cells.append(mean_and_deviation([r[name] for r in runs]))
            table.add_row(text_teacher, loss, *cells)
    Console(width=160).print(table)
    if out is not None:
        figures = {"machine": machine(), "results": results}
        out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
