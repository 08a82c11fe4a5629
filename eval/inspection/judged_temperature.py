"""The temperature of soft labels that people's judgements of image-caption pairs support.

The candidates of a judged caption c are the image i that it was written for and the other images j
that people judged with it. People's label of a candidate is its share of Yes (1 for i, if it was
not judged) over the sum of these shares. A teacher's soft label is ``softmax_j(s_cj / tau)`` over
the same candidates, where s is what the loss compares: of an image teacher, the cosine of images i
and j; of a text teacher, the mean cosine of c and the captions of j, and 1 for the pair itself; of
a cross-modal teacher, the cosine of c and j. The temperature minimises the cross entropy
``-sum_j label_cj log softmax_j(s_cj / tau)``, averaged over captions, and so gives people's labels
the greatest likelihood. The cross entropy is convex in 1 / tau: there is one minimum, of which the
nearest of 301 temperatures is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import numpy as np

from cusa.data.errors import DataError, SettingError
from cusa.data.store.embeddings import Embeddings
from cusa.data.store.mapped_split import Split
from cusa.data.store.reader import EmbeddingStore
from cusa.data.unit_rows import unit_rows
from cusa.eval.evaluators.judgements.data import read_judgements
from cusa.eval.evaluators.judgements.matching import rows_in_split
from cusa.eval.evaluators.splits import EvaluatedSplit
from cusa.eval.inspection.results import (
    GREATEST_TEMPERATURE,
    LEAST_TEMPERATURE,
    JudgedTemperature,
)
from cusa.eval.inspection.split_teachers import SplitTeacher

# 0.01 to 10; neighbours differ by 2.3 %.
_TEMPERATURES = np.geomspace(LEAST_TEMPERATURE, GREATEST_TEMPERATURE, 301)
_AT_ONE = 200  # position of temperature 1
_RESAMPLINGS = 1000


@dataclass(frozen=True)
class JudgedCandidates:
    """The candidates of judged captions, caption by caption.

    Attributes:
        captions: int64 ``[n]``: the caption row of each candidate.
        images: int64 ``[n]``: its image row.
        own_images: int64 ``[n]``: the image that the caption was written for.
        labels: float64 ``[n]``: people's label, which sum to 1 for each caption.
        starts: int64: the first candidate of each caption.
        n_judged: How many of the candidates people judged.
    """

    captions: np.ndarray
    images: np.ndarray
    own_images: np.ndarray
    labels: np.ndarray
    starts: np.ndarray
    n_judged: int


def judged_temperatures(
    store: EmbeddingStore,
    split_name: str,
    teachers: Sequence[SplitTeacher],
    path: Path,
    seed: int,
) -> tuple[JudgedTemperature, ...]:
    """Fit the temperature of each teacher to people's judgements.

    Args:
        store: The store.
        split_name: The split, whose pairs people judged.
        teachers: Its teachers.
        path: The judgements, in the form of CrowdFlowerAnnotations.txt.
        seed: Seed of the resampling of captions.

    Raises:
        FileFormatError: If the file is malformed.
        SettingError: If it holds experts' scores, which are no shares.
        DataError: If no caption of the split has two candidates, or none of the pairs is in it.
    """
    split = store.split(split_name)
    candidates = _read_candidates(store, split, path)
    temperatures = []
    for teacher in teachers:
        similarities = _similarities(teacher, candidates, split)
        entropies = _cross_entropies(similarities, candidates)
        temperatures.append(_best(teacher, entropies, candidates, seed))
    return tuple(temperatures)


def _read_candidates(
    store: EmbeddingStore,
    split: Split,
    path: Path,
) -> JudgedCandidates:
    skipped_images, skipped_captions = store.skipped(split.name)
    view = EvaluatedSplit.from_store(store, split.name)
    tables = []
    n_judged = 0
    for caption, shares in _shares_by_caption(path, view).items():
        if caption in skipped_captions:
            continue
        table = _candidates_of_caption(caption, shares, split, skipped_images)
        if table is None:
            continue
        tables.append(table)
        n_judged += int(np.isin(table.images, list(shares)).sum())
    if not tables:
        raise _no_candidates(split, path)
    columns = attrgetter("captions", "images", "own_images", "labels")
    columns_of_tables = zip(*map(columns, tables), strict=True)
    captions, images, own_images, labels = map(np.concatenate, columns_of_tables)
    is_first = np.diff(captions, prepend=-1) != 0
    return JudgedCandidates(
        captions=captions,
        images=images,
        own_images=own_images,
        labels=labels,
        starts=np.flatnonzero(is_first),
        n_judged=n_judged,
    )


def _no_candidates(split: Split, path: Path) -> DataError:
    return DataError(
        f"no caption of split {split.name!r} was judged with another image, so that {path} "
        "supports no temperature; pass other judgements",
        path=path,
        name=split.name,
    )


def _shares_by_caption(
    path: Path,
    split: EvaluatedSplit,
) -> dict[int, dict[int, float]]:
    """Read the share of Yes of each judged image by its row, for each caption row, ascending."""
    file = read_judgements(path)
    if file.kind != "crowd":
        raise SettingError(
            f"--judgements {path} holds experts' scores; a temperature is fitted to shares of Yes, "
            "in the form of Flickr8k's CrowdFlowerAnnotations.txt",
            path=path,
            name="judgements",
        )
    shares: dict[int, dict[int, float]] = {}
    rows = rows_in_split(file, split)
    for (image, caption), pair in zip(rows.tolist(), file.pairs, strict=True):
        is_in_split = image >= 0
        if is_in_split:
            shares.setdefault(caption, {})[image] = pair.score
    return dict(sorted(shares.items()))


def _candidates_of_caption(
    caption: int,
    shares: dict[int, float],
    split: Split,
    skipped_images: np.ndarray,
) -> JudgedCandidates | None:
    """Return a caption's candidates; ``None`` if there are fewer than two, or all are No."""
    own_image = int(split.caption_image[caption])
    if own_image in skipped_images:
        return None
    share_of_image = {own_image: 1.0, **shares}
    images = np.setdiff1d(list(share_of_image), skipped_images)
    usable_shares = np.array([share_of_image[image] for image in images.tolist()])
    total = usable_shares.sum()
    if len(images) < 2 or total == 0:
        return None
    return JudgedCandidates(
        captions=np.full_like(images, caption),
        images=images,
        own_images=np.full_like(images, own_image),
        labels=usable_shares / total,
        starts=np.zeros(1, np.int64),
        n_judged=len(shares),
    )


def _similarities(
    teacher: SplitTeacher,
    candidates: JudgedCandidates,
    split: Split,
) -> np.ndarray:
    """Return a teacher's similarity of each candidate: float64 ``[n]``."""
    images, captions = candidates.images, candidates.captions
    if teacher.kind == "image":
        assert teacher.image_rows is not None, "an image teacher has rows of images"
        rows = _all_rows(teacher.image_rows)
        return _row_products(rows[candidates.own_images], rows[images])
    assert teacher.text_rows is not None, "another teacher has rows of captions"
    text_rows = _all_rows(teacher.text_rows)
    if teacher.kind == "cross":
        assert teacher.image_rows is not None, "a cross-modal teacher has rows of images"
        return _row_products(text_rows[captions], _all_rows(teacher.image_rows)[images])
    mean_rows = _mean_by_image(text_rows, np.asarray(split.caption_image), split.n_images)
    similarities = _row_products(text_rows[captions], mean_rows[images])
    # In a batch, the pair itself has this very caption.
    return np.where(images == candidates.own_images, 1.0, similarities)


def _all_rows(rows: Embeddings) -> np.ndarray:
    """Return all rows of a split, of length one: float64; those that were skipped are NaN."""
    return unit_rows(np.asarray(rows)).astype(np.float64)


def _row_products(
    first: np.ndarray,
    second: np.ndarray,
) -> np.ndarray:
    return np.einsum("nd,nd->n", first, second)


def _mean_by_image(
    rows: np.ndarray,
    caption_image: np.ndarray,
    n_images: int,
) -> np.ndarray:
    """Average the rows of each image's captions, without those that were skipped."""
    is_there = np.isfinite(rows[:, 0])
    sums = np.zeros((n_images, rows.shape[1]))
    np.add.at(sums, caption_image[is_there], rows[is_there])
    counts = np.bincount(caption_image[is_there], minlength=n_images)
    return sums / np.maximum(counts, 1)[:, None]


def _cross_entropies(
    similarities: np.ndarray,
    candidates: JudgedCandidates,
) -> np.ndarray:
    """Return the cross entropy of each caption at each temperature: float64 ``[captions, taus]``.

    It is ``log sum_j exp(s_j / tau) - sum_j label_j s_j / tau``; the greatest s is taken out of
    both, so that nothing overflows.
    """
    starts = candidates.starts
    lengths = np.diff(np.append(starts, len(similarities)))
    greatest = np.maximum.reduceat(similarities, starts)
    below_greatest = similarities - np.repeat(greatest, lengths)
    mean_below_greatest = np.add.reduceat(candidates.labels * below_greatest, starts)
    entropies = np.empty((len(starts), len(_TEMPERATURES)))
    for column, tau in enumerate(_TEMPERATURES):
        sums = np.add.reduceat(np.exp(below_greatest / tau), starts)
        entropies[:, column] = np.log(sums) - mean_below_greatest / tau
    return entropies


def _best(
    teacher: SplitTeacher,
    entropies: np.ndarray,
    candidates: JudgedCandidates,
    seed: int,
) -> JudgedTemperature:
    """Return the best temperature, with an interval from captions drawn with replacement."""
    n_captions = len(entropies)
    means = entropies.mean(axis=0)
    generator = np.random.default_rng(seed)
    even = np.full(n_captions, 1 / n_captions)
    weights = generator.multinomial(n_captions, even, size=_RESAMPLINGS)
    resampled = _TEMPERATURES[(weights @ entropies).argmin(axis=1)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    labels = candidates.labels[candidates.labels > 0]
    best = int(means.argmin())
    return JudgedTemperature(
        name=teacher.name,
        kind=teacher.kind,
        tau=float(_TEMPERATURES[best]),
        low=float(low),
        high=float(high),
        cross_entropy=float(means[best]),
        at_one=float(means[_AT_ONE]),
        people=float(-(labels * np.log(labels)).sum() / n_captions),
        captions=n_captions,
        pairs=candidates.n_judged,
    )
