"""The check of a run's inputs, before a teacher is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cusa.data.errors import CusaError, DataError
from cusa.data.input_check import MAX_LISTED, Fault, Faults, check_captions, check_images
from cusa.data.records import Dataset
from cusa.data.store.shards import read_shard
from cusa.precompute.shard_plan import ShardTask

_EXAMPLES = 3


def check_inputs(
    dataset: Dataset,
    tasks: Sequence[ShardTask],
    modalities: Mapping[str, str],
    normalizer_name: str,
    skip_errors: bool,
    on_fault: Callable[[str], None],
    on_note: Callable[[str], None],
) -> None:
    """Look for every image file and normalise every caption that a run will read.

    Args:
        dataset: The data set.
        tasks: The run's shards; those that are finished are not looked at.
        modalities: ``"image"`` or ``"text"`` by teacher name.
        normalizer_name: Name of the caption normaliser.
        skip_errors: Whether faults are left out instead of stopping the run.
        on_fault: Called with each of the first faults, where there are several.
        on_note: Called with the number of faults that will be left out.

    Raises:
        DataError: If there is a fault that is not to be skipped, or no image at all.
    """
    rows: dict[str, dict[str, set[tuple[int, int]]]] = {"image": {}, "text": {}}
    for task in tasks:
        if _will_be_made(task, skip_errors):
            rows[modalities[task.teacher]].setdefault(task.split, set()).add(
                (task.start, task.stop)
            )
    images = check_images(dataset, _merged(rows["image"]))
    captions = check_captions(dataset, _merged(rows["text"]), normalizer_name)
    n_images = sum(map(len, dataset.splits.values()))
    if images.n_faults == n_images:
        first = images.listed[0]
        raise DataError(
            f"no image could be read; check --image-root: none of {n_images:,} is there, such as {first.message}",
            path=first.path,
            location=first.location,
            name=first.name,
        )
    if skip_errors:
        _note_skipped(images, "images that are not there", on_note)
        _note_skipped(captions, "captions without words", on_note)
    elif images.n_faults or captions.n_faults:
        _refuse((*images.listed, *captions.listed), images.n_faults + captions.n_faults, on_fault)


def _will_be_made(task: ShardTask, skip_errors: bool) -> bool:
    """Whether a shard is not finished, as :func:`.plan.finished_shards` will see it."""
    if not task.path.exists():
        return True
    try:
        _, info = read_shard(task.index.parent, task.file)
    except (CusaError, OSError):
        return True  # damaged: it is made again
    return bool(info.skipped) and not skip_errors


def _merged(ranges: Mapping[str, set[tuple[int, int]]]) -> dict[str, list[tuple[int, int]]]:
    """Ranges of several teachers as ranges that do not overlap, ascending."""
    merged: dict[str, list[tuple[int, int]]] = {}
    for split, of_split in ranges.items():
        disjoint: list[tuple[int, int]] = []
        for start, stop in sorted(of_split):
            if disjoint and start <= disjoint[-1][1]:
                disjoint[-1] = disjoint[-1][0], max(stop, disjoint[-1][1])
            else:
                disjoint.append((start, stop))
        merged[split] = disjoint
    return merged


def _note_skipped(faults: Faults, problem: str, on_note: Callable[[str], None]) -> None:
    if faults.n_faults:
        examples = "; ".join(fault.message for fault in faults.listed[:_EXAMPLES])
        count = f"{faults.n_faults:,} of {faults.n_checked:,}"
        on_note(f"{problem} will be skipped: {count}, such as: {examples}")


def _refuse(listed: Sequence[Fault], n_faults: int, on_fault: Callable[[str], None]) -> None:
    """List the faults and raise the error that counts them."""
    first = listed[0]
    if n_faults == 1:
        message = f"{first.message}; nothing was encoded (--on-error skip would leave it out)"
    else:
        for fault in listed[:MAX_LISTED]:
            on_fault(fault.message)
        message = (
            f"{n_faults:,} images and captions cannot be used, such as {first.message}; nothing was "
            "encoded: correct them, or pass --on-error skip to leave them out"
        )
    raise DataError(message, path=first.path, location=first.location, name=first.name)
