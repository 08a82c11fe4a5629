"""The embedded data set under every loss, and under other settings of CUSA: each head, on val and
on test.

    cusa-precompute --dataset demo --teacher efficientnet-lite0 --teacher minilm
    python benchmarks/demo_settings.py data/demo_teachers.h5 --out demo_settings.json

Preset demo, as `make demo` trains: the best epoch by val, measured on val, which settings are
chosen on, and on test. Mean and standard deviation over seeds. With one thread, so that it does not
matter how many cores there are.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from loading import machine
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

SMOKE = (
    "{truth_store} --seeds 2 --try loss.beta=0.1 --set train.epochs=1 --set train.batch_size=8",
)
_SOFT = "{init: %s, min: 0.05, max: 1.0, learnable: false}"
SHARPER = tuple(
    f"loss.tau_soft={{image: {_SOFT % tau}, text: {_SOFT % tau}, shared: true}}"
    for tau in ("0.2", "0.3", "0.5")
)
TRIES = ("loss.alpha=0.2", "loss.alpha=0.4", "loss.alpha=0.7", "loss.beta=0.1", *SHARPER)
FIGURES = {
    "RSUM": ("cross", "retrieval", "rsum"),
    "i2t R@1": ("cross", "retrieval", "i2t", "r1"),
    "t2i R@1": ("cross", "retrieval", "t2i", "r1"),
    "true i2t mAP@R": ("cross", "truth", "i2t", "map_at_r"),
    "true t2i mAP@R": ("cross", "truth", "t2i", "map_at_r"),
    "t2t R@1 cross": ("cross", "unimodal", "t2t", "r1"),
    "t2t R@1 uni": ("uni", "unimodal", "t2t", "r1"),
    "i2i R@1 cross": ("cross", "unimodal", "i2i", "r1"),
    "i2i R@1 uni": ("uni", "unimodal", "i2i", "r1"),
}


def measure(store: Path, settings: dict[str, Any], run_dir: Path) -> dict[str, dict[str, float]]:
    """Train one run, and measure its best epoch: the figures by split.

    Args:
        store: The store.
        settings: What differs from the preset ``demo``.
        run_dir: Where the run goes.
    """
    config = build_config(
        merge(load_preset("demo"), merge(settings, {"data": {"embeddings": str(store)}}))
    )
    trainer = Trainer(
        config, Processes("cpu"), 0, run_dir, resume=False, validation_scores=validation_scores
    )
    trainer.fit()
    student = load_trained(run_dir, "best").student
    encoders = trainer.setup.provenance.encoder_names
    figures: dict[str, dict[str, float]] = {}
    for split in ("val", "test"):
        sources = student_sources(EmbeddingStore(store), split, trainer.setup.config, encoders)
        metrics, _ = measure_split(encode_split(student, sources, "cpu"), sources.split, "uni")
        figures[split] = {name: _figure(metrics["heads"], path) for name, path in FIGURES.items()}
    return figures


def _figure(heads: Any, path: tuple[str, ...]) -> float:
    for key in path:
        heads = heads[key]
    return float(heads)


@click.command()
@click.argument("store", type=click.Path(path_type=Path, exists=True))
@click.option("--seeds", default=3)
@click.option(
    "--try",
    "tries",
    multiple=True,
    default=TRIES,
    metavar="NAME=VALUE",
    help="A setting of CUSA, by itself.",
)
@click.option("--set", "common", multiple=True, metavar="NAME=VALUE", help="A setting of all runs.")
@click.option("--out", type=click.Path(path_type=Path))
def main(
    store: Path, seeds: int, tries: tuple[str, ...], common: tuple[str, ...], out: Path | None
) -> None:
    """Train all runs on STORE, print tables, write every figure to --out."""
    torch.set_num_threads(1)
    ways = {loss: {"loss": {"terms": terms}} for loss, terms in TERMS.items() if terms}
    ways |= {
        setting: merge({"loss": {"terms": TERMS["cusa"]}}, parse_settings([setting]))
        for setting in tries
    }
    runs: dict[str, list[dict[str, dict[str, float]]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        for number, (way, seed) in enumerate(
            track(
                [(way, seed) for way in ways for seed in range(seeds)], console=Console(stderr=True)
            )
        ):
            settings = merge(merge(ways[way], parse_settings(common)), {"train": {"seed": seed}})
            runs[way].append(measure(store, settings, Path(folder) / str(number)))
    for split in ("val", "test"):
        table = Table("", *FIGURES, title=f"{split}: mean and standard deviation of {seeds} seeds")
        for way, by_seed in runs.items():
            cells = []
            for name in FIGURES:
                values = [figures[split][name] for figures in by_seed]
                deviation = statistics.stdev(values) if seeds > 1 else 0
                cells.append(f"{statistics.mean(values):.1f} +- {deviation:.1f}")
            table.add_row(way, *cells)
        Console(width=200).print(table)
    if out is not None:
        out.write_text(json.dumps(machine() | {"seeds": seeds, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
