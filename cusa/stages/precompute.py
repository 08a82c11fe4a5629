"""Stage one as a function: teachers run once over a data set, into an embedding store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from cusa.data.errors import CusaError, DataError
from cusa.data.tars.paths import are_tars
from cusa.stages.arguments import checked, columns_of, with_options
from cusa.stages.kinds import as_names
from cusa.stages.options import PrecomputeOptions
from cusa.stages.precomputed_store import PrecomputedStore, teacher_rows
from cusa.stages.signals import stop_signals
from cusa.stages.teacher_run import (
    PROBE_S,
    own_hardware,
    parse_teachers,
    recorded,
    run_to_end,
    teacher_run_options,
)

if TYPE_CHECKING:
    from cusa.data.records import Dataset
    from cusa.precompute.estimate import Estimate
    from cusa.precompute.processes import RunProcesses
    from cusa.precompute.run import Run
    from cusa.precompute.run_options import RunOptions
    from cusa.precompute.run_record import RunRecord
    from cusa.precompute.teachers import TeacherRequest


@with_options(PrecomputeOptions)
def precompute(
    dataset: Any,
    *,
    progress: bool = False,
    **options: Unpack[PrecomputeOptions],
) -> PrecomputedStore:
    """Run the teachers once over a data set and write their embeddings to an HDF5 store.

    Call it again to go on after an interruption, or to add a teacher or a split; Ctrl-C raises
    ``KeyboardInterrupt`` and keeps the finished shards.

    Args:
        dataset: What :func:`cusa.load_dataset` takes, or the :class:`cusa.Dataset` that it returns.
        progress: Whether to show notes and progress, as ``cusa-precompute`` does. Without it, notes
            are in the result.
        **options: The other flags of ``cusa-precompute``.

    Returns:
        The store: its path, its rows and the notes.

    Raises:
        CusaError: If an option, the data or a teacher cannot be used; the message names options as
            flags: ``--image-root`` is ``image_root``. Unusable images and captions, if there are
            several, are notes of the error (``__notes__``).
        KeyboardInterrupt: On Ctrl-C; the message says how far the run got.
    """
    with _prepared(dataset, options, progress) as stage:
        outcome = run_to_end(stage.run, stage.record)
    return PrecomputedStore(
        path=outcome.index or stage.options.out,
        dataset=stage.dataset.name,
        teachers=teacher_rows(outcome),
        notes=tuple(stage.record.notes),
        part_of=stage.options.out if stage.options.shard_range else None,
    )


@dataclass(frozen=True)
class Plan:
    """What a run would take.

    Attributes:
        estimates: The work of each teacher, in the order of their shards.
        dataset: The data set.
        options: The run's settings.
        processes: The number of processes.
        leads: Whether this process is the one that reports.
    """

    estimates: Sequence[Estimate]
    dataset: Dataset
    options: RunOptions
    processes: int
    leads: bool


def plan(
    dataset: Any,
    *,
    progress: bool = False,
    **options: Unpack[PrecomputeOptions],
) -> Plan:
    """Try the teachers for a few seconds; estimate what a run would take, and write nothing.

    Args:
        dataset: As :func:`precompute` takes it.
        progress: As :func:`precompute` takes it.
        **options: As :func:`precompute` takes them.

    Raises:
        CusaError: As :func:`precompute` raises it.
    """
    with _prepared(dataset, options, progress) as stage:
        estimates = stage.run.estimate(PROBE_S)
    processes = stage.processes
    return Plan(estimates, stage.dataset, stage.options, processes.size, processes.leads)


@dataclass(frozen=True)
class _Stage:
    """A run that is ready to go."""

    run: Run
    dataset: Dataset
    options: RunOptions
    processes: RunProcesses
    record: RunRecord


def _refuse_tars(dataset: Any) -> None:
    """Refuse tars, whose rows lie beside them and not in a store."""
    try:
        sources = as_names(dataset)
    except ValueError:
        return  # data in memory
    if are_tars(sources):
        raise DataError(
            f"{sources[0]} is a set of WebDataset tars; pass it to cusa.precompute_tars",
            name=sources[0],
        )


@contextmanager
def _prepared(dataset: Any, options: Mapping[str, Any], progress: bool) -> Iterator[_Stage]:
    """Read the data and parse the teachers; within the context, progress is shown."""
    from cusa.data.store.schema import check_index_path

    _refuse_tars(dataset)
    given = checked(PrecomputeOptions, options)
    # Report mistakes before libraries are imported, which takes seconds, and data read.
    if "out" in given:
        check_index_path(given["out"])
    requests = parse_teachers(given)

    from cusa.precompute.processes import connect
    from cusa.precompute.run import Run

    processes = connect()
    selected, requests, out = _select_inputs(dataset, requests, given, processes)
    with recorded(progress, processes.leads) as record, stop_signals() as check_stop:
        for note in selected.notes:
            record.note(note)
        run_options = teacher_run_options(out, given, own_hardware(given, processes))
        try:
            run = Run(selected, requests, run_options, processes, record, check_stop)
            yield _Stage(run, selected, run_options, processes, record)
        except CusaError as error:
            if not progress:
                for fault in record.faults:
                    error.add_note(fault)
            raise


def _select_inputs(
    sources: Any,
    requests: list[TeacherRequest],
    given: Mapping[str, Any],
    processes: RunProcesses,
) -> tuple[Dataset, list[TeacherRequest], Path]:
    """Load the data set, select this run's part of it, and add missing default teachers."""
    from cusa.data.datasets import load_dataset
    from cusa.data.store.reader import EmbeddingStore
    from cusa.precompute.processes import announced_failure
    from cusa.precompute.selection import Selection, select, split_names, with_stored_root
    from cusa.precompute.teachers import complete

    data_root = given.get("data_root", Path("data"))
    image_root = given.get("image_root")
    with announced_failure(processes):
        if not processes.leads:
            # The first process to read the embedded data set renders it; the others wait.
            processes.hear("data", lambda: None)
        dataset = load_dataset(sources, image_root, data_root, columns_of(given))
        processes.tell("data", "read")

        out = given.get("out", data_root / f"{dataset.name}_teachers.h5")
        store = EmbeddingStore(out) if out.exists() else None
        splits = split_names(given["splits"]) if "splits" in given else None
        selection = Selection(splits, given.get("limit"), given.get("val_fraction"))
        dataset = select(dataset, selection, store)
        dataset = with_stored_root(dataset, store, image_root)
        stored_modalities = []
        if store is not None:
            stored_modalities = [settings.modality for settings in store.teachers.values()]
        all_requests = complete(requests, stored_modalities)
        for default_request in all_requests[len(requests) :]:
            default_request.require_hub()
    return dataset, all_requests, out
