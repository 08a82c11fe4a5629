"""Contrastive, CSA, USA and CUSA on a small COCO: mean and standard deviation over seeds.

Trains the adapter student on split train and measures split val. The epoch is the last one: choosing the best epoch on
the split that is reported would flatter every method. Usage, on a store that cusa-precompute made:

    python benchmarks/coco_sample.py runs/sample/coco.h5 --text-teacher mpnet --text-teacher minilm --out results.json
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cusa.data.store import EmbeddingStore
from cusa.eval.retrieval import evaluate
from cusa.train.config import build_config, load_preset, merge
from cusa.train.encode import encode_split
from cusa.train.loop import Trainer
from cusa.train.losses import TERMS
from cusa.train.processes import Processes
from cusa.train.run_dir import load_trained
from cusa.train.setup import student_sources


def measure(store: Path, loss: str, text_teacher: str, seed: int, run_dir: Path) -> dict[str, float]:
    """Train one run and measure its last epoch on val."""
    settings = {
        "data": {"embeddings": str(store), "image_teacher": "efficientnet-lite0", "text_teacher": text_teacher},
        "student": {"image_encoder": "efficientnet-lite0", "text_encoder": "minilm"},
        "loss": {"terms": TERMS[loss]},
        "train": {"seed": seed},
    }
    config = build_config(merge(load_preset("adapter"), settings))
    started = time.perf_counter()
    Trainer(config, Processes("cpu"), 0, run_dir, resume=False).fit()
    seconds = time.perf_counter() - started
    loaded = load_trained(run_dir, "last")
    encoders = "efficientnet-lite0", "minilm"
    sources = student_sources(EmbeddingStore(store), "val", config, encoders, processors=None)
    heads = evaluate(encode_split(loaded.student, sources, "cpu"), sources.split, "uni")["heads"]
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
@click.option("--seeds", default=5)
@click.option("--out", type=click.Path(path_type=Path))
def main(store: Path, text_teachers: tuple[str, ...], seeds: int, out: Path | None) -> None:
    """Run the grid on STORE, print a table, write every single figure to --out."""
    grid = [(t, loss, seed) for t in text_teachers for loss in TERMS for seed in range(seeds)]
    results: dict[str, dict[str, list[dict[str, float]]]] = {t: {loss: [] for loss in TERMS} for t in text_teachers}
    with tempfile.TemporaryDirectory() as folder:
        for text_teacher, loss, seed in track(grid, console=Console(stderr=True)):
            run_dir = Path(folder) / f"{text_teacher}-{loss}-{seed}"
            results[text_teacher][loss].append(measure(store, loss, text_teacher, seed, run_dir))
    names = list(results[text_teachers[0]]["cusa"][0])
    table = Table(
        "text teacher", "loss", *names, title=f"mean and standard deviation of {seeds} seeds, last epoch, val"
    )
    for text_teacher, by_loss in results.items():
        for loss, runs in by_loss.items():
            cells = []
            for name in names:
                values = [r[name] for r in runs]
                cells.append(f"{statistics.mean(values):.1f} +- {statistics.stdev(values) if seeds > 1 else 0:.1f}")
            table.add_row(text_teacher, loss, *cells)
    Console(width=160).print(table)
    if out is not None:
        machine = {"platform": platform.platform(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        out.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
