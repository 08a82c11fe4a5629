"""``cusa-precompute``: run the teachers once over a data set, into an embedding store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cusa.cli.console import (
    DATA_ROOT_OPTION,
    DEVICE_OPTION,
    DTYPE_OPTION,
    IMAGE_ROOT_OPTION,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    Stopped,
    choice_option,
    command,
    console,
    pick_device,
    quiet_libraries,
    stop_signals,
)
from cusa.cli.data_options import DATASETS_OPTION, column_options
from cusa.data.environment import cpu_count
from cusa.data.errors import SettingError, WorkerError

if TYPE_CHECKING:
    from cusa.cli.precompute_output import BarReporter
    from cusa.data.readers.columns import ColumnNames
    from cusa.data.records import Dataset
    from cusa.precompute.processes import RunProcesses
    from cusa.precompute.run import Outcome, Run
    from cusa.precompute.run_options import RunOptions
    from cusa.precompute.teachers import TeacherRequest

# Seconds that --plan runs each teacher.
_PROBE_S = 3.0
_MAX_DECODERS = 16
_DATA_OPTIONS = (
    "datasets",
    "columns",
    "image_root",
    "data_root",
    "splits",
    "limit",
    "val_fraction",
)


def _shard_range(
    _context: click.Context, _option: click.Parameter, shard_range: str | None
) -> tuple[int, int] | None:
    if shard_range is None:
        return None
    numbers = re.fullmatch(r"(\d+):(\d+)", shard_range)
    if numbers is None:
        raise click.BadParameter(f"{shard_range!r} is not A:B, two numbers of shards such as 0:8")
    return int(numbers[1]), int(numbers[2])


@command()
@DATASETS_OPTION
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="NAME|NAME=PATH|OWNER/MODEL|FOLDER",
    help="Repeatable. Known: unicom, unicom-vit-b-16, unicom-vit-l-14, unicom-vit-l-14-336px, "
    "efficientnet-lite0 (images); mpnet, minilm (text); any Hugging Face vision or "
    "sentence-transformers model. A modality without a teacher gets unicom or mpnet.",
)
@column_options
@click.option(
    "--out", type=PATH, help="The store's index file.  [default: DATA_ROOT/NAME_teachers.h5]"
)
@IMAGE_ROOT_OPTION
@DATA_ROOT_OPTION
@click.option("--splits", metavar="A,B", help="Only these splits.  [default: all]")
@click.option("--limit", type=POSITIVE, help="Only the first N images of each split.")
@click.option(
    "--val-fraction",
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the training images that becomes val if the data set has no val split; "
    "0: none.  [default: as in the store, or 0.1 and at most 5,000 images]",
)
@DEVICE_OPTION
@choice_option(
    "--precision",
    "auto",
    "fp32",
    "fp16",
    "bf16",
    help="Precision that teachers compute in; auto is fp16 on a GPU, fp32 elsewhere.",
)
@click.option(
    "--batch-size", type=POSITIVE, help="Items per forward pass.  [default: by teacher and device]"
)
@click.option(
    "--workers",
    type=NOT_NEGATIVE,
    help="Processes that decode images.  [default: cores, at most 16]",
)
@click.option(
    "--shard-rows",
    type=POSITIVE,
    help="Rows per shard; work is handed out and resumed by shard.  [default: the store's own, or "
    "16384]",
)
@click.option(
    "--shard-range",
    metavar="A:B",
    callback=_shard_range,
    help="Make only shards A to B - 1 of this run, as --plan counts them, for arrays of jobs; join "
    "the parts with cusa-store merge.",
)
@DTYPE_OPTION
@choice_option("--normalizer", "albef", "none", help="Caption normaliser.")
@click.option(
    "--pooling",
    type=click.Choice(["cls", "mean", "pooler"]),
    help="What becomes the row of a Hugging Face vision model: its class token, the mean over its "
    "patches, or its pooled output.  [default: the best that the model has; a note names it]",
)
@click.option(
    "--check-pictures",
    is_flag=True,
    help="Keep rows of an earlier version, which did not turn pictures upright or lay them over "
    "white, if no picture has an EXIF orientation or transparency. Reads every picture's header.",
)
@choice_option(
    "--on-error",
    "fail",
    "skip",
    help="On an unreadable image, an empty caption, or an item whose row would be zero: stop, or "
    "record it as skipped.",
)
@click.option(
    "--reuse",
    type=PATH,
    metavar="OLD.h5",
    help="Reuse rows of this store for the same pictures, captions and settings, whatever their "
    "ids, paths and splits are there.",
)
@click.option(
    "--plan",
    "only_plan",
    is_flag=True,
    help="Try the teachers for a few seconds; print rows, shards, disk space, time, and the time "
    "saved per epoch of training. Writes nothing.",
)
@click.version_option(package_name="cusa")
def main(teachers: tuple[str, ...], out: Path | None, only_plan: bool, **options: Any) -> None:
    """Run the teachers once over a data set and write their embeddings to an HDF5 store.

    Run it again to resume after an interruption, or to add a teacher or a split. With several GPUs,
    or machines that share a file system: torchrun --nproc-per-node N -m cusa.precompute ... (the
    same options).
    """
    from cusa.cli.precompute_output import BarReporter, print_labelled, print_outcome, print_plan
    from cusa.cli.progress import progress
    from cusa.data.store.schema import check_index_path

    # Report mistakes before libraries are imported, which takes seconds, and data read.
    if out is not None:
        check_index_path(out)
    quiet_libraries()
    requests = _parse_teachers(teachers, options["pooling"])

    from cusa.precompute.processes import connect
    from cusa.precompute.run import Run

    processes = connect()
    data_options = {option_name: options.pop(option_name) for option_name in _DATA_OPTIONS}
    dataset, requests, out = _select_inputs(processes, requests, out, **data_options)
    screen = console(quiet=not processes.leads)
    for note in dataset.notes:
        print_labelled(screen, "[yellow]note:[/]", note)
    with progress(quiet=not processes.leads) as progress_bar, stop_signals() as check_stop:
        reporter = BarReporter(progress_bar, screen)
        run_options = _run_options(out, processes, **options)
        run = Run(dataset, requests, run_options, processes, reporter, check_stop)
        if only_plan:
            estimates = run.estimate(_PROBE_S)
            progress_bar.stop()
            print_plan(screen, estimates, dataset, run_options, processes.size)
            return
        outcome = _run_to_end(run, reporter)
    if outcome.index is not None:
        print_outcome(screen, outcome, out)


def _parse_teachers(teachers: tuple[str, ...], pooling: str | None) -> list[TeacherRequest]:
    """Parse every ``--teacher``, and check that models of the hub are available."""
    from cusa.precompute.teachers import parse_teacher

    requests = [parse_teacher(teacher) for teacher in teachers]
    if pooling and not any(request.kind == "vision" for request in requests):
        raise SettingError(
            "--pooling is for Hugging Face vision models, but no --teacher is one; leave it out",
            name="--pooling",
        )
    for request in requests:
        request.require_hub()
    return requests


def _select_inputs(
    processes: RunProcesses,
    requests: list[TeacherRequest],
    out: Path | None,
    *,
    datasets: tuple[str, ...],
    columns: ColumnNames,
    image_root: Path | None,
    data_root: Path,
    splits: str | None,
    limit: int | None,
    val_fraction: float | None,
) -> tuple[Dataset, list[TeacherRequest], Path]:
    """Load the data set, select this run's part of it, and add missing default teachers."""
    from cusa.data.datasets import load_dataset
    from cusa.data.store.reader import EmbeddingStore
    from cusa.precompute.processes import announced_failure
    from cusa.precompute.selection import Selection, parse_splits, select, with_stored_root
    from cusa.precompute.teachers import complete

    with announced_failure(processes):
        if not processes.leads:
            # The first process to read the embedded data set renders it; the others wait.
            processes.hear("data", lambda: None)
        dataset = load_dataset(datasets, image_root, data_root, columns)
        processes.tell("data", "read")

        out = out or data_root / f"{dataset.name}_teachers.h5"
        store = EmbeddingStore(out) if out.exists() else None
        selection = Selection(parse_splits(splits), limit, val_fraction)
        dataset = select(dataset, selection, store)
        dataset = with_stored_root(dataset, store, image_root)
        stored_modalities = []
        if store is not None:
            stored_modalities = [settings.modality for settings in store.teachers.values()]
        all_requests = complete(requests, stored_modalities)
        for default_request in all_requests[len(requests) :]:
            default_request.require_hub()
    return dataset, all_requests, out


def _run_options(
    out: Path,
    processes: RunProcesses,
    *,
    device: str,
    precision: str,
    workers: int | None,
    on_error: str,
    **options: Any,
) -> RunOptions:
    import torch

    from cusa.precompute.pipeline import PipelineOptions
    from cusa.precompute.run_options import RunOptions

    device = pick_device(device)
    uses_cuda = device == "cuda"
    if uses_cuda:
        # Each process of torchrun has its own GPU.
        device = f"cuda:{processes.local_rank % torch.cuda.device_count()}"
    if precision == "auto":
        precision = "fp16" if uses_cuda else "fp32"
    cores = max(1, cpu_count() // processes.local_size)
    pipeline = PipelineOptions(
        device,
        precision,
        workers=min(cores, _MAX_DECODERS) if workers is None else workers,
        # On a GPU, one thread launches a batch while the other fetches rows.
        encoders=2 if uses_cuda else cores,
        skip_errors=on_error == "skip",
    )
    return RunOptions(out, pipeline, **options)


def _run_to_end(run: Run, reporter: BarReporter) -> Outcome:
    """Make all rows; if the run is stopped, add to the error how far it got."""
    try:
        return run.go()
    except Stopped as stopped:
        raise Stopped(stopped.signal, _how_to_go_on(reporter)) from None
    except WorkerError as error:
        raise WorkerError(f"{error}; {_how_to_go_on(reporter)}", name=error.name) from None


def _how_to_go_on(reporter: BarReporter) -> str:
    return f"{reporter.progress()}; run the same command again to go on"
