"""Grouping of annotation rows by image, into records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

import numpy as np

from cusa.data.errors import CusaError, DataError
from cusa.data.image_runs import ImageRuns, RunsWriter
from cusa.data.parsing import described
from cusa.data.readers.forms import AnnotationRow
from cusa.data.record_columns import Records
from cusa.data.records import SPLITS, AnnotationFile, entry_location
from cusa.data.repeated_texts import first_rows, rows_of_repeated_hashes, text_hashes
from cusa.data.texts import BLOCK, TextsWriter


def group_rows(
    rows: Iterable[tuple[int, AnnotationRow]],
    files: Sequence[AnnotationFile],
) -> dict[str, Records]:
    """Group rows by image id, in order of first appearance, into records per split.

    Args:
        rows: Each row with its position; see :func:`cusa.data.records.entry_position`.
        files: The files that the rows come from.

    Returns:
        Records by split, in the order train, val, test; splits without an image are left out.

    Raises:
        DataError: If there is no row, an image has no caption, an image id is used for two files or
            in two splits, or a caption id is used twice; names the entries. Also if the disk is
            full.
    """
    writer = RunsWriter()
    try:
        for position, row in rows:
            writer.append(position, row)
    except CusaError:
        # The first error is reported, and earlier rows may contradict each other.
        _records_by_split(writer.finish(), files)
        raise
    runs = writer.finish()
    if not len(runs.records):
        paths = ", ".join(str(file.path) for file in files)
        message = f"{paths}: no image-caption pair in it; give it at least one"
        raise DataError(message, path=files[0].path)

    splits = _records_by_split(runs, files)
    if runs.lack_captions:
        _refuse_image_without_caption(runs, files)
    return splits


def _records_by_split(
    runs: ImageRuns,
    files: Sequence[AnnotationFile],
) -> dict[str, Records]:
    """Return the records of each split.

    Raises:
        DataError: If an image id is used for two files or in two splits, or a caption id twice.
    """
    image_of_run = _image_of_run(runs, files)
    splits: dict[str, Records] = {}
    for number, split in enumerate(SPLITS):
        records = _records_of_split(runs, image_of_run, runs.splits == number)
        if not len(records):
            continue
        if runs.lack_caption_ids:
            records = _with_numbered_ids(records)
        splits[split] = records
    if runs.have_caption_ids:
        _refuse_repeated_captions(splits, files)
    return splits


def _image_of_run(
    runs: ImageRuns,
    files: Sequence[AnnotationFile],
) -> np.ndarray | None:
    """Return the number of each run's image by first appearance; ``None``: each has its own.

    Raises:
        DataError: If two runs of an image differ in the file or the split.
    """
    records = runs.records
    rows, firsts = first_rows(records.image_ids, runs.hashes)
    is_repeated = rows != firsts
    rows = rows[is_repeated]
    firsts = firsts[is_repeated]
    if not len(rows):
        return None
    _refuse_differing_runs(runs, rows, firsts, files)

    is_first = np.ones(len(records), bool)
    is_first[rows] = False
    image_of_run = np.cumsum(is_first) - 1
    image_of_run[rows] = image_of_run[firsts]
    return image_of_run


def _records_of_split(
    runs: ImageRuns,
    image_of_run: np.ndarray | None,
    is_of_split: np.ndarray,
) -> Records:
    """Return the records of the runs of a split, with the runs of each image joined."""
    if image_of_run is None and is_of_split.all():
        return runs.records
    rows = np.flatnonzero(is_of_split)
    if image_of_run is None:
        return runs.records.take(rows)
    order = np.argsort(image_of_run[rows], kind="stable")
    rows = rows[order]
    images = image_of_run[rows]
    begins_image = np.ones(len(rows), bool)
    begins_image[1:] = images[1:] != images[:-1]
    return runs.records.take(rows, begins_image)


def _with_numbered_ids(records: Records) -> Records:
    """Return records in which each caption without an id has the image's id and its number."""
    caption_ids = TextsWriter()
    for start in range(0, records.n_captions, BLOCK):
        stop = start + BLOCK
        given_ids = records.caption_ids[start:stop]
        image_rows = records.caption_image[start:stop]
        numbers = np.arange(start, start + len(given_ids))
        numbers -= records.first_captions(image_rows)
        first_row, last_row = image_rows[[0, -1]].tolist()
        image_ids = records.image_ids[first_row : last_row + 1]
        block_ids: list[str] = []
        image_numbers = (image_rows - first_row).tolist()
        captions = zip(given_ids, image_numbers, numbers.tolist(), strict=True)
        for given_id, image_number, number in captions:
            block_ids.append(given_id or f"{image_ids[image_number]}#{number}")
        caption_ids.append(block_ids)
    return replace(records, caption_ids=caption_ids.finish())


# --- refusals


def _refuse_image_without_caption(runs: ImageRuns, files: Sequence[AnnotationFile]) -> None:
    """Refuse an image without a caption: the first one."""
    records = runs.records
    n_captions = np.bincount(records.caption_image, minlength=len(records))
    image_of_run = _image_of_run(runs, files)
    if image_of_run is not None:
        # A caption of any run will do.
        n_captions = np.bincount(image_of_run, n_captions)[image_of_run]
    if n_captions.all():
        return
    run = int(n_captions.argmin())
    path, location = entry_location(files, int(runs.positions[run]))
    image_id = records.image_ids[run]
    image_path = records.image_paths[run]
    raise DataError(
        f"{path} {location}: image {described(image_id)} ({described(image_path)}) has no "
        "caption; remove it or caption it",
        path=path,
        location=location,
        name=image_id,
    )


def _refuse_differing_runs(
    runs: ImageRuns,
    rows: np.ndarray,
    firsts: np.ndarray,
    files: Sequence[AnnotationFile],
) -> None:
    """Refuse a run whose file or split is not that of its image's first run: the first one."""
    is_elsewhere = runs.splits[rows] != runs.splits[firsts]
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        paths = runs.records.image_paths.encoded(rows[block])
        first_paths = runs.records.image_paths.encoded(firsts[block])
        pairs = zip(paths, first_paths, strict=True)
        for number, (path, first_path) in enumerate(pairs, start):
            if path != first_path or is_elsewhere[number]:
                _refuse_image(runs, int(rows[number]), int(firsts[number]), files)


def _refuse_image(
    runs: ImageRuns,
    run: int,
    first: int,
    files: Sequence[AnnotationFile],
) -> NoReturn:
    """Raise the error of an image id that is used for two files or in two splits."""
    # Of earlier rows, there may be an error with their captions.
    _records_by_split(runs.before(run), files)
    path, location = entry_location(files, int(runs.positions[run]))
    image_id = runs.records.image_ids[run]
    image_path = runs.records.image_paths[run]
    first_image_path = runs.records.image_paths[first]
    if image_path != first_image_path:
        image_paths = f"{described(first_image_path)} and {described(image_path)}"
        problem = f"is used for two files, {image_paths}"
    else:
        first_split = SPLITS[runs.splits[first]]
        split = SPLITS[runs.splits[run]]
        problem = f"is used twice, in the splits {first_split} and {split}"
    first_path, first_location = entry_location(files, int(runs.positions[first]))
    message = (
        f"{path} {location}: image id {described(image_id)} {problem} (first used: "
        f"{first_path} {first_location}); give each image one id and one split"
    )
    raise DataError(message, path=path, location=location, name=image_id)


def _refuse_repeated_captions(
    splits: Mapping[str, Records],
    files: Sequence[AnnotationFile],
) -> None:
    """Refuse a caption id that is used twice: of all, the one whose second use comes first."""
    hashes = [text_hashes(records.caption_ids) for records in splits.values()]
    rows = rows_of_repeated_hashes(np.concatenate(hashes))
    positions_of_id: dict[str, list[int]] = defaultdict(list)
    for records in splits.values():
        is_of_split = (rows >= 0) & (rows < records.n_captions)
        for row in rows[is_of_split].tolist():
            caption_id = records.caption_ids[row]
            position = int(records.positions[row])
            positions_of_id[caption_id].append(position)
        # The rows of the next split follow.
        rows = rows - records.n_captions
    uses: list[tuple[int, int, str]] = []
    for caption_id, positions in positions_of_id.items():
        if len(positions) > 1:
            first, second = sorted(positions)[:2]
            uses.append((second, first, caption_id))
    if not uses:
        return
    second, first, caption_id = min(uses)
    path, location = entry_location(files, second)
    first_path, first_location = entry_location(files, first)
    raise DataError(
        f"{path} {location}: caption id {described(caption_id)} is used twice (first used: "
        f"{first_path} {first_location}); caption ids must be unique",
        path=path,
        location=location,
        name=caption_id,
    )
