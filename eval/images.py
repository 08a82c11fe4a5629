"""Image-to-image retrieval by class label: R@1 as the paper counts it, R-Precision and mAP@R."""

from __future__ import annotations

from typing import Any

import numpy as np

from cusa.data.errors import CusaError
from cusa.data.records import csr
from cusa.eval.rankings import Rankings, Ties, rank_all, refuse_zeros
from cusa.eval.relevance import same_group
from cusa.eval.scoring import PLAIN, Scoring, one_way

_OVER_ALL = ("r1", "r5", "r10")  # a query without a positive is a miss
_ANSWERABLE = ("r_precision", "map_at_r")  # it does not count


def image_retrieval(
    embeddings: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
    normalize: bool = True,
    ties: Ties = "pessimistic",
) -> dict[str, Any]:
    """Image-to-image retrieval by class label.

    With one set, every image is a query against the others: itself is left out by its number, wherever it would rank.
    With a gallery, queries go against the gallery and nothing is left out.

    Args:
        embeddings: float ``[n, d]``.
        labels: ``[n]``, numbers or texts.
        gallery: float ``[m, d]``, or ``None`` for one set.
        gallery_labels: ``[m]``.
        normalize: L2-normalise (cosine similarity); otherwise candidates are ranked by Euclidean distance.
        ties: What candidates as similar as a relevant one count as: ``"pessimistic"`` (ahead of it), ``"optimistic"``
            (behind it), or ``"mean"`` of the two figures.

    Returns:
        In percent: ``r1``, ``r5``, ``r10`` over all queries (one without a positive is a miss, as the paper's script
        counts); ``precision_at_1``, ``r_precision`` and ``map_at_r`` over the queries that have a positive (as
        pytorch-metric-learning counts), ``None`` without any; ``queries``, ``queries_with_positive``, ``candidates``,
        and ``tied``, the queries whose rank ties decide.

    Raises:
        CusaError: If embeddings are not finite or, to be normalised, all zeros, or labels do not fit.
    """
    searched = image_search(embeddings, labels, gallery, gallery_labels, normalize)
    return image_figures(rank_all(*searched), Scoring(ties))


def image_search(
    embeddings: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
    normalize: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """What :func:`cusa.eval.rankings.rank_all` takes; arguments and errors as of :func:`image_retrieval`."""
    if (gallery is None) != (gallery_labels is None):
        raise CusaError("gallery and gallery_labels belong together; pass both or neither")
    alone = gallery is None
    if gallery is None or gallery_labels is None:
        gallery, gallery_labels = embeddings, labels
    if len(embeddings) != len(labels) or len(gallery) != len(gallery_labels):
        raise CusaError(f"{len(embeddings)} embeddings have {len(labels)} labels; there must be one each")
    queries, candidates = _as_dot_products(embeddings, gallery, normalize)
    classes = np.unique(np.concatenate([labels, gallery_labels]), return_inverse=True)[1]
    of_queries, of_gallery = classes[: len(labels)], classes[len(labels) :]
    if alone:
        return queries, candidates, *same_group(of_queries), np.arange(len(labels))
    order = np.argsort(of_gallery, kind="stable")
    starts, stops = (np.searchsorted(of_gallery[order], of_queries, side) for side in ("left", "right"))
    relevant = [order[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
    return queries, candidates, *csr(relevant), None


def image_figures(rankings: Rankings, scoring: Scoring = PLAIN) -> dict[str, Any]:
    """Figures of :func:`image_retrieval`, with ``ci``: intervals by metric, where asked for."""
    every, answerable = one_way(rankings, scoring), one_way(rankings.answerable(), scoring)
    found = {name: every[name] for name in _OVER_ALL} | {"precision_at_1": answerable["r1"]}
    found |= {name: answerable[name] for name in _ANSWERABLE}
    ci = {k: every["ci"][k] for k in _OVER_ALL} if "ci" in every else {}
    if "ci" in answerable:
        ci |= {"precision_at_1": answerable["ci"]["r1"]} | {k: answerable["ci"][k] for k in _ANSWERABLE}
    return {
        **found,
        "queries": every["queries"],
        "queries_with_positive": answerable["queries"],
        "candidates": every["candidates"],
        "tied": every["tied"],
        **({"ci": ci} if ci else {}),
    }


def _as_dot_products(queries: np.ndarray, candidates: np.ndarray, normalize: bool) -> tuple[np.ndarray, np.ndarray]:
    """Arrays whose dot products order candidates as asked for."""
    if normalize:
        refuse_zeros(queries, "query")
        refuse_zeros(candidates, "gallery")
        q, c = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, candidates))
        return q, c
    # -|q - c|^2 / 2 + |q|^2 / 2 = q.c - |c|^2 / 2: one more column makes it a dot product, in float64 since the squares
    # are much larger than the differences that decide.
    squares = (candidates.astype(np.float64) ** 2).sum(axis=1, keepdims=True) / 2
    return np.hstack([queries, np.ones((len(queries), 1))]), np.hstack([candidates, -squares])
