"""Cross-modal and uni-modal retrieval metrics, in percent and never rounded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from cusa.data.embeddings import Head, SplitEmbeddings
from cusa.data.errors import EmbeddingsError
from cusa.data.records import SplitView
from cusa.eval.evaluators.retrieval.coco import PROTOCOL_METRICS, CocoTest, rank_coco
from cusa.eval.metrics.metric_options import PLAIN, PerQuery, Scoring, one_way, two_ways
from cusa.eval.metrics.per_query import Rankings, Ties, check_rows, rank_all, refuse_zeros
from cusa.eval.metrics.ranks import (
    checked_caption_image,
    cross_modal_relevance,
    rank_bounds,
    rank_bounds_from_scores,
    two_way_rank_bounds,
)
from cusa.eval.metrics.relevance import Relevance, relevance_of, same_group, true_relevance


def cross_modal_recalls(
    images: np.ndarray, texts: np.ndarray, caption_image: np.ndarray, ties: Ties = "pessimistic"
) -> dict[str, Any]:
    """Image-to-text and text-to-image R@1/5/10, their mean, median and mean rank, and RSUM, the sum of the six recalls.

    A query's rank is that of its best relevant candidate. A query without a relevant candidate is a miss.

    Args:
        images: float ``[n_images, d]``, L2-normalised.
        texts: float ``[n_texts, d]``, L2-normalised.
        caption_image: int ``[n_texts]``: index of the image that each text belongs to, -1 for none.
        ties: What candidates as similar as the relevant one count as: ``"pessimistic"`` (ahead of it),
            ``"optimistic"`` (behind it), or ``"mean"`` of the two. Equal embeddings are equally
            similar, to the bit.

    Returns:
        ``{"i2t": {"r1", "r5", "r10", "mean", "median_rank", "mean_rank", "queries", "candidates", "tied", "curve"},
        "t2i": {...}, "mean", "rsum"}``, in percent; ``None`` for scores without any query.

    Raises:
        EmbeddingsError: If an embedding is not finite or all zeros, or ``caption_image`` has
            another length, or holds something else than indices of images, such as ids.
        SettingError: If there is no such rule for ties.
    """
    scoring = Scoring(ties)
    ranked = _ranked_both_ways(np.asarray(images), np.asarray(texts), caption_image)
    return two_ways(ranked, scoring)


def _ranked_both_ways(
    images: np.ndarray, texts: np.ndarray, caption_image: np.ndarray
) -> dict[str, Rankings]:
    for rows, what in ((images, "image"), (texts, "text")):
        check_rows(rows, what)
        refuse_zeros(rows, what)
    caption_image = checked_caption_image(caption_image, len(images), len(texts))
    i2t, t2i = two_way_rank_bounds(images, texts, caption_image)
    return {
        "i2t": Rankings(i2t, len(texts)),
        "t2i": Rankings(t2i, len(images), clusters=caption_image),
    }


def cross_modal_recalls_from_scores(
    scores_i2t: np.ndarray,
    scores_t2i: np.ndarray,
    caption_image: np.ndarray,
    ties: Ties = "pessimistic",
) -> dict[str, Any]:
    """As :func:`cross_modal_recalls`, from scores: for hosts whose similarity is not a dot product.

    Args:
        scores_i2t: float ``[n_images, n_texts]``, finite.
        scores_t2i: float ``[n_texts, n_images]``, finite.
        caption_image: int ``[n_texts]``.
        ties: As there; equal scores tie.

    Raises:
        EmbeddingsError: If a score is not finite, the matrices are not of one size, or
            ``caption_image`` is wrong.
        SettingError: If there is no such rule for ties.
    """
    scoring = Scoring(ties)
    scores_i2t, scores_t2i = np.asarray(scores_i2t), np.asarray(scores_t2i)
    if scores_i2t.ndim != 2 or scores_t2i.shape != scores_i2t.shape[::-1]:
        raise EmbeddingsError(
            f"scores_i2t is {list(scores_i2t.shape)} and scores_t2i {list(scores_t2i.shape)}; give [images, texts] and "
            "[texts, images]",
            name="scores_t2i",
        )
    caption_image = checked_caption_image(caption_image, *scores_i2t.shape)
    i2t, t2i = cross_modal_relevance(caption_image, len(scores_i2t))
    rankings = {
        "i2t": Rankings(rank_bounds_from_scores(scores_i2t, *i2t), scores_i2t.shape[1]),
        "t2i": Rankings(rank_bounds_from_scores(scores_t2i, *t2i), scores_t2i.shape[1]),
    }
    return two_ways(rankings, scoring)


def uni_modal_recalls(
    embeddings: np.ndarray, groups: np.ndarray, ties: Ties = "pessimistic"
) -> dict[str, Any]:
    """R@1/5/10 among items of one modality: others of the same group are relevant, the query is no candidate.

    A query that is alone in its group does not count.

    Args:
        embeddings: float ``[n, d]``, L2-normalised.
        groups: int ``[n]``, e.g. the image that each caption belongs to; negative: nobody's.
        ties: As in :func:`cross_modal_recalls`.

    Raises:
        EmbeddingsError: If an embedding is not finite or all zeros, or there is not one group for
            each.
        SettingError: If there is no such rule for ties.
    """
    scoring = Scoring(ties)
    embeddings, groups = np.asarray(embeddings), np.asarray(groups)
    check_rows(embeddings, "query")
    if groups.shape != (len(embeddings),) or (groups.size and groups.dtype.kind not in "iu"):
        raise EmbeddingsError(
            f"groups are {groups.dtype} {list(groups.shape)} for {len(embeddings)} embeddings; give each an integer",
            name="groups",
        )
    if groups.dtype.kind == "u":  # numbers that int64 does not hold would become negative
        groups = np.unique(groups, return_inverse=True)[1]
    return one_way(_ranked_groups(embeddings, groups.astype(np.int64)), scoring)


def _ranked_groups(embeddings: np.ndarray, groups: np.ndarray) -> Rankings:
    check_rows(embeddings, "query")
    refuse_zeros(embeddings, "query")
    n = len(embeddings)
    best = rank_bounds(embeddings, embeddings, *same_group(groups), np.arange(n))
    return Rankings(best, max(0, n - 1), clusters=groups).answerable()


def evaluate(
    embeddings: SplitEmbeddings,
    split: SplitView,
    uni_head: Head,
    test: CocoTest | None = None,
    scoring: Scoring = PLAIN,
) -> tuple[dict[str, Any], PerQuery]:
    """All metrics of a split for every head, as metrics.json holds them (docs/METRICS.md).

    Args:
        embeddings: A model's embeddings.
        split: The split.
        uni_head: The head to use for uni-modal retrieval: ``"uni"`` where it was trained, else ``"cross"``.
        test: COCO's test among the embeddings, which has protocols of its own.
        scoring: How.

    Returns:
        ``retrieval`` (cross-modal head), ``unimodal`` (``uni_head``), and both for each head under ``heads``; and the
        rankings behind them, by ``head/part/task``.
    """
    ranked: PerQuery = {}
    heads: dict[str, Any] = {}
    for head in embeddings.image:
        images, texts = embeddings.image[head], embeddings.text[head]
        groups: dict[str, dict[str, Rankings]] = {
            "retrieval": _ranked_both_ways(images, texts, embeddings.caption_image)
        }
        groups["unimodal"] = {"t2t": _ranked_groups(texts, embeddings.caption_image)}
        if split.truth is not None:
            groups["unimodal"]["i2i"] = _ranked_all(
                relevance_of("i2i", embeddings, split), embeddings, head
            )
            relevances = (
                true_relevance("i2t", embeddings, split),
                true_relevance("t2i", embeddings, split),
            )
            groups["truth"] = {r.task: _ranked_all(r, embeddings, head) for r in relevances}
        protocols = rank_coco(images, texts, test) if test else {}
        heads[head] = {
            "retrieval": two_ways(groups["retrieval"], scoring),
            **{
                k: {t: one_way(r, scoring) for t, r in groups[k].items()}
                for k in ("unimodal", "truth")
                if k in groups
            },
            **(
                {"protocols": {k: _protocol(k, ways, scoring) for k, ways in protocols.items()}}
                if test
                else {}
            ),
        }
        for part, by_task in {**groups, **protocols}.items():
            ranked |= {f"{head}/{part}/{task}": rankings for task, rankings in by_task.items()}
    figures = {
        "retrieval": heads["cross"]["retrieval"],
        "unimodal": heads[uni_head]["unimodal"],
        "unimodal_head": uni_head,
        "heads": heads,
    }
    return figures, ranked


def _ranked_all(relevance: Relevance, embeddings: SplitEmbeddings, head: Head) -> Rankings:
    queries, candidates = relevance.sides(embeddings, head)
    ranked = rank_all(queries, candidates, relevance.indptr, relevance.indices, relevance.exclude)
    of = embeddings.caption_image if relevance.task[0] == "t" else None
    return replace(ranked, clusters=of).answerable()


def _protocol(name: str, ways: Any, scoring: Scoring) -> dict[str, Any]:
    figures = two_ways(ways, scoring)
    if name == "coco_1k":
        return {**figures, "folds": 5}
    if name not in PROTOCOL_METRICS:
        return figures
    kept = PROTOCOL_METRICS[name]
    return {way: _only(figures[way], kept) for way in ways}


def _only(part: dict[str, Any], metrics: tuple[str, ...]) -> dict[str, Any]:
    """Some of the metrics of a direction, with their intervals and the counts."""
    ci = {"ci": {k: v for k, v in part["ci"].items() if k in metrics}} if "ci" in part else {}
    return {k: part[k] for k in (*metrics, "queries", "candidates", "tied")} | ci
