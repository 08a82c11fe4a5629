"""How a model agrees with people's judgements: correlations, and retrieval by their verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from cusa.data.embeddings import Head, SplitEmbeddings
from cusa.eval.evaluators.judgements.data import JudgementKind
from cusa.eval.evaluators.judgements.matching import SplitJudgements
from cusa.eval.evaluators.judgements.results import (
    Agreement,
    HeadJudgements,
    JudgedDirection,
    JudgedDirections,
)
from cusa.eval.metrics.average_precision import average_precisions
from cusa.eval.metrics.bootstrap import interval, resampled_means
from cusa.eval.metrics.correlation import ScoredPairs, kendall_tau_c, spearman
from cusa.eval.metrics.metric_options import Scoring, one_way
from cusa.eval.metrics.per_query import Rankings, by_ties, rank_all
from cusa.eval.metrics.recalls import recall_sum

_PAIRS_AT_ONCE = 8192  # whose rows are held in float64


@dataclass(frozen=True)
class RightPairs:
    """Images and captions that are right for each other, each pair once.

    Attributes:
        images: int64 ``[pairs]``: positions among the embeddings.
        captions: int64 ``[pairs]``.
    """

    images: np.ndarray
    captions: np.ndarray

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self.images)

    def with_positives(self, judged: SplitJudgements) -> RightPairs:
        """Add the pairs that people call right."""
        images = np.concatenate([self.images, judged.images[judged.is_positive]])
        captions = np.concatenate([self.captions, judged.captions[judged.is_positive]])
        pairs = np.unique(np.stack([images, captions]), axis=1)
        return RightPairs(pairs[0], pairs[1])


@dataclass(frozen=True)
class HeadMeasurement:
    """What was measured of one head.

    Attributes:
        figures: Its figures.
        per_query: Rankings by what counts as right and direction (``labels/i2t``, ``crowd/i2t``),
            and judged pairs by kind (``crowd/agreement``).
    """

    figures: HeadJudgements
    per_query: Mapping[str, Rankings | ScoredPairs]


def measure_head(
    embeddings: SplitEmbeddings,
    head: Head,
    judged: Mapping[JudgementKind, SplitJudgements],
    scoring: Scoring,
) -> HeadMeasurement:
    """Measure one head by the labels alone, and by each kind of judgement.

    Args:
        embeddings: A model's embeddings.
        head: The head.
        judged: The judged pairs by kind.
        scoring: How.

    Raises:
        CusaError: If a correlation is not defined.
    """
    labelled = labelled_pairs(embeddings)
    by_labels, rankings = measure_directions(embeddings, head, labelled, scoring)
    per_query: dict[str, Rankings | ScoredPairs] = {}
    for direction, ranked in rankings.items():
        per_query[f"labels/{direction}"] = ranked
    agreements: dict[JudgementKind, Agreement] = {}
    for kind, judgements in judged.items():
        pairs = scored_pairs(embeddings, head, judgements)
        right = labelled.with_positives(judgements)
        retrieval, rankings = measure_directions(embeddings, head, right, scoring)
        agreements[kind] = {
            "kendall_tau_c": kendall_tau_c(pairs.similarities, pairs.human_scores),
            "spearman": spearman(pairs.similarities, pairs.human_scores),
            "pairs": len(pairs.human_scores),
            "retrieval": retrieval,
        }
        for direction, ranked in rankings.items():
            per_query[f"{kind}/{direction}"] = ranked
        per_query[f"{kind}/agreement"] = pairs
    return HeadMeasurement({"labels": by_labels, "judged": agreements}, per_query)


def labelled_pairs(embeddings: SplitEmbeddings) -> RightPairs:
    """Return each caption with the image that it was written for."""
    captions = np.flatnonzero(embeddings.caption_image >= 0)
    return RightPairs(embeddings.caption_image[captions], captions)


def scored_pairs(embeddings: SplitEmbeddings, head: Head, judged: SplitJudgements) -> ScoredPairs:
    """Return a head's similarity of each judged pair, with people's score.

    Args:
        embeddings: A model's embeddings, L2-normalised.
        head: The head.
        judged: The judged pairs.
    """
    similarities = np.empty(len(judged.scores))
    for start in range(0, len(similarities), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        images = embeddings.image[head][judged.images[part]].astype(np.float64)
        texts = embeddings.text[head][judged.captions[part]].astype(np.float64)
        similarities[part] = (images * texts).sum(axis=1)
    return ScoredPairs(similarities, judged.scores, clusters=judged.captions)


def measure_directions(
    embeddings: SplitEmbeddings, head: Head, right: RightPairs, scoring: Scoring
) -> tuple[JudgedDirections, dict[str, Rankings]]:
    """Compute recalls and average precision of both directions, and RSUM.

    Args:
        embeddings: A model's embeddings.
        head: The head.
        right: The pairs that count as right.
        scoring: How.

    Returns:
        The figures; and the rankings behind them by direction.
    """
    images, texts = embeddings.image[head], embeddings.text[head]
    i2t, ranked_i2t = _measure_direction(images, texts, right.images, right.captions, None, scoring)
    t2i, ranked_t2i = _measure_direction(
        texts, images, right.captions, right.images, embeddings.caption_image, scoring
    )
    has_queries = i2t["queries"] and t2i["queries"]
    figures: JudgedDirections = {
        "i2t": i2t,
        "t2i": t2i,
        "rsum": recall_sum([i2t, t2i]) if has_queries else None,
    }
    return figures, {"i2t": ranked_i2t, "t2i": ranked_t2i}


def _measure_direction(
    queries: np.ndarray,
    candidates: np.ndarray,
    right_queries: np.ndarray,
    right_candidates: np.ndarray,
    clusters: np.ndarray | None,
    scoring: Scoring,
) -> tuple[JudgedDirection, Rankings]:
    """Measure one direction.

    Args:
        queries: float ``[n, d]``.
        candidates: float ``[m, d]``.
        right_queries: int64 ``[pairs]``: the query of each right pair.
        right_candidates: int64 ``[pairs]``: the candidate of each right pair.
        clusters: int64 ``[n]``: queries that belong together, or ``None``.
        scoring: How.
    """
    by_query = np.argsort(right_queries, kind="stable")
    indices = right_candidates[by_query]
    indptr = np.searchsorted(right_queries[by_query], np.arange(len(queries) + 1))
    ranked = replace(rank_all(queries, candidates, indptr, indices), clusters=clusters)
    figures = cast("JudgedDirection", one_way(ranked, scoring))
    bounds = average_precisions(queries, candidates, indptr, indices)
    values = {"average_precision": 100 * by_ties(bounds, scoring.ties)}
    figures["average_precision"] = (
        float(values["average_precision"].mean()) if len(queries) else None
    )
    means = resampled_means(values, scoring.bootstrap, clusters)
    average_interval = interval(means["average_precision"])
    if average_interval is not None:
        figures["ci"]["average_precision"] = average_interval
    return figures, ranked
