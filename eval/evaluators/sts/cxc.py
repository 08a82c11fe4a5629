"""Crisscrossed Captions: correlation with human similarity scores of captions and images.

Parekh et al., Crisscrossed Captions: Extended Intramodal and Intermodal Semantic Similarity
Judgments for MS-COCO (EACL 2021): pairs of captions (STS), of images (SIS), and of a caption and an
image (SITS) from the Karpathy splits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from cusa.data.errors import DataError, EmbeddingsError, FileFormatError
from cusa.data.lines import find_columns, line_fault, read_csv
from cusa.eval.evaluators.sts.layouts import parse_score
from cusa.eval.evaluators.sts.results import CxcKind, CxcScores
from cusa.eval.metrics.correlation import spearman

_COLUMNS: Mapping[str, tuple[str, str]] = {
    "sts": ("caption1", "caption2"),
    "sis": ("image1", "image2"),
    "sits": ("caption", "image"),
}
_CAPTION = re.compile(r"COCO_(?:train|val)2014:sentid:([0-9]{1,18})")
_IMAGE = re.compile(r"COCO_(?:train|val)2014_0*([0-9]{1,18})\.jpg")


@dataclass(frozen=True)
class CxcTask:
    """The judged pairs of one kind, from the test split.

    Attributes:
        kind: ``"sts"`` (caption, caption), ``"sis"`` (image, image) or ``"sits"`` (caption, image).
        first: Id of the first item of each pair, which is the query: COCO's caption id (``sentid``)
            as ``int``, or its image id as ``str`` without leading zeros, as in a record's
            ``image_id``.
        second: Id of the second item of each pair, likewise.
        gold: float64 ``[pairs]``: mean human score, 0 to 5.
    """

    kind: CxcKind
    first: tuple[int | str, ...]
    second: tuple[int | str, ...]
    gold: np.ndarray


def find_cxc(folder: Path) -> dict[CxcKind, CxcTask]:
    """Read ``sts_test.csv``, ``sis_test.csv`` and ``sits_test.csv``, as far as a folder has them.

    Args:
        folder: A folder that has the files at any depth, such as a clone of the data set's
            repository.

    Returns:
        The tasks by kind; empty if none of the files exists.

    Raises:
        CusaError: If a file exists twice or is malformed; the message names the file and the line.
    """
    tasks: dict[CxcKind, CxcTask] = {}
    for kind in get_args(CxcKind):
        paths = sorted(folder.rglob(f"{kind}_test.csv"))
        if len(paths) > 1:
            raise DataError(
                f"{paths[0]} and {paths[1]} both hold CxC's {kind} pairs; pass one of the folders",
                path=paths[1],
                name=kind,
            )
        if paths:
            tasks[kind] = _read(paths[0], kind)
    return tasks


def _read(path: Path, kind: CxcKind) -> CxcTask:
    first_name, second_name = _COLUMNS[kind]
    rows = read_csv(path)
    _, header = next(rows, (1, []))
    columns = find_columns(header, (first_name, second_name, "agg_score"), path)
    if columns is None:
        raise FileFormatError(
            f"{path}, line 1, is not a header of CxC; expected the comma-separated columns "
            f"{first_name}, {second_name} and agg_score",
            path=path,
            location="line 1",
        )
    first_column, second_column, score_column = columns
    first_ids, second_ids, scores = [], [], []
    for line_number, cells in rows:
        if len(cells) != len(header):
            raise line_fault(path, line_number, f"expected {len(header)} columns")
        first_ids.append(_item_id(cells[first_column], first_name, path, line_number))
        second_ids.append(_item_id(cells[second_column], second_name, path, line_number))
        scores.append(parse_score(cells[score_column], path, line_number))
    if not scores:
        raise FileFormatError(
            f"{path} holds no pairs; get the file from the data set's repository", path=path
        )
    return CxcTask(kind, tuple(first_ids), tuple(second_ids), np.array(scores, np.float64))


def _item_id(
    text: str,
    column: str,
    path: Path,
    line_number: int,
) -> int | str:
    """Parse the id of a caption, an ``int``, or of an image, a ``str``."""
    is_caption = column.startswith("caption")
    match = (_CAPTION if is_caption else _IMAGE).fullmatch(text)
    if match is None:
        expected = "caption's id; expected one like COCO_val2014:sentid:411553"
        if not is_caption:
            expected = "image's name; expected one like COCO_val2014_000000391895.jpg"
        raise line_fault(path, line_number, f"{text[:80]!r} is not a COCO {expected}")
    return int(match[1]) if is_caption else match[1]


def cxc_correlation(
    similarity: np.ndarray,
    gold: np.ndarray,
    query_ids: Sequence[int | str],
    seed: int,
    samples: int = 1000,
) -> CxcScores:
    """Compute Spearman's bootstrap correlation, as in the CxC paper's evaluation of correlations.

    Pairs that share an item are not independent. Each sample therefore draws half of the queries
    (rounded down) without replacement, and one random pair of each; the figure is the mean over the
    samples.

    Args:
        similarity: float ``[pairs]``, finite: the model's similarities.
        gold: float ``[pairs]``: the human scores.
        query_ids: Id of each pair's query, as in :attr:`CxcTask.first`.
        seed: Seed of the samples.
        samples: Number of samples.

    Returns:
        ``spearman_bootstrap`` and ``std``, the mean and standard deviation over the samples, and
        ``spearman``, over all pairs, all times 100; and ``pairs``, the number of pairs.

    Raises:
        CusaError: If a correlation is not defined: there are too few queries, or values are
            constant or not finite.
    """
    over_all_pairs = spearman(similarity, gold)
    if len(query_ids) != len(gold):
        raise EmbeddingsError(
            f"{len(query_ids)} query ids for {len(gold)} pairs; give one for each pair",
            name="query_ids",
        )
    # Queries are numbered in order of first appearance, on which a seed's samples depend.
    number_of_query: dict[int | str, int] = {}
    queries = np.zeros(len(query_ids), np.int64)
    for position, query in enumerate(query_ids):
        queries[position] = number_of_query.setdefault(query, len(number_of_query))
    # The pairs of query q are by_query[start[q] : start[q] + count[q]].
    by_query = np.argsort(queries, kind="stable")
    count = np.bincount(queries)
    start = np.cumsum(count) - count
    rng = np.random.default_rng(seed)
    values = np.empty(samples)
    for sample in range(samples):
        drawn = rng.permutation(len(count))[: len(count) // 2]
        pairs = by_query[start[drawn] + rng.integers(count[drawn])]
        values[sample] = spearman(similarity[pairs], gold[pairs])
    return {
        "spearman_bootstrap": float(values.mean()),
        "std": float(values.std()),
        "spearman": over_all_pairs,
        "pairs": len(gold),
    }
