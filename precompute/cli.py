"""``cusa-precompute``: run the teachers once over a data set, into an embedding store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cusa.data.console import one_line_errors

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from cusa.data.records import Dataset
    from cusa.data.shards import TeacherEntry
    from cusa.precompute.teachers import TeacherRequest


@dataclass(frozen=True)
class Options:
    """The command line, once understood; fields are those of its options."""

    out: Path
    splits: str | None
    limit: int | None
    device: str
    precision: str
    batch_size: int | None
    workers: int | None
    shard_rows: int
    dtype: str
    normalizer: str
    on_error: str


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--dataset", "datasets", multiple=True, required=True, metavar="coco|flickr30k|demo|[SPLIT=]PATH",
              help="Data set by name, or annotation files: Karpathy, ALBEF or flat json, your own .jsonl or .csv. "
              "Repeat it for files of one split each.")  # fmt: skip
@click.option("--teacher", "teachers", multiple=True, metavar="NAME|NAME=PATH|OWNER/MODEL|FOLDER",
              help="Repeatable. Known: unicom, unicom-vit-b-16, unicom-vit-l-14, unicom-vit-l-14-336px, "
              "efficientnet-lite0 (images); mpnet, minilm (text); any Hugging Face vision or sentence-transformers "
              "model. A modality that none is named for gets unicom or mpnet.")  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), help="The store's index.  [default: DATA_ROOT/NAME_teachers.h5]"
)
@click.option("--image-root", type=click.Path(path_type=Path), help="Folder that image paths are relative to.")
@click.option("--data-root", type=click.Path(path_type=Path), default=Path("data"), help="Where named data sets lie.")
@click.option("--splits", metavar="A,B", help="Only these splits.  [default: all]")
@click.option("--limit", type=click.IntRange(1), help="Only the first N images of each split.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--precision", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto",
              help="What teachers compute in; auto is fp16 on a GPU, fp32 elsewhere.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), help="Items per teacher call.  [default: the teacher's own]")
@click.option("--workers", type=click.IntRange(0), help="Image decoding processes.  [default: cores, at most 8]")
@click.option("--shard-rows", type=click.IntRange(1), default=16384, help="Rows per shard; work is resumed by shard.")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", help="What rows are stored as.")
@click.option("--normalizer", type=click.Choice(["albef", "none"]), default="albef", help="Caption normaliser.")
@click.option("--on-error", type=click.Choice(["fail", "skip"]), default="fail",
              help="On an unreadable image or an empty caption: stop, or record it as skipped.")  # fmt: skip
@click.version_option(package_name="cusa")
@one_line_errors
def main(
    datasets: tuple[str, ...],
    teachers: tuple[str, ...],
    image_root: Path | None,
    data_root: Path,
    out: Path | None,
    **options: object,
) -> None:
    """Run the teachers once over a data set and write their embeddings to an HDF5 store.

    Run it again to go on after an interruption, or to add a teacher or a split.
    """
    from cusa.data.console import console, progress, quiet_libraries
    from cusa.data.datasets import load_dataset
    from cusa.precompute.teachers import complete, parse_teacher

    requests = [parse_teacher(t) for t in teachers]
    dataset = load_dataset(datasets, image_root, data_root)
    chosen = Options(out=out or data_root / f"{dataset.name}_teachers.h5", **options)  # type: ignore[arg-type]
    dataset = _restrict(dataset, chosen)
    requests = complete(requests, _present_modalities(chosen.out))
    screen = console()
    for note in dataset.notes:
        screen.print(f"[yellow]note:[/] {note}")
    quiet_libraries()
    with progress() as bar:
        entries = [_run_teacher(request, dataset, chosen, bar) for request in requests]
    _report(screen, chosen.out, entries)


def _restrict(dataset: Dataset, options: Options) -> Dataset:
    from cusa.data.console import split_commas
    from cusa.data.errors import CusaError

    names = split_commas(options.splits)
    if names is not None and not names:
        raise CusaError(f"--splits names no split; data set {dataset.name!r} has: {', '.join(dataset.splits)}")
    dataset = dataset.select(names) if names else dataset
    return dataset.limited(options.limit) if options.limit else dataset


def _present_modalities(index: Path) -> list[str]:
    from cusa.data.shards import read_entries

    return [e.settings.modality for e in read_entries(index).values()] if index.exists() else []


def _run_teacher(
    request: TeacherRequest, dataset: Dataset, options: Options, bar: Progress
) -> tuple[str, TeacherEntry]:
    from cusa.data.console import cpu_count, pick_device
    from cusa.data.records import fingerprint
    from cusa.data.shards import TeacherEntry, check_compatible, write_index
    from cusa.precompute.pipeline import PipelineOptions, encode_split
    from cusa.precompute.plan import plan_split

    device = pick_device(options.device)
    precision = options.precision if options.precision != "auto" else ("fp16" if device == "cuda" else "fp32")
    task = bar.add_task(f"{request.name}: loading", total=None)
    teacher = request.load(device)
    settings = teacher.settings(precision, options.dtype, options.normalizer)
    if options.out.exists():
        check_compatible(options.out, dataset, {request.name: settings})
    pipeline_options = PipelineOptions(
        device=device,
        precision=precision,
        batch_size=options.batch_size or teacher.batch_size[device],
        workers=min(cpu_count(), 8) if options.workers is None else options.workers,
        skip_errors=options.on_error == "skip",
    )
    shards = {}
    bar.remove_task(task)
    for split, records in dataset.splits.items():
        n_rows = len(records) if teacher.modality == "image" else sum(len(r.captions) for r in records)
        plan = plan_split(options.out, request.name, split, fingerprint(records), n_rows, options.shard_rows, settings)
        done = sum(stop - start for start, stop in plan.done)
        task = bar.add_task(f"{request.name} {split}", total=n_rows, completed=done)
        shards[split] = encode_split(
            teacher,
            settings,
            dataset,
            plan,
            pipeline_options,
            lambda n, shard, task=task: bar.update(task, advance=n, status=shard),  # type: ignore[misc]
        )
        bar.update(task, status="")
    entry = TeacherEntry(settings, shards, _versions())
    write_index(options.out, dataset, {request.name: entry})
    return request.name, entry


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {p: version(p) for p in ("cusa", "numpy", "pillow", "sentence-transformers", "torch", "transformers")}


def _report(screen: Console, out: Path, entries: list[tuple[str, TeacherEntry]]) -> None:
    for name, entry in entries:
        rows = {split: shards[-1].stop for split, shards in entry.shards.items()}
        skipped = sum(len(s.skipped) for shards in entry.shards.values() for s in shards)
        parts = ", ".join(f"{split} {n:,}" for split, n in rows.items())
        screen.print(f"{name}: {parts} rows x {entry.settings.dim}, {skipped:,} skipped", highlight=False)
    screen.print(f"store: {out}", highlight=False, soft_wrap=True)
    screen.print(f"next: cusa-train --embeddings {out}", highlight=False, soft_wrap=True)
