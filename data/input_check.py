"""The check of a data set's images and captions, before anything is computed.

What a file holds shows when it is decoded; here it is enough that there is one.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cusa.data.captions import normalizer
from cusa.data.errors import CusaError
from cusa.data.records import Dataset, Record

MAX_LISTED = 20
# The longest that Linux takes.
_MAX_SHOWN_PATH = 4096
# Of so many files in a folder, listing it is faster than asking for each.
_LISTED_FOLDER = 64

RowRanges = Mapping[str, Sequence[tuple[int, int]]]
"""By split: ranges of rows, each from the first to before the last."""


@dataclass(frozen=True)
class Fault:
    """An image or a caption that cannot be used.

    Attributes:
        message: What is wrong with it, with the annotation file and the place in it.
        path: The annotation file, or ``None`` where the data set was not read from one.
        location: Where in it.
        name: The image's or caption's id.
    """

    message: str
    path: Path | None
    location: str
    name: str


@dataclass(frozen=True)
class Faults:
    """The result of a check.

    Attributes:
        n_checked: How many images or captions were looked at.
        n_faults: How many of them cannot be used.
        listed: The first 20 of those, in row order.
    """

    n_checked: int
    n_faults: int
    listed: tuple[Fault, ...]


def check_images(dataset: Dataset, rows: RowRanges) -> Faults:
    """Look for the files of image rows, by listing their folders.

    Args:
        dataset: The data set.
        rows: The image rows to look at.
    """
    records: list[Record] = []
    for split, ranges in rows.items():
        records.extend(_chosen_records(dataset.splits[split], ranges))
    root = os.fspath(dataset.image_root)
    paths = [os.path.join(root, record.image_path) for record in records]
    problems = _missing_files(paths)

    n_faults = 0
    listed: list[Fault] = []
    for record, path in zip(records, paths, strict=True):
        if path not in problems:
            continue
        n_faults += 1
        if len(listed) < MAX_LISTED:
            problem = f"image {path[:_MAX_SHOWN_PATH]} {problems[path]}"
            listed.append(_fault(dataset, record, 0, problem, record.image_id))
    return Faults(len(records), n_faults, tuple(listed))


def check_captions(dataset: Dataset, rows: RowRanges, normalizer_name: str) -> Faults:
    """Normalise the captions of caption rows.

    Args:
        dataset: The data set.
        rows: The caption rows to look at.
        normalizer_name: Name of the caption normaliser.
    """
    normalize = normalizer(normalizer_name)
    n_checked = 0
    n_faults = 0
    listed: list[Fault] = []
    for split, ranges in rows.items():
        for record, number in _chosen_captions(dataset.splits[split], ranges):
            n_checked += 1
            caption = record.captions[number]
            # Every normaliser keeps a letter; to normalise half a million captions takes seconds.
            if caption[:1].isalnum():
                continue
            try:
                normalize(caption)
            except CusaError as error:
                n_faults += 1
                if len(listed) < MAX_LISTED:
                    caption_id = record.caption_ids[number]
                    problem = f"caption id {caption_id}: {error}"
                    listed.append(_fault(dataset, record, number, problem, caption_id))
    return Faults(n_checked, n_faults, tuple(listed))


def _chosen_records(
    records: Sequence[Record], ranges: Iterable[tuple[int, int]]
) -> Iterator[Record]:
    for start, stop in ranges:
        yield from records[start:stop]


def _chosen_captions(
    records: Sequence[Record], ranges: Iterable[tuple[int, int]]
) -> Iterator[tuple[Record, int]]:
    """Yield the record of each chosen caption row, and the caption's number in it."""
    n_captions = sum(len(record.captions) for record in records)
    is_chosen = np.zeros(n_captions, bool)
    for start, stop in ranges:
        is_chosen[start:stop] = True
    chosen = iter(is_chosen.tolist())
    for record in records:
        for number in range(len(record.captions)):
            if next(chosen):
                yield record, number


def _fault(dataset: Dataset, record: Record, number: int, problem: str, item_id: str) -> Fault:
    """Return a fault of a record's caption of that number, or of its image."""
    entry = dataset.location_of(record, number)
    if entry is None:
        return Fault(problem, None, "", item_id)
    path, location = entry
    return Fault(f"{path} {location}: {problem}", path, location, item_id)


def _missing_files(paths: Iterable[str]) -> dict[str, str]:
    """Return the problem of each path that is no file."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        by_folder[os.path.dirname(path)].append(path)
    missing: dict[str, str] = {}
    for folder, files in by_folder.items():
        present: Collection[str] | None = ()
        if len(files) >= _LISTED_FOLDER:
            present = _files_of(folder)
        if present is None:
            missing.update(dict.fromkeys(files, "does not exist"))
            continue
        for path in files:
            if os.path.basename(path) in present:
                continue
            # Where names are not equal byte by byte (case, forms of Unicode), the system knows
            # more.
            problem = _problem(path)
            if problem is not None:
                missing[path] = problem
    return missing


def _files_of(folder: str) -> Collection[str] | None:
    """Return the names of the files in a folder, ``None`` if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        # It cannot be listed; its files may well be read.
        return ()


def _problem(path: str) -> str | None:
    """Describe why a path is no file that could be read, if it is none."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if stat.S_ISDIR(mode):
        return "is a folder"
    return None
