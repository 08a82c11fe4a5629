"""The check of a data set's images and captions, before anything is computed.

Only the existence of the image files is checked here; they are decoded later.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cusa.data.captions import is_cut, normalizer
from cusa.data.errors import CusaError
from cusa.data.records import Dataset, Record

MAX_LISTED = 20
# Characters; Linux takes no longer paths.
_MAX_SHOWN_PATH = 4096
# From this many files in a folder on, listing the folder is faster than a stat of each file.
_LISTED_FOLDER = 64

RowRanges = Mapping[str, Sequence[tuple[int, int]]]
"""Row ranges by split name, each as (first row, row after the last)."""


@dataclass(frozen=True)
class Fault:
    """An image or a caption that cannot be used.

    Attributes:
        message: What is wrong with it, with the annotation file and the entry.
        path: The annotation file; ``None`` if the data set was not read from one.
        location: The entry of that file, such as ``"line 3"``.
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
        n_checked: How many images or captions were checked.
        n_faults: How many of them cannot be used.
        listed: The first 20 of those, in row order.
        n_cut: How many captions lose words to the normaliser.
    """

    n_checked: int
    n_faults: int
    listed: tuple[Fault, ...]
    n_cut: int = 0


def check_images(dataset: Dataset, rows: RowRanges) -> Faults:
    """Check that the image files of some rows exist.

    Args:
        dataset: The data set.
        rows: The image rows to check.
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
    """Check that some captions are not empty once normalised, and count those that are cut.

    Args:
        dataset: The data set.
        rows: The caption rows to check.
        normalizer_name: Name of the caption normaliser.

    Raises:
        SettingError: If the normaliser is unknown.
    """
    normalize = normalizer(normalizer_name)
    n_checked = 0
    n_cut = 0
    n_faults = 0
    listed: list[Fault] = []
    for split, ranges in rows.items():
        for record, number in _chosen_captions(dataset.splits[split], ranges):
            n_checked += 1
            caption = record.captions[number]
            n_cut += is_cut(caption, normalizer_name)
            # A caption that begins with a letter stays non-empty under every normaliser; this
            # saves seconds on half a million captions.
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
    return Faults(n_checked, n_faults, tuple(listed), n_cut)


def _chosen_records(
    records: Sequence[Record], ranges: Iterable[tuple[int, int]]
) -> Iterator[Record]:
    for start, stop in ranges:
        yield from records[start:stop]


def _chosen_captions(
    records: Sequence[Record], ranges: Iterable[tuple[int, int]]
) -> Iterator[tuple[Record, int]]:
    """Yield the record of each chosen caption row, and the caption's number within it."""
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
    """Locate a problem of a record's image, or of its caption with that number."""
    entry = dataset.location_of(record, number)
    if entry is None:
        return Fault(problem, None, "", item_id)
    path, location = entry
    return Fault(f"{path} {location}: {problem}", path, location, item_id)


def _missing_files(paths: Iterable[str]) -> dict[str, str]:
    """Return the problem of each path that is not a readable file."""
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
            # The file system may equate names that differ in case or Unicode form, so ask it.
            problem = _problem(path)
            if problem is not None:
                missing[path] = problem
    return missing


def _files_of(folder: str) -> Collection[str] | None:
    """Return the names of the files in a folder; ``None`` if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        # A folder that cannot be listed may still hold readable files.
        return ()


def _problem(path: str) -> str | None:
    """Describe why a path is not a readable file; ``None`` if it is one."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if stat.S_ISDIR(mode):
        return "is a folder"
    return None
