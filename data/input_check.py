"""The check of a data set's images and captions, before anything is computed.

Only the existence of the image files is checked here; they are decoded later.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np

from cusa.data.captions import is_cut, normalizer
from cusa.data.errors import CusaError
from cusa.data.records import Dataset
from cusa.data.repeated_texts import are_among, text_hashes
from cusa.data.texts import BLOCK

MAX_LISTED = 20
# Characters; Linux takes no longer paths.
_MAX_SHOWN_PATH = 4096
# From this many files in a folder on, listing the folder is faster than a stat of each file.
_LISTED_FOLDER = 64
# Images that are looked for at a time.
_BLOCK_IMAGES = 1 << 16
_NO_HASHES = np.zeros(0, np.int64)

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
    root = os.fspath(dataset.image_root)
    folders = _Folders()
    n_checked = 0
    n_faults = 0
    listed: list[Fault] = []
    for split, start, stop in _blocks(rows, _BLOCK_IMAGES):
        records = dataset.splits[split]
        relative_paths = records.image_paths[start:stop]
        paths = [os.path.join(root, path) for path in relative_paths]
        problems = folders.problems(paths)
        n_checked += len(paths)
        for row, path in enumerate(paths, start):
            if path not in problems:
                continue
            n_faults += 1
            if len(listed) < MAX_LISTED:
                problem = f"image {path[:_MAX_SHOWN_PATH]} {problems[path]}"
                first_caption = int(records.first_captions(np.asarray(row)))
                image_id = records.image_ids[row]
                listed.append(_fault(dataset, split, first_caption, problem, image_id))
    return Faults(n_checked, n_faults, tuple(listed))


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
    for split, start, stop in _blocks(rows, BLOCK):
        records = dataset.splits[split]
        for row, caption in enumerate(records.captions[start:stop], start):
            n_checked += 1
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
                    caption_id = records.caption_ids[row]
                    problem = f"caption id {caption_id}: {error}"
                    listed.append(_fault(dataset, split, row, problem, caption_id))
    return Faults(n_checked, n_faults, tuple(listed), n_cut)


def _blocks(rows: RowRanges, length: int) -> Iterator[tuple[str, int, int]]:
    """Yield blocks of consecutive rows: split, first row, row after the last."""
    for split, ranges in rows.items():
        for range_start, range_stop in ranges:
            for start in range(range_start, range_stop, length):
                yield split, start, min(start + length, range_stop)


def _fault(
    dataset: Dataset,
    split: str,
    caption_row: int,
    problem: str,
    item_id: str,
) -> Fault:
    """Locate a problem of a caption, or of an image with that first caption."""
    entry = dataset.location_of(split, caption_row)
    if entry is None:
        return Fault(problem, None, "", item_id)
    path, location = entry
    return Fault(f"{path} {location}: {problem}", path, location, item_id)


class _Folders:
    """Finds files that are missing; folders with many of them are listed, once.

    The names in a listed folder are kept as hashes, as there may be millions.
    """

    def __init__(self) -> None:
        # Hashes, int64 [n], ascending; None: there is no such folder.
        self._hashes_of_folder: dict[str, np.ndarray | None] = {}

    def problems(self, paths: Sequence[str]) -> dict[str, str]:
        """Return the problem of each path that is not a readable file."""
        by_folder: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            by_folder[os.path.dirname(path)].append(path)
        problems: dict[str, str] = {}
        for folder, files in by_folder.items():
            if len(files) >= _LISTED_FOLDER and folder not in self._hashes_of_folder:
                self._hashes_of_folder[folder] = _hashes_of_files(folder)
            present = self._hashes_of_folder.get(folder, _NO_HASHES)
            if present is None:
                problems.update(dict.fromkeys(files, "does not exist"))
                continue
            for path in _absent_files(files, present):
                # The file system may equate names that differ in case or Unicode form, so ask it.
                problem = _problem(path)
                if problem is not None:
                    problems[path] = problem
        return problems


def _absent_files(files: Sequence[str], present: np.ndarray) -> Iterable[str]:
    """Return the files whose names are not among those of a folder, given by their hashes."""
    is_present = are_among(map(os.path.basename, files), present)
    return compress(files, ~is_present)


def _hashes_of_files(folder: str) -> np.ndarray | None:
    """Return the hashes of the names of a folder's files; ``None`` if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return np.sort(text_hashes(entry.name for entry in entries if entry.is_file()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        # A folder that cannot be listed may still hold readable files.
        return _NO_HASHES


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
