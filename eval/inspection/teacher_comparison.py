"""What the teachers of a split have in common, and what only one of two sees."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch

from cusa.eval.inspection.batch_figures import (
    Agreement,
    Sharpness,
    agreement,
    mean_figures,
    sharpness,
)
from cusa.eval.inspection.opened_split import OpenedSplit
from cusa.eval.inspection.pair_search import Advance
from cusa.eval.inspection.results import ComparedTeacher, Comparison, TeacherPair
from cusa.eval.inspection.split_teachers import SplitTeacher

# The most similar pairs of a batch that count as likely false negatives, in a comparison of
# teachers whose cosines have different scales.
_STRONGEST = 0.01
# Each two teachers are compared on the B^2 cosines of each batch, whose ranks are sorted: bound the
# batches, whatever those of the training run are.
MOST_IN_BATCH = 1024
MOST_PAIRS = 12_800


@dataclass(frozen=True)
class _BatchComparison:
    """Figures of one batch, by the numbers of the teachers."""

    sharpness: dict[tuple[int, float], Sharpness]
    agreement: dict[tuple[int, int], Agreement]
    seen_by_one: dict[tuple[int, int], float]


def compare_teachers(
    split: OpenedSplit,
    teachers: Sequence[SplitTeacher],
    n_batches: int,
    temperatures: Sequence[float],
    advance: Advance,
) -> Comparison:
    """Compare teachers on the first batches of a training run, or on the first pairs of these.

    At most :data:`MOST_IN_BATCH` pairs of a batch are compared, and about :data:`MOST_PAIRS` in
    all: batches are shuffled, so that they are a sample. No other rows are read.

    Args:
        split: The split, whose pairs have rows of all teachers.
        teachers: The teachers.
        n_batches: Greatest number of batches to average figures over.
        temperatures: The temperatures of the soft labels.
        advance: Called with the progress.
    """
    n_in_batch = min(split.order.batch_size, MOST_IN_BATCH)
    n_batches = min(n_batches, math.ceil(MOST_PAIRS / n_in_batch))
    compared_pairs = [batch[:n_in_batch] for batch in split.batches(n_batches)]
    batches = []
    for number, pairs_of_batch in enumerate(compared_pairs, 1):
        images, captions = split.pairs.rows(pairs_of_batch)
        similarities = [teacher.similarity(images, captions) for teacher in teachers]
        image_ids = torch.from_numpy(images)
        batches.append(_compare_on_batch(similarities, image_ids, temperatures))
        advance("comparison", number, n_batches)

    images, captions = split.pairs.rows(np.concatenate(compared_pairs))
    return Comparison(
        teachers=_compared_teachers(teachers, batches, temperatures),
        pairs=_teacher_pairs(teachers, batches),
        batch_size=n_in_batch,
        n_batches=n_batches,
        n_images=len(np.unique(images)),
        n_captions=len(np.unique(captions)),
    )


def _compared_teachers(
    teachers: Sequence[SplitTeacher],
    batches: Sequence[_BatchComparison],
    temperatures: Sequence[float],
) -> tuple[ComparedTeacher, ...]:
    compared = []
    for number, teacher in enumerate(teachers):
        by_tau = {}
        for tau in temperatures:
            figures = [batch.sharpness[number, tau] for batch in batches]
            by_tau[tau] = mean_figures(figures)
        compared.append(_compared_teacher(teacher, by_tau))
    return tuple(compared)


def _teacher_pairs(
    teachers: Sequence[SplitTeacher],
    batches: Sequence[_BatchComparison],
) -> tuple[TeacherPair, ...]:
    pairs = []
    for numbers in itertools.combinations(range(len(teachers)), 2):
        pairs.append(_teacher_pair(teachers, numbers, batches))
    return tuple(pairs)


def _compared_teacher(
    teacher: SplitTeacher,
    sharpness_by_tau: dict[float, Sharpness],
) -> ComparedTeacher:
    return ComparedTeacher(
        name=teacher.name,
        kind=teacher.kind,
        model_id=teacher.model_id,
        sharpness=sharpness_by_tau,
    )


def _teacher_pair(
    teachers: Sequence[SplitTeacher],
    numbers: tuple[int, int],
    batches: Sequence[_BatchComparison],
) -> TeacherPair:
    first, second = numbers
    agreements = [batch.agreement[first, second] for batch in batches]
    only_first = [batch.seen_by_one[first, second] for batch in batches]
    only_second = [batch.seen_by_one[second, first] for batch in batches]
    return TeacherPair(
        first=teachers[first].name,
        second=teachers[second].name,
        agreement=mean_figures(agreements),
        only_first=_mean(only_first),
        only_second=_mean(only_second),
    )


def _compare_on_batch(
    similarities: Sequence[torch.Tensor],
    image_ids: torch.Tensor,
    temperatures: Sequence[float],
) -> _BatchComparison:
    sharpness_of_teachers = {}
    for number, similarity in enumerate(similarities):
        for tau in temperatures:
            sharpness_of_teachers[number, tau] = sharpness(similarity, image_ids, tau)
    agreements = {}
    one_sided = {}
    for first, second in itertools.permutations(range(len(similarities)), 2):
        matrices = (similarities[first], similarities[second])
        one_sided[first, second] = seen_by_one(*matrices, image_ids)
        if first < second:
            agreements[first, second] = agreement(*matrices, image_ids)
    return _BatchComparison(sharpness_of_teachers, agreements, one_sided)


def seen_by_one(
    similarity: torch.Tensor,
    other_similarity: torch.Tensor,
    image_ids: torch.Tensor,
) -> float:
    """Return the share of a teacher's likely false negatives that another one does not see.

    Likely false negatives are here the most similar 1 % of the batch's pairs of different images
    (at least one), since the cosines of two teachers have different scales. The other one does not
    see a pair that it finds less similar than half of these pairs.

    Args:
        similarity: float ``[B, B]``: cosines of the teacher.
        other_similarity: float ``[B, B]``: cosines of the other one.
        image_ids: int64 ``[B]``: the image of each pair.

    Returns:
        The share, 0 to 1; NaN if the batch holds one image only.
    """
    different_images = image_ids[:, None] != image_ids
    each_pair_once = different_images.triu(1)
    cosines = similarity[each_pair_once].double().numpy()
    other_cosines = other_similarity[each_pair_once].double().numpy()
    if not len(cosines):
        return math.nan
    n_strongest = max(1, round(_STRONGEST * len(cosines)))
    strongest = np.argsort(-cosines, kind="stable")[:n_strongest]
    is_unseen = other_cosines[strongest] < np.median(other_cosines)
    return float(is_unseen.mean())


def _mean(values: Sequence[float]) -> float:
    measured = [value for value in values if not math.isnan(value)]
    return fmean(measured or [math.nan])
