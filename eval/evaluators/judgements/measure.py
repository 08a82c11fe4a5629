"""Agreement of a model with human judgements: correlations, and retrieval by the judgements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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
from cusa.eval.metrics.full_ranking import rank_all
from cusa.eval.metrics.metric_options import Scoring, direction_figures
from cusa.eval.metrics.per_query import Rankings, by_ties
from cusa.eval.metrics.recalls import recall_sum

_PAIRS_AT_ONCE = 8192  # pairs whose rows are held in float64


def measure_heads(
    embeddings: SplitEmbeddings,
    judged: Mapping[JudgementKind, SplitJudgements],
    title: str,
    scoring: Scoring,
) -> tuple[dict[Head, HeadJudgements], dict[str, Rankings | ScoredPairs]]:
    """Measure each head by the labels alone, and by each kind of judgement.

    Args:
        embeddings: A model's embeddings of the split.
        judged: The judged pairs by kind.
        title: Title of the split.
        scoring: Metric options.

    Returns:
        Figures by head; and the per-query results behind them: rankings (under keys such as
        ``TITLE/HEAD/labels/i2t`` and ``TITLE/HEAD/crowd/i2t``) and pairs
        (``TITLE/HEAD/crowd/agreement``).

    Raises:
        CusaError: If a correlation is not defined.
    """
    heads: dict[Head, HeadJudgements] = {}
    per_query: dict[str, Rankings | ScoredPairs] = {}
    for head in embeddings.image:
        heads[head], measured = _measure_head(embeddings, head, judged, scoring)
        for key, query_results in measured.items():
            per_query[f"{title}/{head}/{key}"] = query_results
    return heads, per_query


def _measure_head(
    embeddings: SplitEmbeddings,
    head: Head,
    judged: Mapping[JudgementKind, SplitJudgements],
    scoring: Scoring,
) -> tuple[HeadJudgements, dict[str, Rankings | ScoredPairs]]:
    labelled = labelled_pairs(embeddings)
    by_labels, rankings = _measure_directions(embeddings, head, labelled, scoring)
    per_query: dict[str, Rankings | ScoredPairs] = {}
    for direction, ranked in rankings.items():
        per_query[f"labels/{direction}"] = ranked
    agreements: dict[JudgementKind, Agreement] = {}
    for kind, judgements in judged.items():
        pairs = _scored_pairs(embeddings, head, judgements)
        right = with_positives(labelled, judgements)
        retrieval, rankings = _measure_directions(embeddings, head, right, scoring)
        agreements[kind] = {
            "kendall_tau_c": kendall_tau_c(pairs.similarities, pairs.human_scores),
            "spearman": spearman(pairs.similarities, pairs.human_scores),
            "pairs": len(pairs.human_scores),
            "retrieval": retrieval,
        }
        for direction, ranked in rankings.items():
            per_query[f"{kind}/{direction}"] = ranked
        per_query[f"{kind}/agreement"] = pairs
    return {"labels": by_labels, "judged": agreements}, per_query


def labelled_pairs(embeddings: SplitEmbeddings) -> np.ndarray:
    """Return the pairs of an image and a caption written for it.

    Returns:
        int64 ``[2, pairs]``: positions of the images, then of the captions.
    """
    captions = np.flatnonzero(embeddings.caption_image >= 0)
    return np.stack([embeddings.caption_image[captions], captions])


def with_positives(pairs: np.ndarray, judged: SplitJudgements) -> np.ndarray:
    """Add the pairs that people call right to other pairs, each pair once.

    Args:
        pairs: int64 ``[2, pairs]``: positions of images and of captions.
        judged: The judged pairs.
    """
    positives = np.stack([judged.images, judged.captions])[:, judged.is_positive]
    return np.unique(np.concatenate([pairs, positives], axis=1), axis=1)


def _scored_pairs(embeddings: SplitEmbeddings, head: Head, judged: SplitJudgements) -> ScoredPairs:
    """Return the judged pairs with a head's similarities and the human scores."""
    similarities = np.empty(len(judged.scores))
    for start in range(0, len(similarities), _PAIRS_AT_ONCE):
        block = slice(start, start + _PAIRS_AT_ONCE)
        images = embeddings.image[head][judged.images[block]].astype(np.float64)
        texts = embeddings.text[head][judged.captions[block]].astype(np.float64)
        similarities[block] = (images * texts).sum(axis=1)
    return ScoredPairs(similarities, judged.scores, clusters=judged.captions)


def _measure_directions(
    embeddings: SplitEmbeddings, head: Head, right: np.ndarray, scoring: Scoring
) -> tuple[JudgedDirections, dict[str, Rankings]]:
    """Compute recalls and average precision of both directions, and RSUM, for given right pairs."""
    images, texts = embeddings.image[head], embeddings.text[head]
    clusters = embeddings.caption_image
    i2t, ranked_i2t = _measure_direction(images, texts, right, None, scoring)
    t2i, ranked_t2i = _measure_direction(texts, images, right[::-1], clusters, scoring)
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
    right: np.ndarray,
    clusters: np.ndarray | None,
    scoring: Scoring,
) -> tuple[JudgedDirection, Rankings]:
    """Measure one direction; ``right``: int64 ``[2, pairs]``, query and candidate of each pair."""
    by_query = right[:, np.argsort(right[0], kind="stable")]
    indptr, indices = np.searchsorted(by_query[0], np.arange(len(queries) + 1)), by_query[1]
    ranked = replace(rank_all(queries, candidates, indptr, indices), clusters=clusters)
    figures = cast("JudgedDirection", direction_figures(ranked, scoring))
    bounds = average_precisions(queries, candidates, indptr, indices)
    values = 100 * by_ties(bounds, scoring.ties)
    figures["average_precision"] = float(values.mean()) if len(queries) else None
    means = resampled_means({"average_precision": values}, scoring.bootstrap, clusters)
    average_interval = interval(means["average_precision"])
    if average_interval is not None:
        figures["ci"]["average_precision"] = average_interval
    return figures, ranked
