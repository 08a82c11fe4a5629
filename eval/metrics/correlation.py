"""How well a model's similarities follow human scores: rank correlations and their resampling."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy import stats
from typing_extensions import TypedDict

from cusa.data.errors import CusaError, EmbeddingsError
from cusa.eval.metrics.bootstrap import Bootstrap, resampled

# Values with a smaller relative spread are constant up to rounding: an encoder that maps everything
# to one point has cosines of 1 ± 2e-16, and their order means nothing.
_CONSTANT = 1e-12


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs of items with the model's similarity and a human score.

    Attributes:
        similarities: float64 ``[pairs]``: the model's similarity of each pair.
        human_scores: float64 ``[pairs]``, on the scale of the data set.
        clusters: int64 ``[pairs]``: the cluster of each pair, such as its caption; ``None`` if
            pairs are independent.
    """

    similarities: np.ndarray
    human_scores: np.ndarray
    clusters: np.ndarray | None = None
    _resampled: dict[Bootstrap, np.ndarray] = field(
        default_factory=dict,
        init=False,
        repr=False,
        compare=False,
    )


class Correlations(TypedDict):
    """Correlations over a set of pairs, times 100, and the number of pairs."""

    spearman: float
    pearson: float
    pairs: int


def spearman(
    similarities: np.ndarray,
    human_scores: np.ndarray,
) -> float:
    """Compute 100 x Spearman's correlation: Pearson's of the ranks, where ties share a mean rank.

    Args:
        similarities: float ``[pairs]``, finite.
        human_scores: float ``[pairs]``, finite.

    Raises:
        CusaError: If no correlation is defined: there are fewer than two pairs, or one of the
            arrays is constant or not finite.
    """
    _check_defined(similarities, human_scores)
    return _pearson(stats.rankdata(similarities), stats.rankdata(human_scores))


def kendall_tau_c(
    similarities: np.ndarray,
    human_scores: np.ndarray,
) -> float:
    """Compute 100 x Kendall's tau-c, which suits scores with few distinct values (Stuart 1953).

    Args:
        similarities: float ``[pairs]``, finite.
        human_scores: float ``[pairs]``, finite.

    Raises:
        CusaError: As :func:`spearman`.
    """
    _check_defined(similarities, human_scores)
    return 100 * float(stats.kendalltau(similarities, human_scores, variant="c").statistic)


def correlations(
    similarities: np.ndarray,
    human_scores: np.ndarray,
) -> Correlations:
    """Compute Spearman's and Pearson's correlation of similarities with human scores.

    Args:
        similarities: float ``[pairs]``, finite.
        human_scores: float ``[pairs]``, finite.

    Raises:
        CusaError: As :func:`spearman`.
    """
    return {
        "spearman": spearman(similarities, human_scores),
        "pearson": _pearson(similarities, human_scores),
        "pairs": len(human_scores),
    }


def resampled_spearman(
    pairs: ScoredPairs,
    bootstrap: Bootstrap,
) -> np.ndarray:
    """Compute 100 x Spearman's correlation over resampled pairs, or resampled clusters of them.

    It is computed once for each bootstrap of the same pairs.

    Args:
        pairs: The pairs.
        bootstrap: Number of resamplings and seed.

    Returns:
        float64 ``[samples]``; NaN for a sample without a defined correlation.
    """
    if bootstrap not in pairs._resampled:
        pairs._resampled[bootstrap] = _resample(pairs, bootstrap)
    return pairs._resampled[bootstrap]


def _resample(pairs: ScoredPairs, bootstrap: Bootstrap) -> np.ndarray:

    def spearman_of(drawn: np.ndarray) -> float:
        try:
            return spearman(pairs.similarities[drawn], pairs.human_scores[drawn])
        except CusaError:
            return math.nan

    if pairs.clusters is None:
        return resampled(spearman_of, len(pairs.human_scores), bootstrap)
    order = np.argsort(pairs.clusters, kind="stable")
    _, starts = np.unique(pairs.clusters[order], return_index=True)
    members = np.split(order, starts[1:])

    def spearman_of_clusters(drawn: np.ndarray) -> float:
        drawn_members = [members[cluster] for cluster in drawn.tolist()]
        return spearman_of(np.concatenate(drawn_members))

    return resampled(spearman_of_clusters, len(members), bootstrap)


def _pearson(
    first: np.ndarray,
    second: np.ndarray,
) -> float:
    return 100 * float(stats.pearsonr(first, second).statistic)


def _check_defined(
    similarities: np.ndarray,
    human_scores: np.ndarray,
) -> None:
    """Refuse values between which no correlation is defined."""
    if similarities.shape != human_scores.shape or similarities.ndim != 1:
        raise EmbeddingsError(
            f"similarities have shape {similarities.shape}, gold scores {human_scores.shape}; both "
            "must be [pairs]",
            name="similarities",
        )
    n_pairs = len(human_scores)
    if n_pairs < 2:
        raise EmbeddingsError(
            f"a correlation of {n_pairs} pairs is not defined; it takes at least two",
            name="gold scores",
        )
    for name, values in (("similarities", similarities), ("gold scores", human_scores)):
        if not np.isfinite(values).all():
            raise EmbeddingsError(
                f"the {name} hold NaN or infinity; no correlation is defined", name=name
            )
        greatest = np.abs(values).max()
        if np.ptp(values) <= _CONSTANT * greatest:
            raise EmbeddingsError(
                f"all {n_pairs} {name} equal {values[0]:g}; "
                "no correlation with a constant is defined",
                name=name,
            )
