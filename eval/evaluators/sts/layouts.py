"""Readers of the data sets of semantic textual similarity, as distributed and in SentEval's layout.

The layouts, which may lie at any depth below a folder:

- STS12 to STS16: for each subset, ``STS.input.NAME.txt`` (two sentences per line, tab-separated)
  and ``STS.gs.NAME.txt`` (a score per line; the line of a pair without a score is empty, and the
  pair is left out). The names of the subsets and of the folder determine the year.
- STSBenchmark: ``sts-train.csv``, ``sts-dev.csv`` and ``sts-test.csv`` (tab-separated: genre, file,
  year, index, score and the sentences, sometimes also their sources); or any ``train``, ``dev``,
  ``validation`` or ``test`` file, ``.csv`` or ``.tsv``, whose header names sentence1, sentence2 and
  score, as GLUE's do; or ``stsb-en-test.csv`` of stsb_multi_mt (sentences and score, no header).
- SICKRelatedness: ``SICK_train.txt``, ``SICK_trial.txt`` and ``SICK_test_annotated.txt``.

Quotation marks are part of the sentences, except in comma-separated files.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cusa.data.errors import DataError, FileFormatError
from cusa.data.lines import find_columns, line_fault, read_csv, read_lines
from cusa.eval.evaluators.sts.tasks import TASKS, Pairs, StsTask

_YEARS = tuple(name for name in TASKS if name[3:].isdigit())
_SPLITS = {
    "train": "train",
    "dev": "dev",
    "validation": "dev",
    "trial": "dev",
    "test": "test",
    "test_annotated": "test",
}
_INPUT_FILE = re.compile(r"(STS(?:20\d\d)?)\.input\.(.+)\.txt")
_YEAR_IN_NAME = re.compile(r"(?:sts|20)(1[2-6])(?!\d)", re.IGNORECASE)
_TRAIN_FOLDER = re.compile(r"(?<![a-z])train", re.IGNORECASE)
_BENCHMARK_FILE = re.compile(r"(?:sts-|stsb[-_]en[-_])?(train|dev|validation|test)\.(?:csv|tsv)")
_SICK_FILE = re.compile(r"SICK_(train|trial|test_annotated)\.txt")
_HIGHEST_SCORE = 5.0
_LONGEST_HEADER = 10_000  # bytes; a file that is no table may have a line of any length


class _PairRow(NamedTuple):
    """A sentence pair and its human score."""

    first: str
    second: str
    score: float


@dataclass(frozen=True)
class _TableForm:
    """The form of a table of sentence pairs.

    Attributes:
        columns: Positions of the columns of both sentences and of the score.
        widths: Legal numbers of columns.
        is_tabbed: Whether tabs separate the columns; otherwise commas do.
        has_header: Whether the first line names the columns.
    """

    columns: tuple[int, int, int]
    widths: tuple[int, ...]
    is_tabbed: bool
    has_header: bool


def tasks_in(folder: Path, file_names: Sequence[str]) -> Iterator[StsTask]:
    """Yield the tasks whose files lie in one folder.

    Args:
        folder: The folder.
        file_names: Names of its files, sorted.

    Raises:
        CusaError: If a file is missing or malformed, or two files hold the same split; the message
            names the file and the line.
    """
    # STS12's training files have the same names as its test files.
    if not _TRAIN_FOLDER.search(folder.resolve().name):
        yield from _year_tasks(folder, file_names)
    tables: dict[str, dict[str, tuple[Path, _TableForm]]] = defaultdict(dict)
    for name in file_names:
        table = _recognise_table(folder / name)
        if table is None:
            continue
        task_name, split, table_form = table
        if split in tables[task_name]:
            first_path, _ = tables[task_name][split]
            raise DataError(
                f"{first_path} and {name} are both {task_name} {split}; keep one of the two",
                path=folder / name,
                name=task_name,
            )
        tables[task_name][split] = folder / name, table_form
    for task_name, table_of_split in tables.items():
        subsets = []
        for split in TASKS[task_name]:
            if split in table_of_split:
                path, table_form = table_of_split[split]
                subsets.append(_read_table(path, table_form, split))
        yield StsTask(task_name, tuple(subsets), "test")


def _recognise_table(path: Path) -> tuple[str, str, _TableForm] | None:
    """Return a table's task, split and form; ``None`` if its name or its header is unknown."""
    benchmark = _BENCHMARK_FILE.fullmatch(path.name)
    if benchmark is not None:
        table_form = _benchmark_form(path)
        return None if table_form is None else ("STSBenchmark", _SPLITS[benchmark[1]], table_form)
    sick = _SICK_FILE.fullmatch(path.name)
    if sick is not None:
        return "SICKRelatedness", _SPLITS[sick[1]], _sick_form(path)
    return None


# --- STS12 to STS16


def _year_tasks(folder: Path, file_names: Sequence[str]) -> Iterator[StsTask]:
    """Yield the tasks STS12 to STS16; the files with the same prefix form a task."""
    inputs_of_prefix: dict[str, list[str]] = defaultdict(list)
    for name in file_names:
        match = _INPUT_FILE.fullmatch(name)
        if match is not None:
            inputs_of_prefix[match[1]].append(match[2])
    for prefix, subset_names in inputs_of_prefix.items():
        year = _year_of(folder, prefix, subset_names)
        if year is None:
            continue
        notes = []
        unknown = sorted(set(subset_names) - TASKS[year].keys())
        if unknown:
            notes.append(f"left out, as in the published figures: {', '.join(unknown)}")
        subsets = []
        for name in TASKS[year]:
            if name in subset_names:
                subsets.append(_read_year_subset(folder, prefix, name))
        yield StsTask(year, tuple(subsets), "all", tuple(notes))


def _year_of(
    folder: Path,
    prefix: str,
    subset_names: Sequence[str],
) -> str | None:
    """Determine the year of subsets; ``None`` if they are of no known year, as Spanish ones are."""
    n_shared = {year: len(TASKS[year].keys() & set(subset_names)) for year in _YEARS}
    named = _YEAR_IN_NAME.search(f"{prefix} {folder.resolve().name}")
    if named is not None and n_shared[f"STS{named[1]}"]:
        return f"STS{named[1]}"
    most_shared = max(n_shared.values())
    if most_shared == 0:
        return None
    years = [year for year in _YEARS if n_shared[year] == most_shared]
    if len(years) > 1:
        raise DataError(
            f"{folder} has the subsets {', '.join(subset_names)}, which may belong to "
            f"{' or '.join(years)}; name the folder after the year, such as {years[0]}-en-test",
            path=folder,
        )
    return years[0]


def _read_year_subset(folder: Path, prefix: str, name: str) -> Pairs:
    input_path = folder / f"{prefix}.input.{name}.txt"
    score_path = folder / f"{prefix}.gs.{name}.txt"
    if not score_path.is_file():
        raise FileFormatError(
            f"{score_path} does not exist; get that file, which holds the gold scores of "
            f"{input_path.name}, one per line",
            path=score_path,
        )
    lines, scores = read_lines(input_path), read_lines(score_path)
    if len(lines) != len(scores):
        raise FileFormatError(
            f"{input_path} has {len(lines)} lines, but {score_path.name} has {len(scores)}; "
            "they must have the same number of lines",
            path=input_path,
        )
    rows = []
    for line_number, (line, score_text) in enumerate(zip(lines, scores, strict=True), start=1):
        if not score_text.strip():
            continue
        cells = line.rstrip().split("\t")
        if len(cells) not in (2, 4):
            message = (
                f"{len(cells)} tab-separated columns; expected two sentences, possibly followed by "
                "their two sources"
            )
            raise line_fault(input_path, line_number, message)
        score = parse_score(score_text, score_path, line_number)
        rows.append(_pair_row(cells[0], cells[1], score, input_path, line_number))
    return _pairs(rows, name)


# --- tables


def _form_by_header(path: Path, names: Sequence[str]) -> _TableForm | None:
    """Return the form of a table by its header; ``None`` if the header lacks one of the names."""
    with path.open("rb") as file:
        first_line = file.readline(_LONGEST_HEADER).decode("utf-8-sig", errors="replace")
    is_tabbed = "\t" in first_line
    try:
        header = first_line.split("\t") if is_tabbed else next(csv.reader([first_line]), [])
    except csv.Error:  # a table of another data set
        return None
    columns = find_columns(header, names, path)
    if columns is None:
        return None
    first_column, second_column, score_column = columns
    return _TableForm(
        columns=(first_column, second_column, score_column),
        widths=(len(header),),
        is_tabbed=is_tabbed,
        has_header=True,
    )


def _benchmark_form(path: Path) -> _TableForm | None:
    table_form = _form_by_header(path, ("sentence1", "sentence2", "score"))
    # Without that header, a file such as train.tsv may be of any data set.
    if table_form is not None or not path.name.startswith("sts"):
        return table_form
    if path.name.startswith("stsb"):
        return _TableForm(columns=(0, 1, 2), widths=(3,), is_tabbed=False, has_header=False)
    return _TableForm(columns=(5, 6, 4), widths=(7, 9), is_tabbed=True, has_header=False)


def _sick_form(path: Path) -> _TableForm:
    table_form = _form_by_header(path, ("sentence_a", "sentence_b", "relatedness_score"))
    if table_form is None:
        raise FileFormatError(
            f"{path}, line 1, is not a header of SICK; expected the tab-separated columns pair_ID, "
            "sentence_A, sentence_B, relatedness_score and entailment_judgment",
            path=path,
            location="line 1",
        )
    return table_form


def _read_table(path: Path, table_form: _TableForm, name: str) -> Pairs:
    rows = []
    first_column, second_column, score_column = table_form.columns
    for line_number, cells in _cells(path, table_form):
        if len(cells) not in table_form.widths:
            separator = "tab" if table_form.is_tabbed else "comma"
            legal = " or ".join(map(str, table_form.widths))
            message = f"{len(cells)} {separator}-separated columns; expected {legal}"
            raise line_fault(path, line_number, message)
        score = parse_score(cells[score_column], path, line_number)
        row = _pair_row(cells[first_column], cells[second_column], score, path, line_number)
        rows.append(row)
    return _pairs(rows, name)


def _cells(
    path: Path,
    table_form: _TableForm,
) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of each row that is not empty, without the header."""
    if table_form.is_tabbed:
        rows = []
        for line_number, line in enumerate(read_lines(path), start=1):
            if line.strip():
                rows.append((line_number, line.split("\t")))
    else:
        rows = list(read_csv(path))
    yield from rows[table_form.has_header :]


def _pair_row(
    first_sentence: str,
    second_sentence: str,
    score: float,
    path: Path,
    line_number: int,
) -> _PairRow:
    row = _PairRow(first_sentence.strip(), second_sentence.strip(), score)
    if not (row.first and row.second):
        message = "a sentence is empty; expected two sentences and a score"
        raise line_fault(path, line_number, message)
    return row


def parse_score(text: str, path: Path, line_number: int) -> float:
    """Parse a human score, 0 to 5.

    Args:
        text: The score as written.
        path: The file, for the error.
        line_number: The line, for the error.

    Raises:
        FileFormatError: If the text is not a number from 0 to 5.
    """
    try:
        score = float(text) if text.isascii() and "_" not in text else -1.0
    except ValueError:
        score = -1.0
    if not 0 <= score <= _HIGHEST_SCORE:  # NaN fails this, too
        message = (
            f"{text.strip()[:80]!r} is not a score; expected a number from 0 to {_HIGHEST_SCORE:g}"
        )
        raise line_fault(path, line_number, message)
    return score


def _pairs(rows: Sequence[_PairRow], name: str) -> Pairs:
    if not rows:
        return Pairs((), (), np.zeros(0), name)
    first_sentences, second_sentences, scores = zip(*rows, strict=True)
    return Pairs(first_sentences, second_sentences, np.array(scores, np.float64), name)
