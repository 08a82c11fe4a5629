"""Stage one as a whole against its parts, and its text rate against SentenceTransformer.encode.

    python benchmarks/pipeline.py --dataset coco.json --image-root images --out pipeline.json

Images: the whole stage (decode, encode, checksum, write) against the bare teacher on tensors in
memory plus bare decoding in as many processes; on a GPU, where the two can run side by side,
against the slower of them. Text: the whole stage against SentenceTransformer.encode with the same
model, batch size, cores and precision; and reduced precision with its cosine. The ways take turns;
medians over rounds.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from cusa.cli.console import quiet_libraries
from cusa.data.captions import normalize_caption
from cusa.data.datasets import load_dataset
from cusa.data.environment import cpu_count
from cusa.data.records import Dataset
from cusa.data.store.shards import ShardHeader
from cusa.precompute.image_source import ImageFiles
from cusa.precompute.pipeline import PipelineOptions, encode_shards
from cusa.precompute.reading import ImageReader
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.teachers import parse_teacher
from cusa.precompute.teachers.base import Teacher
from cusa.stages.machine import pick_device

from timing import in_turns

SMOKE = (
    "--dataset {pairs} --image-teacher vit={vit} --text-teacher words={words} "
    "--device cpu --rounds 1",
)


def stage(teacher: Teacher, dataset: Dataset, options: PipelineOptions, n: int) -> np.ndarray:
    """The whole of stage one for the rows of split train, into a folder that is thrown away; the
    rows.
    """
    with tempfile.TemporaryDirectory() as folder:
        task = ShardTask(Path(folder) / "s.h5", "t", "train", 0, n)
        settings = teacher.settings(options.precision, "float16", "albef")
        header = ShardHeader("t", "train", "f", 0, n, settings)
        made = encode_shards(
            teacher,
            settings.normalizer,
            lambda _: header,
            iter([task]),
            dataset,
            options,
            lambda _task, _n: None,
        )
        return np.fromfile(task.path, "<f2", n * teacher.dim, offset=made[task].offset).reshape(
            n, -1
        )


def medians(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way, in turns."""
    return {name: statistics.median(values) for name, values in in_turns(ways, rounds).items()}


def images(dataset: Dataset, name: str, options: PipelineOptions, rounds: int) -> dict[str, Any]:
    """The whole stage and its parts, images."""
    teacher = parse_teacher(name).load(options.device)
    n = len(dataset.splits["train"])
    starts = range(0, n, teacher.batch_size)
    places = [("train", np.arange(start, min(start + teacher.batch_size, n))) for start in starts]
    reader = ImageReader(ImageFiles(dataset), teacher)
    batches = [reader[place].inputs for place in places]

    def bare_teacher() -> None:
        for batch in batches:
            teacher.rows(batch, options.device, options.precision)

    def bare_decoding() -> None:
        loader = DataLoader(reader, batch_size=None, sampler=places, num_workers=options.workers)
        for _ in loader:
            pass

    seconds = medians(
        {
            "whole stage": lambda: stage(teacher, dataset, options, n),
            "bare teacher": bare_teacher,
            "bare decoding": bare_decoding,
        },
        rounds,
    )
    parts = seconds["bare teacher"], seconds["bare decoding"]
    limit = sum(parts) if options.device == "cpu" else max(parts)
    return {
        "teacher": name,
        "rows": n,
        "rows_per_s": {way: n / s for way, s in seconds.items()},
        "rate_over_limit": limit / seconds["whole stage"],
    }


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length one, float32."""
    rows = rows.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def texts(dataset: Dataset, name: str, options: PipelineOptions, rounds: int) -> dict[str, Any]:
    """The whole stage and SentenceTransformer.encode, captions."""
    from sentence_transformers import SentenceTransformer

    request = parse_teacher(name)
    teacher = request.load(options.device)
    model = SentenceTransformer(
        teacher.source,
        device=options.device,
        model_kwargs={"dtype": torch.float32},
        trust_remote_code=False,
    )
    captions = [normalize_caption(c) for c in dataset.splits["train"].captions]
    distinct = len(set(captions))
    reduced = "bf16" if options.device == "cpu" else "fp16"
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}

    def reference(precision: str) -> np.ndarray:
        with torch.autocast(
            torch.device(options.device).type, kinds.get(precision), enabled=precision in kinds
        ):
            return model.encode(captions, batch_size=teacher.batch_size, show_progress_bar=False)

    def ours(precision: str) -> np.ndarray:
        return stage(teacher, dataset, replace(options, precision=precision), len(captions))

    seconds = medians(
        {
            f"{way}, {precision}": lambda run=run, precision=precision: run(precision)
            for precision in ("fp32", reduced)
            for way, run in (("whole stage", ours), ("SentenceTransformer.encode", reference))
        },
        rounds,
    )
    full, half, theirs = (unit(rows) for rows in (ours("fp32"), ours(reduced), reference("fp32")))
    return {
        "teacher": name,
        "rows": len(captions),
        "distinct": distinct,
        "batch_size": teacher.batch_size,
        "rows_per_s": {way: len(captions) / s for way, s in seconds.items()},
        "ours_over_encode": {
            p: seconds[f"SentenceTransformer.encode, {p}"] / seconds[f"whole stage, {p}"]
            for p in ("fp32", reduced)
        },
        "reduced_over_full": seconds["whole stage, fp32"] / seconds[f"whole stage, {reduced}"],
        "least_cosine_of_reduced": float((full * half).sum(axis=1).min()),
        "least_cosine_to_encode": float((full * theirs).sum(axis=1).min()),
    }


@click.command()
@click.option("--dataset", "annotations", required=True, help="As for cusa-precompute.")
@click.option("--image-root", type=click.Path(path_type=Path))
@click.option("--image-teacher", "image_teachers", multiple=True, default=["efficientnet-lite0"])
@click.option("--text-teacher", "text_teachers", multiple=True, default=["minilm"])
@click.option("--device", default="auto")
@click.option(
    "--repeat", default=1, help="The data set so many times over, where a device is fast."
)
@click.option("--rounds", default=5)
@click.option("--out", type=click.Path(path_type=Path))
def main(
    annotations: str,
    image_root: Path | None,
    image_teachers: tuple[str, ...],
    text_teachers: tuple[str, ...],
    device: str,
    repeat: int,
    rounds: int,
    out: Path | None,
) -> None:
    """Measure, print tables, write the figures to --out."""
    quiet_libraries()
    device = pick_device(device)
    dataset = load_dataset([annotations], image_root)
    dataset = replace(dataset, splits={"train": [*dataset.splits["train"]] * repeat})
    encoders = cpu_count() if device == "cpu" else 2
    precision = "fp32" if device == "cpu" else "fp16"
    options = PipelineOptions(device, precision, min(cpu_count(), 16), encoders, skip_errors=False)
    machine = torch.cuda.get_device_name() if device == "cuda" else platform.platform()
    results: dict[str, Any] = {"machine": machine, "cores": cpu_count(), "torch": torch.__version__}
    results["images"] = [images(dataset, name, options, rounds) for name in image_teachers]
    results["texts"] = [texts(dataset, name, options, rounds) for name in text_teachers]
    screen = Console(width=120)
    for kind in ("images", "texts"):
        for found in results[kind]:
            table = Table(
                found["teacher"],
                "rows/s",
                title=f"{found['rows']:,} {kind}, {machine}, {cpu_count()} cores",
            )
            for way, rate in found["rows_per_s"].items():
                table.add_row(way, f"{rate:,.1f}")
            screen.print(table)
            print({k: v for k, v in found.items() if k not in ("rows_per_s", "teacher", "rows")})
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
