"""Cross-modal and uni-modal retrieval metrics, in percent and never rounded."""

from __future__ import annotations

from typing import Any

import numpy as np

from cusa.data.errors import CusaError
from cusa.data.store import Split
from cusa.eval.images import precision_at_r
from cusa.eval.relevance import Relevance, relevance_of, same_group, true_relevance
from cusa.train.encode import SplitEmbeddings
from cusa.train.ranks import best_ranks, best_ranks_from_scores, cross_modal_relevance, recall_at
from cusa.train.student import HEADS, Head

CUTS = (1, 5, 10)


def recalls(ranks: np.ndarray, n_candidates: int) -> dict[str, Any]:
    """R@1/5/10, their mean, and how many queries and candidates there were; ``None`` without any query.

    Args:
        ranks: int64 ``[n]`` rank of each query's best relevant candidate, 0 first; -1: none, a miss.
        n_candidates: Candidates per query.
    """
    counts = {"queries": len(ranks), "candidates": n_candidates}
    if not len(ranks):
        return {**dict.fromkeys((*(f"r{k}" for k in CUTS), "mean")), **counts}
    values = {f"r{k}": recall_at(ranks, k) for k in CUTS}
    return {**values, "mean": sum(values.values()) / len(CUTS), **counts}


def _both_ways(i2t: np.ndarray, t2i: np.ndarray, n_images: int, n_texts: int) -> dict[str, Any]:
    both = {"i2t": recalls(i2t, n_texts), "t2i": recalls(t2i, n_images)}
    mean = (both["i2t"]["mean"] + both["t2i"]["mean"]) / 2
    return {**both, "mean": mean, "rsum": 2 * len(CUTS) * mean}


def cross_modal_recalls(images: np.ndarray, texts: np.ndarray, caption_image: np.ndarray) -> dict[str, Any]:
    """Image-to-text and text-to-image R@1/5/10, their mean, and RSUM, the sum of the six.

    A query's rank is that of its best relevant candidate; ties count against it. A query without a relevant candidate
    is a miss.

    Args:
        images: float ``[n_images, d]``, L2-normalised.
        texts: float ``[n_texts, d]``, L2-normalised.
        caption_image: int64 ``[n_texts]``: index of the image that each text belongs to.

    Returns:
        ``{"i2t": {"r1", "r5", "r10", "mean", "queries", "candidates"}, "t2i": {...}, "mean", "rsum"}``, in percent.

    Raises:
        CusaError: If an embedding is not finite.
    """
    i2t, t2i = cross_modal_relevance(caption_image, len(images))
    return _both_ways(best_ranks(images, texts, *i2t), best_ranks(texts, images, *t2i), len(images), len(texts))


def cross_modal_recalls_from_scores(
    scores_i2t: np.ndarray, scores_t2i: np.ndarray, caption_image: np.ndarray
) -> dict[str, Any]:
    """As :func:`cross_modal_recalls`, from scores: for hosts whose similarity is not a dot product.

    Args:
        scores_i2t: float ``[n_images, n_texts]``, finite.
        scores_t2i: float ``[n_texts, n_images]``, finite.
        caption_image: int64 ``[n_texts]``.

    Raises:
        CusaError: If a score is not finite.
    """
    for scores in (scores_i2t, scores_t2i):
        if not np.isfinite(scores).all():  # NaN compares as "not ahead" and would look like a perfect rank
            raise CusaError("scores hold NaN or infinity; such scores cannot be ranked")
    i2t, t2i = cross_modal_relevance(caption_image, len(scores_i2t))
    ranks = best_ranks_from_scores(scores_i2t, *i2t), best_ranks_from_scores(scores_t2i, *t2i)
    return _both_ways(*ranks, *scores_i2t.shape)


def uni_modal_recalls(embeddings: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """R@1/5/10 among items of one modality: others of the same group are relevant, the query is no candidate.

    A query that is alone in its group does not count.

    Args:
        embeddings: float ``[n, d]``, L2-normalised.
        groups: int64 ``[n]``, e.g. the image that each caption belongs to; negative: nobody's.

    Raises:
        CusaError: If an embedding is not finite.
    """
    n = len(embeddings)
    ranks = best_ranks(embeddings, embeddings, *same_group(groups), np.arange(n))
    return recalls(ranks[ranks >= 0], n - 1)


def evaluate(embeddings: SplitEmbeddings, split: Split, uni_head: Head) -> dict[str, Any]:
    """All metrics of a split for both heads, as metrics.json holds them (docs/METRICS.md).

    Args:
        embeddings: The student's embeddings.
        split: The split.
        uni_head: The head to use for uni-modal retrieval: ``"uni"`` where it was trained, else ``"cross"``.

    Returns:
        ``retrieval`` (cross-modal head), ``unimodal`` (``uni_head``), and both for each head under ``heads``.
    """
    heads = {head: _evaluate_head(embeddings, split, head) for head in HEADS}
    return {
        "retrieval": heads["cross"]["retrieval"],
        "unimodal": heads[uni_head]["unimodal"],
        "unimodal_head": uni_head,
        "heads": heads,
    }


def _evaluate_head(embeddings: SplitEmbeddings, split: Split, head: Head) -> dict[str, Any]:
    images, texts = embeddings.image[head], embeddings.text[head]
    found: dict[str, Any] = {
        "retrieval": cross_modal_recalls(images, texts, embeddings.caption_image),
        "unimodal": {"t2t": uni_modal_recalls(texts, embeddings.caption_image)},
    }
    if split.truth is not None:
        found["unimodal"]["i2i"] = _with_precision(relevance_of("i2i", embeddings, split), embeddings, head)
        relevances = (true_relevance("i2t", embeddings, split), true_relevance("t2i", embeddings, split))
        found["truth"] = {r.task: _with_precision(r, embeddings, head) for r in relevances}
    return found


def _with_precision(relevance: Relevance, embeddings: SplitEmbeddings, head: Head) -> dict[str, Any]:
    queries, candidates = relevance.sides(embeddings, head)
    parts = (queries, candidates, relevance.indptr, relevance.indices, relevance.exclude)
    n_candidates = len(candidates) - (relevance.exclude is not None)
    ranks = best_ranks(*parts)
    return {**precision_at_r(*parts), **recalls(ranks[ranks >= 0], n_candidates)}
