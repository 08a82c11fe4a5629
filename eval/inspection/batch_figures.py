"""Figures of one batch's soft labels, as pure functions of the teachers' cosines.

The notation is that of :mod:`cusa.train.loss.functions`: a batch is B pairs of an image and a
caption. ``similarity``, float ``[B, B]``, holds the cosines of a teacher's rows; ``image_ids``,
int64 ``[B]``, the image of each pair. Two pairs are *of different images* if these ids differ; two
captions of one image never count as a false negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import TypeVar

import numpy as np
import torch
from scipy.stats import rankdata

from cusa.train.loss.functions import soft_label_loss, soft_labels

NEIGHBOURS = 10

# Copies of one caption have equal cosines up to rounding, which depends on the machine. Rounded to
# this many decimals, they tie.
COSINE_DECIMALS = 5


@dataclass(frozen=True)
class Sharpness:
    """Sharpness of a teacher's soft labels at one temperature; each figure is a mean over rows.

    Attributes:
        perplexity: exp of a row's entropy, from 1 to B: the number of pairs over which evenly
            spread labels would have that entropy.
        own_label: The label of the pair itself, ``P_ii``.
        greatest_other_label: The greatest label of a pair of another image.
    """

    perplexity: float
    own_label: float
    greatest_other_label: float


@dataclass(frozen=True)
class FalseNegativeCount:
    """Likely false negatives in a batch: pairs of different images with at least a given cosine.

    Attributes:
        pairs: How often two pairs of the batch are that similar, each two counted once.
        rows: Share of the B pairs that have at least one such partner, 0 to 1.
    """

    pairs: float
    rows: float


@dataclass(frozen=True)
class Agreement:
    """Agreement of the two teachers on pairs of different images.

    Attributes:
        pearson: Correlation of their cosines, -1 to 1.
        spearman: Correlation of the cosines' ranks, -1 to 1.
        overlap: Share of a pair's ten nearest neighbours (fewer in a small batch) on which both
            teachers agree, 0 to 1.
        chance: The share expected if one of the teachers chose neighbours at random.
        kl: ``KL(P^I || P^T)`` of the soft labels at temperature 1, in nats.
    """

    pearson: float
    spearman: float
    overlap: float
    chance: float
    kl: float


BatchFigures = TypeVar("BatchFigures")


def sharpness(
    similarity: torch.Tensor,
    image_ids: torch.Tensor,
    tau: float,
) -> Sharpness:
    """Measure a batch's soft labels ``P = soft_labels(similarity, tau)`` (paper, section 3.2).

    The greatest other label is averaged over the rows that have a pair of another image; it is NaN
    if no row has one.

    Args:
        similarity: float ``[B, B]``: a teacher's cosines.
        image_ids: int64 ``[B]``: the image of each pair.
        tau: Temperature.
    """
    return label_sharpness(soft_labels(similarity.double(), tau), image_ids)


def label_sharpness(
    labels: torch.Tensor,
    image_ids: torch.Tensor,
) -> Sharpness:
    """Measure soft labels, float64 ``[B, B]``; other arguments and NaN as of :func:`sharpness`."""
    perplexity = torch.special.entr(labels).sum(dim=1).exp()
    same_image = image_ids[:, None] == image_ids
    greatest = labels.masked_fill(same_image, -torch.inf).amax(dim=1)
    # A row is minus infinity if the batch holds no other image.
    greatest = greatest[greatest.isfinite()]
    return Sharpness(
        perplexity=float(perplexity.mean()),
        own_label=float(labels.diagonal().mean()),
        greatest_other_label=float(greatest.mean()),
    )


def count_false_negatives(
    similarity: torch.Tensor,
    image_ids: torch.Tensor,
    least_cosine: float,
) -> FalseNegativeCount:
    """Count the likely false negatives of a batch.

    Args:
        similarity: float ``[B, B]``, symmetric: a teacher's cosines.
        image_ids: int64 ``[B]``: the image of each pair.
        least_cosine: The least cosine at which two pairs count.
    """
    different_images = image_ids[:, None] != image_ids
    # Above the diagonal, each two pairs appear once.
    similar = ((similarity >= least_cosine) & different_images).triu(1)
    has_partner = similar.any(dim=0) | similar.any(dim=1)
    return FalseNegativeCount(
        pairs=float(similar.sum()),
        rows=float(has_partner.double().mean()),
    )


def agreement(
    image_similarity: torch.Tensor,
    text_similarity: torch.Tensor,
    image_ids: torch.Tensor,
) -> Agreement:
    """Compare the two teachers on a batch.

    The correlations count each two pairs once. KL is over whole rows, including the pair itself, as
    in the loss.

    Args:
        image_similarity: float ``[B, B]``: cosines of the image teacher.
        text_similarity: float ``[B, B]``: cosines of the text teacher.
        image_ids: int64 ``[B]``: the image of each pair.

    Returns:
        The figures. All but KL are NaN if the batch holds one image only; a correlation is also NaN
        if a teacher's cosines do not vary.
    """
    different_images = image_ids[:, None] != image_ids
    each_pair_once = different_images.triu(1)
    image_cosines = image_similarity[each_pair_once].double().numpy()
    text_cosines = text_similarity[each_pair_once].double().numpy()
    divergence = soft_label_loss(
        text_similarity.double(), image_similarity.double(), tau=1.0, tau_soft=1.0
    )
    overlap, chance = _common_neighbours(image_similarity, text_similarity, different_images)
    return Agreement(
        pearson=_correlation(image_cosines, text_cosines),
        spearman=_correlation(
            rankdata(image_cosines.round(COSINE_DECIMALS)),
            rankdata(text_cosines.round(COSINE_DECIMALS)),
        ),
        overlap=overlap,
        chance=chance,
        kl=float(divergence),
    )


def mean_figures(batches: Sequence[BatchFigures]) -> BatchFigures:
    """Average each figure over the batches in which it is not NaN.

    Args:
        batches: Figures of at least one batch, all of one kind.
    """
    figures_class = type(batches[0])
    means = {}
    for field in fields(figures_class):  # type: ignore[arg-type]
        values = [getattr(figures, field.name) for figures in batches]
        measured = [value for value in values if not math.isnan(value)]
        means[field.name] = fmean(measured or [math.nan])
    return figures_class(**means)


def _common_neighbours(
    image_similarity: torch.Tensor,
    text_similarity: torch.Tensor,
    is_candidate: torch.Tensor,
) -> tuple[float, float]:
    """Compute the share of nearest neighbours in common, and the share expected by chance.

    Of its n candidates, a row has k = min(10, n) nearest neighbours; a candidate drawn at random is
    among them with probability k / n. Rows without candidates do not count.
    """
    has_candidates = is_candidate.any(dim=1)
    n_candidates = is_candidate.sum(dim=1)[has_candidates]
    n_nearest = n_candidates.clamp_max(NEIGHBOURS).double()

    by_image = _nearest(image_similarity, is_candidate)
    by_text = _nearest(text_similarity, is_candidate)
    n_common = (by_image & by_text).sum(dim=1)[has_candidates]

    overlap = (n_common / n_nearest).mean()
    chance = (n_nearest / n_candidates).mean()
    return float(overlap), float(chance)


def _nearest(
    similarity: torch.Tensor,
    is_candidate: torch.Tensor,
) -> torch.Tensor:
    """Mark each row's ten most similar candidates, or all of fewer; ties take the first."""
    candidates_alone = similarity.masked_fill(~is_candidate, -torch.inf)
    order = candidates_alone.argsort(dim=1, descending=True, stable=True)
    nearest = torch.zeros_like(is_candidate)
    nearest.scatter_(1, order[:, :NEIGHBOURS], True)
    # In a row with too few candidates, others were marked, too.
    return nearest & is_candidate


def _correlation(
    first: np.ndarray,
    second: np.ndarray,
) -> float:
    """Compute Pearson's correlation; NaN if one of the arrays is constant or shorter than two."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])
