"""``cusa-precompute``: run the teachers once over a data set, into an embedding store."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cusa.cli.console import Stopped, one_line_errors

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from cusa.data.records import Dataset
    from cusa.precompute.processes import RunProcesses
    from cusa.precompute.run import Estimate, Outcome, RunOptions
    from cusa.precompute.teachers import TeacherRequest

_PROBE_S = 3.0


def _shard_range(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None:
        raise click.BadParameter(f"{text!r} is not A:B, two numbers of shards such as 0:8")
    return int(found[1]), int(found[2])


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--dataset", "datasets", multiple=True, required=True, metavar="coco|flickr30k|demo|[SPLIT=]PATH",
              help="Data set by name, or annotation files: Karpathy, ALBEF or flat json, your own .jsonl or .csv. "
              "Repeat it for files of one split each.")  # fmt: skip
@click.option("--teacher", "teachers", multiple=True, metavar="NAME|NAME=PATH|OWNER/MODEL|FOLDER",
              help="Repeatable. Known: unicom, unicom-vit-b-16, unicom-vit-l-14, unicom-vit-l-14-336px, "
              "efficientnet-lite0 (images); mpnet, minilm (text); any Hugging Face vision or sentence-transformers "
              "model. A modality that none is named for gets unicom or mpnet.")  # fmt: skip
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The store's index.  [default: DATA_ROOT/NAME_teachers.h5]",
)
@click.option(
    "--image-root", type=click.Path(path_type=Path), help="Folder that image paths are relative to."
)
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    default=Path("data"),
    help="Where named data sets lie.",
)
@click.option("--splits", metavar="A,B", help="Only these splits.  [default: all]")
@click.option("--limit", type=click.IntRange(1), help="Only the first N images of each split.")
@click.option("--val-fraction", type=click.FloatRange(0, 1, max_open=True),
              help="Share of the training images that becomes val where the data set has no val split; 0: none.  "
              "[default: as the store has it, or 0.1 and at most 5,000 images]")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--precision", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto",
              help="What teachers compute in; auto is fp16 on a GPU, fp32 elsewhere.")  # fmt: skip
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Items per forward pass.  [default: what suits the teacher]",
)
@click.option(
    "--workers",
    type=click.IntRange(0),
    help="Image decoding processes.  [default: cores, at most 16]",
)
@click.option("--shard-rows", type=click.IntRange(1), help="Rows per shard; work is handed out and resumed by shard.  "
              "[default: the store's own, or 16384]")  # fmt: skip
@click.option("--shard-range", metavar="A:B", callback=_shard_range,
              help="Make only shards A to B - 1 of this run, as --plan counts them, for arrays of jobs; join the parts "
              "with cusa-store merge.")  # fmt: skip
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    help="What rows are stored as.",
)
@click.option(
    "--normalizer",
    type=click.Choice(["albef", "none"]),
    default="albef",
    help="Caption normaliser.",
)
@click.option("--pooling", type=click.Choice(["cls", "mean", "pooler"]),
              help="What of a Hugging Face vision model's output becomes a row: its class token, the "
              "mean over its patches, or its pooled output.  [default: the best that the model has; a "
              "note names it]")  # fmt: skip
@click.option("--check-pictures", is_flag=True,
              help="Keep rows that an earlier version made, before pictures were turned upright and "
              "laid over white, if no picture has an EXIF orientation or transparency: reads the "
              "headers of all.")  # fmt: skip
@click.option("--jpeg-draft", type=click.Choice(["auto", "off"]), default="auto",
              help="Halve JPEGs while decoding that are at least six times as large as the teacher's input; auto tries "
              "it on some and does so only if every embedding keeps a cosine of 0.999.")  # fmt: skip
@click.option("--on-error", type=click.Choice(["fail", "skip"]), default="fail",
              help="On an unreadable image, an empty caption, or an item whose row would be zero: "
              "stop, or record it as skipped.")  # fmt: skip
@click.option("--reuse", type=click.Path(path_type=Path), metavar="OLD.h5",
              help="Take over rows of this store that are of the same pictures, captions and settings, whatever their "
              "ids, paths and splits are there.")  # fmt: skip
@click.option("--plan", "only_plan", is_flag=True, help="Try the teachers for some seconds; print rows, shards, disk "
              "space, time, and what an epoch of training saves. Writes nothing.")  # fmt: skip
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
    val_fraction: float | None,
    only_plan: bool,
    **options: Any,
) -> None:
    """Run the teachers once over a data set and write their embeddings to an HDF5 store.

    Run it again to go on after an interruption, or to add a teacher or a split. With several GPUs, or machines that
    share a file system: torchrun --nproc-per-node N -m cusa.precompute ... (the same options).
    """
    from cusa.cli.console import console, progress, quiet_libraries, stop_signals
    from cusa.data.datasets import load_dataset
    from cusa.data.errors import SettingError, WorkerError
    from cusa.data.store.reader import EmbeddingStore
    from cusa.data.store.schema import check_index_path
    from cusa.precompute.selection import Selection, parse_splits, select, with_stored_root
    from cusa.precompute.teachers import complete, parse_teacher

    if out is not None:
        check_index_path(out)
    quiet_libraries()
    requests = [parse_teacher(t) for t in teachers]
    if options["pooling"] and not any(request.kind == "vision" for request in requests):
        message = "--pooling is for Hugging Face vision models; no --teacher is one: leave it out"
        raise SettingError(message, name="--pooling")
    _require_hub(requests)  # before libraries are loaded for seconds, and data read for minutes

    from cusa.precompute.processes import announced_failure, connect
    from cusa.precompute.run import Run

    ranks = connect()
    with announced_failure(ranks):
        if not ranks.leads:
            ranks.hear("data", lambda: None)  # the embedded data set is drawn when it is first read
        dataset = load_dataset(datasets, image_root, data_root)
        ranks.tell("data", "read")
        out = out or data_root / f"{dataset.name}_teachers.h5"
        store = EmbeddingStore(out) if out.exists() else None
        dataset = select(dataset, Selection(parse_splits(splits), limit, val_fraction), store)
        dataset = with_stored_root(dataset, store, image_root)
        stored = store.teachers if store is not None else {}
        named = requests
        requests = complete(named, [settings.modality for settings in stored.values()])
        _require_hub(requests[len(named) :])  # the default teachers, before any other is loaded
    screen = console(quiet=not ranks.leads)
    for note in dataset.notes:
        _print_labelled(screen, "[yellow]note:[/]", note)
    with progress(quiet=not ranks.leads) as bar, stop_signals() as check_stop:
        reporter = _Reporter(bar, screen)
        run = Run(
            dataset, requests, _run_options(out, ranks, **options), ranks, reporter, check_stop
        )
        if only_plan:
            estimates = run.estimate(_PROBE_S)
            bar.stop()
            first = options["shard_range"][0] if options["shard_range"] else 0
            _print_plan(screen, dataset, estimates, first, out, ranks.size)
            return
        try:
            outcome = run.go()
        except Stopped as stopped:
            raise Stopped(
                stopped.signal, f"{reporter.progress()}; run the same command again to go on"
            ) from None
        except WorkerError as error:
            going_on = f"{reporter.progress()}; run the same command again to go on"
            raise WorkerError(f"{error}; {going_on}", name=error.name) from None
    if outcome.index is not None:
        _report(screen, outcome, out)


def _require_hub(requests: Sequence[TeacherRequest]) -> None:
    for request in requests:
        request.require_hub()


def _run_options(
    out: Path,
    ranks: RunProcesses,
    *,
    device: str,
    precision: str,
    workers: int | None,
    on_error: str,
    **options: Any,
) -> RunOptions:
    from cusa.cli.console import cpu_count, pick_device
    from cusa.precompute.pipeline import PipelineOptions
    from cusa.precompute.run import RunOptions

    kind = pick_device(device)
    device = f"cuda:{ranks.local_rank % _gpu_count()}" if kind == "cuda" else kind
    if precision == "auto":
        precision = "fp16" if kind == "cuda" else "fp32"
    cores = max(1, cpu_count() // ranks.local_size)
    workers = min(cores, 16) if workers is None else workers
    encoders = 2 if kind == "cuda" else cores
    pipeline = PipelineOptions(device, precision, workers, encoders, skip_errors=on_error == "skip")
    return RunOptions(out, pipeline, **options)


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


class _Reporter:
    """Shows a run as progress bars."""

    def __init__(self, bar: Progress, screen: Console) -> None:
        self._bar, self._screen = bar, screen
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._rows: dict[
            tuple[str, str], tuple[int, int, int]
        ] = {}  # finished before, done now, all
        self._loading: TaskID | None = None

    def loading(self, teacher: str) -> None:
        self._loading = self._bar.add_task(f"{teacher}: loading", total=None)

    def loaded(self) -> None:
        if self._loading is not None:
            self._bar.remove_task(self._loading)
            self._loading = None

    def planned(self, teacher: str, split: str, n_rows: int, n_done: int) -> None:
        self._tasks[teacher, split] = self._bar.add_task(
            f"{teacher} {split}", total=n_rows, completed=n_done
        )
        self._rows[teacher, split] = n_done, 0, n_rows

    def advanced(self, teacher: str, split: str, n_done: int, file: str) -> None:
        if (teacher, split) in self._tasks:
            before, _, total = self._rows[teacher, split]
            self._rows[teacher, split] = before, n_done, total
            status = file if before + n_done < total else ""
            self._bar.update(self._tasks[teacher, split], completed=before + n_done, status=status)

    def note(self, text: str) -> None:
        _print_labelled(self._screen, "[yellow]note:[/]", text)

    def fault(self, text: str) -> None:
        _print_labelled(self._screen, "[red]fault:[/]", text)

    def progress(self) -> str:
        """How far the run got, in words."""
        done = sum(before + now for before, now, _ in self._rows.values())
        total = sum(rows for _, _, rows in self._rows.values())
        return (
            f"{done:,} of {total:,} rows are encoded; finished shards are kept"
            if total
            else "no row was encoded yet"
        )


def _print_labelled(screen: Console, label: str, text: str) -> None:
    """A line that begins with a word of markup; in the text itself, brackets are brackets."""
    from rich.markup import escape

    screen.print(f"{label} {escape(text)}", highlight=False, soft_wrap=True)


def _report(screen: Console, outcome: Outcome, out: Path) -> None:
    from cusa.precompute.next_step import merging_command, training_command

    for name, entry in outcome.entries.items():
        rows = {
            split: sum(s.stop - s.start for s in shards) for split, shards in entry.shards.items()
        }
        skipped = sum(len(s.skipped) for shards in entry.shards.values() for s in shards)
        parts = ", ".join(f"{split} {n:,}" for split, n in rows.items())
        screen.print(
            f"{name}: {parts} rows x {entry.settings.dim}, {skipped:,} skipped",
            highlight=False,
            markup=False,
        )
    if outcome.index == out:
        command = training_command(out, outcome.entries)
        lines = [f"store: {out}", *([f"next: {command}"] if command else [])]
    else:
        lines = [f"part: {outcome.index}", f"next, with all parts: {merging_command(out)}"]
    for line in lines:
        screen.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_plan(
    screen: Console,
    dataset: Dataset,
    estimates: list[Estimate],
    first: int,
    out: Path,
    processes: int,
) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("teacher", "rows", "shards", "MB on disk", "rows/s", "teacher alone", "time")
    total_s, epoch_s = 0.0, 0.0
    pairs = sum(len(r.captions) for r in dataset.splits.get("train", ()))
    for e in estimates:
        seconds = e.n_rows / e.rates.whole / processes
        total_s += seconds
        epoch_s += pairs / e.rates.encoding
        shards = f"{e.n_shards:,} ({first}:{first + e.n_shards})"
        first += e.n_shards
        rates = f"{e.rates.whole:,.0f}", f"{e.rates.encoding:,.0f}"
        table.add_row(
            escape(e.teacher),
            f"{e.n_rows:,}",
            shards,
            f"{e.n_bytes / 1e6:,.1f}",
            *rates,
            _duration(seconds),
        )
    screen.print(table)
    folder = next(p for p in (out.resolve().parent, *out.resolve().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    n_bytes = sum(e.n_bytes for e in estimates)
    screen.print(
        f"disk: {n_bytes / 1e9:,.3f} GB of rows, {free / 1e9:,.1f} GB free in {escape(str(folder))}",
        soft_wrap=True,
    )
    screen.print(f"time: about {_duration(total_s)} in {processes} process(es)")
    if pairs:
        per_pair = sum(e.n_bytes / e.n_rows for e in estimates)
        screen.print(
            f"saved per training epoch: {_duration(epoch_s)} of teachers on {pairs:,} pairs, for reading "
            f"{pairs * per_pair / 1e6:,.1f} MB"
        )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
