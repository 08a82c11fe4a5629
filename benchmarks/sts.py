"""Sentence models on semantic textual similarity, beside their published figures.

    python benchmarks/sts.py data/senteval --model all-mpnet-base-v2 --out sts.json

Every task below DATA is scored with sentence-transformers' own encode. The published figures are
those of MTEB (Muennighoff et al., EACL 2023; results/MODEL/TASK.json of the repository
embeddings-benchmark/mtebpaper, cos_sim.spearman), which follow the same rule. A model in a folder
of another name is given as NAME=FOLDER.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from loading import machine
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer
from sentence_transformers import __version__ as library_version

from cusa.eval.evaluators.sts.data import find_sts_tasks
from cusa.eval.evaluators.sts.measure import evaluate_sts
from cusa.eval.evaluators.sts.tasks import StsTask

SMOKE = ("{sts} --model words={words} --allow-partial",)
PUBLISHED = {
    "all-MiniLM-L6-v2": {
        "STS12": 72.37,
        "STS13": 80.60,
        "STS14": 75.59,
        "STS15": 85.39,
        "STS16": 78.99,
        "STSBenchmark": 82.03,
        "SICKRelatedness": 77.58,
    },
    "all-mpnet-base-v2": {
        "STS12": 72.63,
        "STS13": 83.48,
        "STS14": 78.00,
        "STS15": 85.66,
        "STS16": 80.03,
        "STSBenchmark": 83.42,
        "SICKRelatedness": 80.59,
    },
}


def measure(source: str, tasks: list[StsTask], batch_size: int) -> dict[str, Any]:
    """All scores of one model."""
    model = SentenceTransformer(source, trust_remote_code=False)

    scores = {}
    for task in tasks:
        rows = np.asarray(
            model.encode(task.sentences, batch_size=batch_size, show_progress_bar=False)
        )
        task_scores, _ = evaluate_sts(task, rows)
        scores[task.name] = {"fingerprint": task.fingerprint, **task_scores}
    return scores


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--model",
    "models",
    multiple=True,
    required=True,
    help="Name or folder, or NAME=FOLDER; repeatable.",
)
@click.option("--batch-size", default=64)
@click.option("--allow-partial", is_flag=True, help="Score tasks that are not complete, too.")
@click.option("--out", type=click.Path(path_type=Path))
def main(
    data: Path, models: tuple[str, ...], batch_size: int, allow_partial: bool, out: Path | None
) -> None:
    """Score every model on every task below DATA, print a table, write all figures to --out."""
    tasks = find_sts_tasks(data, allow_partial)
    results: dict[str, dict[str, Any]] = {}
    table = Table(
        "model",
        "task",
        "pairs",
        "100 x Spearman",
        "published (MTEB)",
        "difference",
        "100 x Pearson",
    )
    for given in models:
        name, equals, source = given.partition("=")
        name = name if equals else Path(given).name
        scores = measure(source if equals else given, tasks, batch_size)
        results[name] = {"tasks": scores, "published": PUBLISHED.get(name, {})}
        for task, found in scores.items():
            published = PUBLISHED.get(name, {}).get(task)
            table.add_row(
                name,
                task,
                f"{found['pairs']:,}",
                f"{found['headline']:.2f}",
                f"{published:.2f}" if published else "",
                f"{found['headline'] - published:+.2f}" if published else "",
                f"{found['pearson']['all']:.2f}",
            )
    Console(width=120).print(table)
    if out is not None:
        run = {
            **machine(),
            "sentence_transformers": library_version,
            "data": [task.name for task in tasks],
        }
        out.write_text(json.dumps({**run, "models": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
