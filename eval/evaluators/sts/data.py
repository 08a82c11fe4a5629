"""Readers of the data sets of semantic textual similarity, as they are distributed and in SentEval's layout.

Known layouts, found wherever they lie below a folder:

- STS12 to STS16: per subset ``STS.input.NAME.txt`` (two sentences, tab-separated) and ``STS.gs.NAME.txt`` (a score per
  line; an empty line: the pair was not annotated and is left out). The year is told by the subsets and the folder.
- STSBenchmark: ``sts-train.csv``, ``sts-dev.csv``, ``sts-test.csv`` (tab-separated; genre, file, year, index, score and
  the sentences, sometimes their sources); or any ``train``, ``dev``, ``validation`` or ``test`` file, ``.csv`` or
  ``.tsv``, whose header names sentence1, sentence2 and score, as GLUE has them; or ``stsb-en-test.csv`` (sentences and
  score, without a header) of stsb_multi_mt.
- SICKRelatedness: ``SICK_train.txt``, ``SICK_trial.txt``, ``SICK_test_annotated.txt``.

Quotation marks are part of the sentences in all of them but the comma-separated ones.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from cusa.data.errors import DataError, FileFormatError
from cusa.data.lines import find_columns, line_fault, read_csv, read_lines

# Pairs of each subset, in SentEval's order (Conneau and Kiela, LREC 2018); STS13 without SMT, which is not distributed
# freely and which no published "STS13" of SentEval has.
TASKS: Mapping[str, Mapping[str, int]] = {
    "STS12": {
        "MSRpar": 750,
        "MSRvid": 750,
        "SMTeuroparl": 459,
        "surprise.OnWN": 750,
        "surprise.SMTnews": 399,
    },
    "STS13": {"FNWN": 189, "headlines": 750, "OnWN": 561},
    "STS14": {
        "deft-forum": 450,
        "deft-news": 300,
        "headlines": 750,
        "images": 750,
        "OnWN": 750,
        "tweet-news": 750,
    },
    "STS15": {
        "answers-forums": 375,
        "answers-students": 750,
        "belief": 375,
        "headlines": 750,
        "images": 750,
    },
    "STS16": {
        "answer-answer": 254,
        "headlines": 249,
        "plagiarism": 230,
        "postediting": 244,
        "question-question": 209,
    },
    "STSBenchmark": {"train": 5749, "dev": 1500, "test": 1379},
    "SICKRelatedness": {"train": 4500, "dev": 500, "test": 4927},
}
_YEARS = tuple(name for name in TASKS if re.fullmatch(r"STS\d\d", name))
_SPLITS = {
    "train": "train",
    "dev": "dev",
    "validation": "dev",
    "trial": "dev",
    "test": "test",
    "test_annotated": "test",
}
_INPUT = re.compile(r"(STS(?:20\d\d)?)\.input\.(.+)\.txt")
_BENCHMARK = re.compile(r"(?:sts-|stsb[-_]en[-_])?(train|dev|validation|test)\.(?:csv|tsv)")
_SICK = re.compile(r"SICK_(train|trial|test_annotated)\.txt")
_HIGHEST = 5.0
_LONGEST_HEADER = 10_000  # bytes; a file that is no table may have no line


class NoStsDataError(DataError):
    """A folder that holds no STS data, or is none."""


@dataclass(frozen=True)
class Pairs:
    """The annotated sentence pairs of one subset.

    Attributes:
        first: First sentences, as written but for white space around them.
        second: Second sentences.
        gold: float64 ``[pairs]``: mean human judgement, 0 to 5.
        name: Name of the subset.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    gold: np.ndarray
    name: str


@dataclass(frozen=True)
class StsTask:
    """One task of semantic textual similarity.

    Attributes:
        name: A key of :data:`TASKS`.
        subsets: Its subsets, in the order of :data:`TASKS`.
        headline: What the published figure is computed over: all subsets together, or the test subset.
        notes: What a reader of its figures should know, such as subsets that are missing.
    """

    name: str
    subsets: tuple[Pairs, ...]
    headline: Literal["all", "test"]
    notes: tuple[str, ...] = ()

    @property
    def sentences(self) -> list[str]:
        """Its different sentences, by first appearance."""
        sides = (side for subset in self.subsets for side in (subset.first, subset.second))
        return list(dict.fromkeys(chain.from_iterable(sides)))

    @property
    def fingerprint(self) -> str:
        """sha256 over the subsets' names, sentences and gold scores, in order."""
        digest = hashlib.sha256()
        for subset in self.subsets:
            digest.update(
                json.dumps(
                    [subset.name, subset.first, subset.second, subset.gold.tolist()]
                ).encode()
            )
        return digest.hexdigest()


def find_sts_tasks(folder: Path, allow_partial: bool = False) -> list[StsTask]:
    """Read every known task below a folder.

    Args:
        folder: A folder of one task or of many, in any of the layouts of this module.
        allow_partial: Take tasks that lack subsets or pairs, too, with a note.

    Returns:
        The tasks, in the order of :data:`TASKS`.

    Raises:
        NoStsDataError: If there is none.
        CusaError: If a file is missing or malformed, the counts are not the published ones, or a task
            is there twice with different content; names the file and the line.
    """
    if not folder.is_dir():
        raise NoStsDataError(
            f"{folder} {'is no folder' if folder.exists() else 'does not exist'}; pass a folder of STS data"
        )
    found: dict[str, list[tuple[StsTask, Path]]] = defaultdict(list)
    for place, names in _folders(folder):
        for task in _tasks_in(place, names):
            found[task.name].append((task, place))
    if not found:
        raise NoStsDataError(
            f"{folder} holds no STS data; looked for STS.input.*.txt with STS.gs.*.txt, sts-{{train,dev,test}}.csv, "
            "{train,dev,test}.tsv with sentence1, sentence2 and score, and SICK_{train,trial,test_annotated}.txt"
        )
    return [_chosen(found[name], allow_partial) for name in TASKS if name in found]


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder with the names of its files, sorted."""
    for place in [root, *sorted(p for p in root.rglob("*") if p.is_dir())]:
        yield place, sorted(p.name for p in place.iterdir() if p.is_file())


def _chosen(candidates: Sequence[tuple[StsTask, Path]], allow_partial: bool) -> StsTask:
    """The one complete task among folders that have it, or a partial one if that is allowed."""
    whole = [c for c in candidates if not _lacks(c[0])]
    task, place = (whole or candidates)[0]
    if not whole and not allow_partial:
        raise DataError(
            f"{task.name} in {place} is not the published one: {'; '.join(_lacks(task))}; "
            "get the missing files, or pass --allow-partial to evaluate what is there"
        )
    for other, there in (whole or candidates)[1:]:
        if other.fingerprint != task.fingerprint:
            raise DataError(
                f"{task.name} is in {place} and, with other content, in {there}; pass one of the two"
            )
    return StsTask(task.name, task.subsets, task.headline, (*task.notes, *_lacks(task)))


def _lacks(task: StsTask) -> list[str]:
    """How a task's subsets and pairs differ from the published ones."""
    counts = {subset.name: len(subset.gold) for subset in task.subsets}
    return [
        f"{name} has {counts[name]} pairs instead of {n}"
        if name in counts
        else f"{name} ({n} pairs) is missing"
        for name, n in TASKS[task.name].items()
        if counts.get(name) != n
    ]


def _tasks_in(place: Path, names: Sequence[str]) -> Iterator[StsTask]:
    """The tasks whose files lie in one folder."""
    if not re.search(
        r"(?<![a-z])train", place.resolve().name, re.IGNORECASE
    ):  # STS12's training pairs bear the test's names
        years: dict[str, dict[str, str]] = defaultdict(dict)
        for parts in filter(None, map(_INPUT.fullmatch, names)):
            years[parts[1]][parts[2]] = parts[0]
        for prefix, inputs in years.items():
            yield from _year_task(place, prefix, inputs)
    splits: dict[str, list[tuple[str, Path, _Form]]] = defaultdict(list)
    for name in names:
        if (match := _BENCHMARK.fullmatch(name)) and (form := _benchmark_form(place / name)):
            splits["STSBenchmark"].append((_SPLITS[match[1]], place / name, form))
        elif match := _SICK.fullmatch(name):
            splits["SICKRelatedness"].append(
                (_SPLITS[match[1]], place / name, _sick_form(place / name))
            )
    for task, files in splits.items():
        by_split: dict[str, tuple[Path, _Form]] = {}
        for split, path, form in files:
            if split in by_split:
                raise DataError(
                    f"{by_split[split][0]} and {path.name} are both {task} {split}; keep one of the two"
                )
            by_split[split] = path, form
        yield StsTask(
            task, tuple(_read_table(*by_split[s], s) for s in TASKS[task] if s in by_split), "test"
        )


def _year_task(place: Path, prefix: str, inputs: Mapping[str, str]) -> Iterator[StsTask]:
    """STS12 to STS16, whichever year the subsets are of; nothing if they are of none, such as Spanish ones."""
    shared = {year: len(TASKS[year].keys() & inputs.keys()) for year in _YEARS}
    years = [year for year in _YEARS if shared[year] == max(shared.values()) > 0]
    named = re.search(
        r"(?:sts|20)(1[2-6])(?!\d)", f"{prefix} {place.resolve().name}", re.IGNORECASE
    )
    if named and shared[f"STS{named[1]}"]:
        years = [f"STS{named[1]}"]
    if len(years) > 1:
        raise DataError(
            f"{place} has the subsets {', '.join(inputs)}, which may be of {' or '.join(years)}; "
            f"name the folder after its year, such as {years[0]}-en-test"
        )
    for year in years:
        extra = sorted(inputs.keys() - TASKS[year].keys())
        notes = (
            (f"left out, since the published figures do without: {', '.join(extra)}",)
            if extra
            else ()
        )
        subsets = (_read_year_subset(place, prefix, name) for name in TASKS[year] if name in inputs)
        yield StsTask(year, tuple(subsets), "all", notes)


def _read_year_subset(place: Path, prefix: str, name: str) -> Pairs:
    inputs, scores = place / f"{prefix}.input.{name}.txt", place / f"{prefix}.gs.{name}.txt"
    if not scores.is_file():
        message = f"{scores} does not exist; it holds the gold scores of {inputs.name}, one a line"
        raise FileFormatError(message, path=scores)
    lines, gold = read_lines(inputs), read_lines(scores)
    if len(lines) != len(gold):
        raise FileFormatError(
            f"{inputs} has {len(lines)} lines and {scores.name} {len(gold)}; they must have the same number",
            path=inputs,
        )
    rows = []
    for number, (line, score) in enumerate(zip(lines, gold, strict=True), start=1):
        if score.strip():
            cells = line.rstrip().split("\t")
            if len(cells) not in (2, 4):
                message = f"{len(cells)} tab-separated columns; expected two sentences, or two and their two sources"
                raise line_fault(inputs, number, message)
            rows.append(
                (*_sentences(cells[:2], inputs, number), parse_score(score, scores, number))
            )
    return _pairs(rows, name)


@dataclass(frozen=True)
class _Form:
    """How a table is written: the columns of both sentences and of the score, and legal numbers of columns."""

    columns: tuple[int, int, int]
    widths: tuple[int, ...]
    tabs: bool
    header: bool


def _form_by_header(path: Path, names: Sequence[str]) -> _Form | None:
    """The form of a table whose first line names its columns, if it has those names."""
    with path.open("rb") as file:
        first = file.readline(_LONGEST_HEADER).decode("utf-8-sig", errors="replace")
    tabs = "\t" in first
    try:
        header = first.split("\t") if tabs else next(csv.reader([first]), [])
    except csv.Error:  # of another data set's table
        return None
    columns = find_columns(header, names, path)
    if columns is None:
        return None
    first_column, second_column, score_column = columns
    return _Form((first_column, second_column, score_column), (len(header),), tabs, header=True)


def _benchmark_form(path: Path) -> _Form | None:
    form = _form_by_header(path, ("sentence1", "sentence2", "score"))
    if form is not None or not path.name.startswith("sts"):  # any data set may have a train.tsv
        return form
    if path.name.startswith("stsb"):
        return _Form((0, 1, 2), (3,), tabs=False, header=False)
    return _Form((5, 6, 4), (7, 9), tabs=True, header=False)


def _sick_form(path: Path) -> _Form:
    names = ("sentence_a", "sentence_b", "relatedness_score")
    form = _form_by_header(path, names)
    if form is None:
        raise FileFormatError(
            f"{path}, line 1, is no header of SICK; expected pair_ID, sentence_A, sentence_B, relatedness_score and "
            "entailment_judgment, tab-separated",
            path=path,
            location="line 1",
        )
    return form


def _read_table(path: Path, form: _Form, name: str) -> Pairs:
    rows = []
    for number, cells in _cells(path, form):
        if len(cells) not in form.widths:
            kind, legal = "tab" if form.tabs else "comma", " or ".join(map(str, form.widths))
            raise line_fault(
                path, number, f"{len(cells)} {kind}-separated columns; expected {legal}"
            )
        first, second, score = (cells[column] for column in form.columns)
        rows.append((*_sentences((first, second), path, number), parse_score(score, path, number)))
    return _pairs(rows, name)


def _cells(path: Path, form: _Form) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row that is not empty, with the number of its last line."""
    if not form.tabs:
        yield from list(read_csv(path))[form.header :]
        return
    lines = enumerate(read_lines(path), start=1)
    rows = [(number, line.split("\t")) for number, line in lines if line.strip()]
    yield from rows[form.header :]


def _sentences(cells: Sequence[str], path: Path, number: int) -> tuple[str, str]:
    first, second = (cell.strip() for cell in cells)
    if not (first and second):
        raise line_fault(path, number, "an empty sentence; expected two sentences and a score")
    return first, second


def parse_score(text: str, path: Path, number: int) -> float:
    """A human judgement, 0 to 5.

    Raises:
        FileFormatError: If it is no such number; names the file and the line.
    """
    try:
        score = float(text) if text.isascii() and "_" not in text else -1.0
    except ValueError:
        score = -1.0
    if not 0 <= score <= _HIGHEST:  # NaN is not, either
        shown = text.strip()[:80]
        raise line_fault(
            path, number, f"{shown!r} is no score; expected a number from 0 to {_HIGHEST:g}"
        )
    return score


def _pairs(rows: Sequence[tuple[str, str, float]], name: str) -> Pairs:
    first, second, gold = zip(*rows, strict=True) if rows else ((), (), ())
    return Pairs(first, second, np.array(gold, np.float64), name)
