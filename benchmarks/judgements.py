"""Contrastive and CUSA against people: how a model's cosines follow Flickr8k's judgements.

Trains the adapter student on split train of a store and measures split test: the best epoch by val.
Usage, on a store that cusa-precompute made of Flickr8k:

    python benchmarks/judgements.py runs/flickr8k.h5 CrowdFlowerAnnotations.txt --out results.json
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cusa.data.store.reader import EmbeddingStore
from cusa.eval.evaluators.judgements.data import JudgementFile, read_judgements
from cusa.eval.evaluators.judgements.matching import match_judgements, rows_in_split
from cusa.eval.evaluators.judgements.measure import measure_heads
from cusa.eval.evaluators.splits import EvaluatedSplit
from cusa.eval.metrics.metric_options import Scoring
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
    "{store} {judgements} --image-encoder vision --text-encoder words --seeds 2 "
    "--set train.epochs=1 --set train.batch_size=8",
)
LOSSES = ("contrastive", "cusa")


def measure(
    store_file: Path, judgements: JudgementFile, settings: dict[str, Any], run_dir: Path
) -> dict[str, float | None]:
    """Train one run, and measure its best epoch on test by the labels and by people.

    Args:
        store_file: The store.
        judgements: People's judgements of its test split.
        settings: What differs from the preset ``adapter-published``.
        run_dir: Where the run goes.
    """
    config = build_config(merge(load_preset("adapter-published"), settings))
    processes = Processes("cpu")
    Trainer(config, processes, 0, run_dir, False, validation_scores=validation_scores).fit()
    loaded = load_trained(run_dir, "best")
    store = EmbeddingStore(store_file)
    student = settings["student"]
    encoders = {"image": student["image_encoder"], "text": student["text_encoder"]}
    sources = student_sources(store, "test", config, encoders)
    embeddings = encode_split(loaded.student, sources, "cpu")
    split = EvaluatedSplit.from_store(store, "test")
    rows = rows_in_split(judgements, split)
    judged = match_judgements(judgements, split, rows, embeddings)
    heads, _ = measure_heads(embeddings, {judgements.kind: judged}, split.title, Scoring())
    by_labels, by_people = heads["cross"]["labels"], heads["cross"]["judged"][judgements.kind]
    figures: dict[str, float | None] = {
        "kendall_tau_c": by_people["kendall_tau_c"],
        "spearman": by_people["spearman"],
    }
    for name, directions in (("labels", by_labels), ("people", by_people["retrieval"])):
        for direction in ("i2t", "t2i"):
            figures[f"{direction}_r1_by_{name}"] = directions[direction]["r1"]
            figures[f"{direction}_ap_by_{name}"] = directions[direction]["average_precision"]
    return figures


@click.command()
@click.argument("store", type=click.Path(path_type=Path, exists=True))
@click.argument("judgements", type=click.Path(path_type=Path, exists=True))
@click.option("--image-encoder", default="efficientnet-lite0", help="Image encoder and teacher.")
@click.option("--text-encoder", default="minilm", help="Text encoder and teacher.")
@click.option(
    "--set", "more", multiple=True, metavar="NAME=VALUE", help="Another setting, as of cusa-train."
)
@click.option("--seeds", default=3)
@click.option("--out", type=click.Path(path_type=Path))
def main(
    store: Path,
    judgements: Path,
    image_encoder: str,
    text_encoder: str,
    more: tuple[str, ...],
    seeds: int,
    out: Path | None,
) -> None:
    """Train both losses on STORE, measure them by JUDGEMENTS, write every figure to --out."""
    file = read_judgements(judgements)
    student = {"image_encoder": image_encoder, "text_encoder": text_encoder}
    data = {
        "embeddings": str(store),
        "image_teacher": image_encoder,
        "text_teacher": text_encoder,
    }
    grid = [(loss, seed) for loss in LOSSES for seed in range(seeds)]
    results: dict[str, list[dict[str, float | None]]] = {loss: [] for loss in LOSSES}
    with tempfile.TemporaryDirectory() as folder:
        for loss, seed in track(grid, console=Console(stderr=True)):
            settings = {"student": student, "data": data, "loss": {"terms": TERMS[loss]}}
            settings = merge(merge(settings, {"train": {"seed": seed}}), parse_settings(more))
            run_dir = Path(folder) / f"{loss}-{seed}"
            results[loss].append(measure(store, file, settings, run_dir))
    table = Table("figure", *LOSSES, title=f"test, mean and standard deviation of {seeds} seeds")
    for name in results["cusa"][0]:
        cells = []
        for runs in results.values():
            cells.append(mean_and_deviation([run[name] for run in runs]))
        table.add_row(name, *cells)
    Console().print(table)
    if out is not None:
        figures = {"machine": machine(), "results": results}
        out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
