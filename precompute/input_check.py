"""The check of a run's inputs, before a teacher is loaded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping

from cusa.data.captions import MAX_WORDS
from cusa.data.errors import DataError
from cusa.data.input_check import MAX_LISTED, Fault, Faults, check_captions, check_images
from cusa.data.records import Dataset
from cusa.precompute.shard_plan import ShardTask

RowRange = tuple[int, int]
_EXAMPLES = 3


def check_inputs(
    dataset: Dataset,
    pending: Collection[ShardTask],
    modalities: Mapping[str, str],
    normalizer_name: str,
    skip_errors: bool,
    on_fault: Callable[[str], None],
    on_note: Callable[[str], None],
) -> None:
    """Check that every image file and caption that a run will read can be used.

    Args:
        dataset: The data set.
        pending: The run's shards that are not finished yet.
        modalities: ``"image"`` or ``"text"`` by teacher name.
        normalizer_name: Name of the caption normaliser.
        skip_errors: Whether items with a fault are skipped instead of stopping the run.
        on_fault: Called with each of the first faults, if there are several.
        on_note: Called with the number of items that will be skipped, and of captions that are cut.

    Raises:
        DataError: If there is a fault and faults are not skipped, or no image exists at all.
    """
    images = check_images(dataset, _pending_rows(pending, modalities, "image"))
    captions = check_captions(dataset, _pending_rows(pending, modalities, "text"), normalizer_name)
    n_images = sum(map(len, dataset.splits.values()))
    if images.n_faults == n_images:
        first = images.listed[0]
        raise _error(
            f"no image could be read; check --image-root: none of {n_images:,} exists, such as "
            f"{first.message}",
            first,
        )

    if captions.n_cut:
        on_note(
            f"captions of more than {MAX_WORDS} words, of which teachers read only the first "
            f"{MAX_WORDS}: {captions.n_cut:,} of {captions.n_checked:,} (--normalizer none keeps "
            "all words)"
        )
    if skip_errors:
        _note_skipped(images, "missing images", on_note)
        _note_skipped(captions, "captions without words", on_note)
        return
    listed = [*images.listed, *captions.listed]
    if len(listed) == 1:
        advice = "nothing was encoded (--on-error skip would leave it out)"
        raise _error(f"{listed[0].message}; {advice}", listed[0])
    if listed:
        for fault in listed[:MAX_LISTED]:
            on_fault(fault.message)
        raise _error(
            f"{images.n_faults + captions.n_faults:,} images and captions cannot be used, such as "
            f"{listed[0].message}; nothing was encoded: correct them, or pass --on-error skip to "
            "leave them out",
            listed[0],
        )


def _error(message: str, fault: Fault) -> DataError:
    return DataError(message, path=fault.path, location=fault.location, name=fault.name)


def _pending_rows(
    pending: Collection[ShardTask],
    modalities: Mapping[str, str],
    modality: str,
) -> dict[str, list[RowRange]]:
    """Return the rows that teachers of a modality will read, as disjoint ranges by split."""
    ranges_of_split: dict[str, set[RowRange]] = defaultdict(set)
    for task in pending:
        if modalities[task.teacher] == modality:
            ranges_of_split[task.split].add((task.start, task.stop))
    return {split: _disjoint(ranges) for split, ranges in ranges_of_split.items()}


def _disjoint(ranges: Collection[RowRange]) -> list[RowRange]:
    """Merge the ranges of several teachers, which may have shards of different lengths."""
    disjoint: list[RowRange] = []
    for start, stop in sorted(ranges):
        if disjoint and start <= disjoint[-1][1]:
            last_start, last_stop = disjoint[-1]
            disjoint[-1] = (last_start, max(stop, last_stop))
        else:
            disjoint.append((start, stop))
    return disjoint


def _note_skipped(
    faults: Faults,
    problem: str,
    on_note: Callable[[str], None],
) -> None:
    if not faults.n_faults:
        return
    examples = "; ".join(fault.message for fault in faults.listed[:_EXAMPLES])
    count = f"{faults.n_faults:,} of {faults.n_checked:,}"
    on_note(f"{problem} will be skipped: {count}, such as: {examples}")
