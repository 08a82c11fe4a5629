"""``cusa-precompute``: run the teachers once over a data set, into an embedding store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cusa.data.console import one_line_errors

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from cusa.data.records import Dataset
    from cusa.data.schema import TeacherSettings
    from cusa.data.shards import TeacherEntry
    from cusa.precompute.teachers import TeacherRequest
    from cusa.precompute.teachers.base import Teacher


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
@click.option("--batch-size", type=click.IntRange(1), help="Items per forward pass.  [default: what suits the teacher]")
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
    splits: str | None,
    limit: int | None,
    **options: Any,
) -> None:
    """Run the teachers once over a data set and write their embeddings to an HDF5 store.

    Run it again to go on after an interruption, or to add a teacher or a split.
    """
    from cusa.data.console import console, progress, quiet_libraries, refuse_several_processes
    from cusa.data.datasets import load_dataset
    from cusa.data.errors import CusaError
    from cusa.precompute.teachers import complete, parse_teacher

    refuse_several_processes()
    if out is not None and out.suffix != ".h5":
        raise CusaError(f"--out {out}: the name must end in .h5; the shards go to a folder of that name without it")
    requests = [parse_teacher(t) for t in teachers]
    dataset = _restrict(load_dataset(datasets, image_root, data_root), splits, limit)
    out = out or data_root / f"{dataset.name}_teachers.h5"
    if image_root is None and (known := _stored_image_root(out)) is not None:
        dataset = replace(dataset, image_root=known)  # a store keeps its image root until another one is given
    requests = complete(requests, _present_modalities(out))
    screen = console()
    for note in dataset.notes:
        screen.print(f"[yellow]note:[/] {note}")
    quiet_libraries()
    with progress() as bar:
        run = _Run(dataset, out, bar, **options)
        loaded = [run.load(request) for request in requests]  # all of them first: what is missing shows at once
        entries = [run.encode(*parts) for parts in loaded]
    for path in run.damaged:
        screen.print(f"[yellow]note:[/] {path} was damaged and has been made again")
    _report(screen, out, entries)


def _restrict(dataset: Dataset, splits: str | None, limit: int | None) -> Dataset:
    from cusa.data.errors import CusaError

    names = None if splits is None else [part.strip() for part in splits.split(",") if part.strip()]
    if names is not None and not names:
        raise CusaError(f"--splits names no split; data set {dataset.name!r} has: {', '.join(dataset.splits)}")
    dataset = dataset.select(names) if names else dataset
    return dataset.limited(limit) if limit else dataset


def _stored_image_root(index: Path) -> Path | None:
    from cusa.data.store import EmbeddingStore

    return EmbeddingStore(index).image_root if index.exists() else None


def _present_modalities(index: Path) -> list[str]:
    from cusa.data.shards import read_entries

    return [e.settings.modality for e in read_entries(index).values()] if index.exists() else []


class _Run:
    """The command line's options, and what every teacher of a run shares."""

    def __init__(
        self,
        dataset: Dataset,
        out: Path,
        bar: Progress,
        *,
        device: str,
        precision: str,
        batch_size: int | None,
        workers: int | None,
        shard_rows: int,
        dtype: str,
        normalizer: str,
        on_error: str,
    ) -> None:
        from cusa.data.console import default_workers, pick_device
        from cusa.precompute.pipeline import PipelineOptions

        device = pick_device(device)
        if precision == "auto":
            precision = "fp16" if device == "cuda" else "fp32"
        workers = default_workers(inputs_are_stored=False) if workers is None else workers
        self.pipeline = PipelineOptions(device, precision, workers, skip_errors=on_error == "skip")
        self.dataset, self.out, self.bar = dataset, out, bar
        self.batch_size, self.shard_rows, self.dtype, self.normalizer = batch_size, shard_rows, dtype, normalizer
        self.damaged: list[Path] = []

    def load(self, request: TeacherRequest) -> tuple[str, Teacher, TeacherSettings]:
        """Load a teacher and check that it fits the store."""
        from cusa.data.shards import check_compatible

        task = self.bar.add_task(f"{request.name}: loading", total=None)
        teacher = request.load(self.pipeline.device, self.batch_size)
        settings = teacher.settings(self.pipeline.precision, self.dtype, self.normalizer)
        if self.out.exists():
            check_compatible(self.out, self.dataset, {request.name: settings})
        self.bar.remove_task(task)
        return request.name, teacher, settings

    def encode(self, name: str, teacher: Teacher, settings: TeacherSettings) -> tuple[str, TeacherEntry]:
        """Make a teacher's pending shards of all splits and add it to the index."""
        from cusa.data.errors import CusaError
        from cusa.data.records import fingerprint
        from cusa.data.shards import TeacherEntry, write_index
        from cusa.precompute.pipeline import encode_split
        from cusa.precompute.plan import plan_split

        shards = {}
        for split, records in self.dataset.splits.items():
            n_rows = len(records) if teacher.modality == "image" else sum(len(r.captions) for r in records)
            redo = not self.pipeline.skip_errors
            plan = plan_split(self.out, name, split, fingerprint(records), n_rows, self.shard_rows, settings, redo)
            self.damaged += plan.damaged
            done = sum(stop - start for start, stop in plan.done)
            task = self.bar.add_task(f"{name} {split}", total=n_rows, completed=done)

            def advance(n: int, shard: str, task: TaskID = task) -> None:
                self.bar.update(task, advance=n, status=shard)

            shards[split] = encode_split(teacher, settings, self.dataset, plan, self.pipeline, advance)
            self.bar.update(task, status="")
        if all(len(s.skipped) == s.stop - s.start for parts in shards.values() for s in parts):
            what = (
                "image could be read; check --image-root"
                if settings.modality == "image"
                else "caption has words; correct them"
            )
            raise CusaError(f"teacher {name!r}: no {what}, then run again with --on-error fail to make the rows anew")
        entry = TeacherEntry(settings, shards, teacher.source, _versions())
        write_index(self.out, self.dataset, {name: entry})
        return name, entry


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {p: version(p) for p in ("cusa", "numpy", "pillow", "sentence-transformers", "torch", "transformers")}


def _report(screen: Console, out: Path, entries: list[tuple[str, TeacherEntry]]) -> None:
    for name, entry in entries:
        rows = {split: shards[-1].stop for split, shards in entry.shards.items()}
        skipped = sum(len(s.skipped) for shards in entry.shards.values() for s in shards)
        parts = ", ".join(f"{split} {n:,}" for split, n in rows.items())
        screen.print(f"{name}: {parts} rows x {entry.settings.dim}, {skipped:,} skipped", highlight=False, markup=False)
    screen.print(f"store: {out}", highlight=False, markup=False, soft_wrap=True)
    screen.print(f"next: cusa-train --embeddings {out}", highlight=False, markup=False, soft_wrap=True)
