"""Cross-modal and uni-modal retrieval metrics, in percent and never rounded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from cusa.data.embeddings import Head, SplitEmbeddings, SplitItems
from cusa.data.errors import EmbeddingsError
from cusa.data.records import SplitView
from cusa.eval.evaluators.retrieval.coco import CocoTest, rank_coco
from cusa.eval.evaluators.retrieval.figures import protocol_figures
from cusa.eval.metrics.caption_images import (
    RelevantRows,
    checked_caption_image,
    cross_modal_relevance,
)
from cusa.eval.metrics.full_ranking import rank_all
from cusa.eval.metrics.metric_options import (
    DEFAULT_SCORING,
    PerQuery,
    Scoring,
    direction_figures,
    two_way_figures,
)
from cusa.eval.metrics.per_query import Rankings, Ties, check_rows, refuse_zeros
from cusa.eval.metrics.ranks import RankBounds, rank_bounds
from cusa.eval.metrics.relevance import relevance_of, same_group, true_relevance
from cusa.eval.metrics.score_matrix import ScoreMatrix
from cusa.eval.metrics.similarities import DIRECTIONS, DotProducts, Similarities


def cross_modal_recalls(
    images: np.ndarray,
    texts: np.ndarray,
    caption_image: np.ndarray,
    ties: Ties = "pessimistic",
) -> dict[str, Any]:
    """Compute image-to-text and text-to-image recalls.

    These are R@1/5/10, their mean, median and mean rank, and RSUM, the sum of the six recalls.

    A query's rank is that of its best relevant candidate. A query without a relevant candidate
    counts as a miss.

    Args:
        images: float ``[n_images, d]``, L2-normalised.
        texts: float ``[n_texts, d]``, L2-normalised.
        caption_image: int ``[n_texts]``: index of the image that each text belongs to, -1 for none.
        ties: Where to rank candidates that are as similar as the relevant one: ``"pessimistic"``
            (ahead of it) or ``"optimistic"`` (behind it); ``"mean"`` averages the two figures.
            Equal embeddings get bit for bit the same similarity.

    Returns:
        ``{"i2t": {"r1", "r5", "r10", "mean", "median_rank", "mean_rank", "queries", "candidates",
        "tied", "curve"}, "t2i": {...}, "mean", "rsum"}``, in percent; ``None`` for scores without
        any query.

    Raises:
        EmbeddingsError: If an embedding is not finite or all zeros, or ``caption_image`` has
            another length, or holds anything but indices of images, such as ids.
        SettingError: If ``ties`` is unknown.
    """
    scoring = Scoring(ties)
    rankings = _rank_cross_modal(np.asarray(images), np.asarray(texts), caption_image)
    return two_way_figures(rankings, scoring)


def _rank_cross_modal(
    images: np.ndarray,
    texts: np.ndarray,
    caption_image: np.ndarray,
) -> dict[str, Rankings]:
    for rows, modality in ((images, "image"), (texts, "text")):
        check_rows(rows, modality)
        refuse_zeros(rows, modality)
    return _rank_both_ways(DotProducts(images, texts), caption_image)


def _rank_both_ways(
    similarities: Similarities,
    caption_image: np.ndarray,
) -> dict[str, Rankings]:
    n_images, n_captions = similarities.n_images, similarities.n_captions
    caption_image = checked_caption_image(caption_image, n_images, n_captions)
    i2t, t2i = similarities.rank_both_ways(caption_image)
    return {
        "i2t": Rankings(i2t, n_captions),
        "t2i": Rankings(t2i, n_images, clusters=caption_image),
    }


def cross_modal_recalls_from_scores(
    scores_i2t: np.ndarray,
    scores_t2i: np.ndarray,
    caption_image: np.ndarray,
    ties: Ties = "pessimistic",
) -> dict[str, Any]:
    """Compute :func:`cross_modal_recalls` from scores, for similarities that are no dot products.

    Args:
        scores_i2t: float ``[n_images, n_texts]``, finite.
        scores_t2i: float ``[n_texts, n_images]``, finite.
        caption_image: int ``[n_texts]``: index of the image that each text belongs to, -1 for none.
        ties: As for :func:`cross_modal_recalls`; equal scores tie.

    Returns:
        As :func:`cross_modal_recalls`.

    Raises:
        EmbeddingsError: If a score is not finite, the sizes of the matrices do not match, or
            ``caption_image`` is malformed.
        SettingError: If ``ties`` is unknown.
    """
    scoring = Scoring(ties)
    scores_i2t, scores_t2i = np.asarray(scores_i2t), np.asarray(scores_t2i)
    if scores_i2t.ndim != 2 or scores_t2i.shape != scores_i2t.shape[::-1]:
        raise EmbeddingsError(
            f"scores_i2t is {list(scores_i2t.shape)} and scores_t2i {list(scores_t2i.shape)}; "
            "give [images, texts] and [texts, images]",
            name="scores_t2i",
        )
    caption_image = checked_caption_image(caption_image, *scores_i2t.shape)
    i2t, t2i = cross_modal_relevance(caption_image, len(scores_i2t))
    rankings = {
        "i2t": Rankings(_best_ranks(scores_i2t, i2t), scores_i2t.shape[1]),
        "t2i": Rankings(_best_ranks(scores_t2i, t2i), scores_t2i.shape[1]),
    }
    return two_way_figures(rankings, scoring)


def _best_ranks(scores: np.ndarray, relevant: RelevantRows) -> RankBounds:
    # The queries are the rows, of whichever modality.
    return ScoreMatrix(scores).rank_best("i2t", *relevant)


def uni_modal_recalls(
    embeddings: np.ndarray,
    groups: np.ndarray,
    ties: Ties = "pessimistic",
) -> dict[str, Any]:
    """Compute R@1/5/10 among items of one modality.

    The other items of a query's group are relevant; the query itself is no candidate. A query that
    is alone in its group does not count.

    Args:
        embeddings: float ``[n, d]``, L2-normalised.
        groups: int ``[n]``: group of each item, such as a caption's image; negative for an item of
            no group.
        ties: As for :func:`cross_modal_recalls`.

    Returns:
        The keys of one direction of :func:`cross_modal_recalls`.

    Raises:
        EmbeddingsError: If an embedding is not finite or all zeros, or ``groups`` has another
            length or type.
        SettingError: If ``ties`` is unknown.
    """
    scoring = Scoring(ties)
    embeddings, groups = np.asarray(embeddings), np.asarray(groups)
    check_rows(embeddings, "query")
    if groups.shape != (len(embeddings),) or (groups.size and groups.dtype.kind not in "iu"):
        raise EmbeddingsError(
            f"groups are {groups.dtype} {list(groups.shape)} for {len(embeddings)} embeddings; "
            "give one integer for each",
            name="groups",
        )
    # Unsigned numbers beyond int64 would become negative, so groups are numbered anew.
    if groups.dtype.kind == "u":
        groups = np.unique(groups, return_inverse=True)[1]
    return direction_figures(_rank_within_groups(embeddings, groups.astype(np.int64)), scoring)


def _rank_within_groups(embeddings: np.ndarray, groups: np.ndarray) -> Rankings:
    refuse_zeros(embeddings, "query")
    n_items = len(embeddings)
    indptr, indices = same_group(groups)
    bounds = rank_bounds(embeddings, embeddings, indptr, indices, np.arange(n_items))
    return Rankings(bounds, max(0, n_items - 1), clusters=groups).answerable()


def measure_split(
    embeddings: SplitEmbeddings,
    split: SplitView,
    uni_head: Head,
    test: CocoTest | None = None,
    scoring: Scoring = DEFAULT_SCORING,
) -> tuple[dict[str, Any], PerQuery]:
    """Compute all metrics of a split for every head, as metrics.json holds them (docs/METRICS.md).

    Args:
        embeddings: A model's embeddings of the split.
        split: The split.
        uni_head: The head to use for uni-modal retrieval.
        test: COCO's test among the embeddings, if the split is COCO's test.
        scoring: Metric options.

    Returns:
        ``retrieval`` (of the cross-modal head), ``unimodal`` and ``unimodal_head`` (of
        ``uni_head``), and ``heads``, the figures of each head; and the rankings behind them, by
        ``head/protocol/task``.
    """
    per_query: PerQuery = {}
    heads: dict[Head, dict[str, Any]] = {}
    for head, images in embeddings.image.items():
        rankings = _rank_split(embeddings, split, head)
        heads[head] = protocol_figures(rankings, scoring)
        if test is not None:
            protocols = rank_coco(DotProducts(images, embeddings.text[head]), test)
            heads[head]["protocols"] = protocol_figures(protocols, scoring)
            rankings |= protocols
        for protocol, by_task in rankings.items():
            for task, ranked in by_task.items():
                per_query[f"{head}/{protocol}/{task}"] = ranked
    figures = {
        "retrieval": heads["cross"]["retrieval"],
        "unimodal": heads[uni_head]["unimodal"],
        "unimodal_head": uni_head,
        "heads": heads,
    }
    return figures, per_query


def measure_scores(
    similarities: ScoreMatrix,
    items: SplitItems,
    split: SplitView,
    test: CocoTest | None = None,
    scoring: Scoring = DEFAULT_SCORING,
) -> tuple[dict[str, Any], PerQuery]:
    """Compute all metrics across modalities of a model that gives scores, not embeddings.

    Args:
        similarities: The scores of the items.
        items: The images and captions of the split that have scores.
        split: The split.
        test: As for :func:`measure_split`.
        scoring: Metric options.

    Returns:
        As :func:`measure_split`, with the cross-modal head alone and nothing under ``unimodal``.
    """
    rankings = {
        "retrieval": _rank_both_ways(similarities, items.caption_image),
        **_rank_truth(similarities, items, split),
    }
    figures: dict[str, Any] = {"unimodal": {}, **protocol_figures(rankings, scoring)}
    if test is not None:
        protocols = rank_coco(similarities, test)
        figures["protocols"] = protocol_figures(protocols, scoring)
        rankings |= protocols
    per_query: PerQuery = {}
    for protocol, by_task in rankings.items():
        for task, ranked in by_task.items():
            per_query[f"cross/{protocol}/{task}"] = ranked
    heads = {"cross": figures}
    shared = {"retrieval": figures["retrieval"], "unimodal": {}, "unimodal_head": "cross"}
    return {**shared, "heads": heads}, per_query


def _rank_split(
    embeddings: SplitEmbeddings,
    split: SplitView,
    head: Head,
) -> dict[str, dict[str, Rankings]]:
    """Rank by the labels, across and within modalities, and by the truth if it is known."""
    images, texts = embeddings.image[head], embeddings.text[head]
    rankings: dict[str, dict[str, Rankings]] = {
        "retrieval": _rank_cross_modal(images, texts, embeddings.caption_image),
        "unimodal": {"t2t": _rank_within_groups(texts, embeddings.caption_image)},
    }
    if split.truth is not None:
        same_label = relevance_of("i2i", embeddings, split)
        ranked = rank_all(images, images, same_label.indptr, same_label.indices, same_label.exclude)
        rankings["unimodal"]["i2i"] = ranked.answerable()
    return rankings | _rank_truth(DotProducts(images, texts), embeddings, split)


def _rank_truth(
    similarities: Similarities,
    items: SplitItems,
    split: SplitView,
) -> dict[str, dict[str, Rankings]]:
    """Rank every query that has a relevant candidate by the known truth, if there is one."""
    if split.truth is None:
        return {}
    rankings: dict[str, Rankings] = {}
    clusters = {"i2t": None, "t2i": items.caption_image}
    for task in DIRECTIONS:
        relevance = true_relevance(task, items, split)
        ranked = similarities.rank_all(task, relevance.indptr, relevance.indices)
        rankings[task] = replace(ranked, clusters=clusters[task]).answerable()
    return {"truth": rankings}
