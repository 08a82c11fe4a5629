"""Precision over the whole ranking: R-Precision and mAP@R, as image retrieval reports them."""

from __future__ import annotations

from typing import Any

import numpy as np

from cusa.data.errors import CusaError
from cusa.data.records import csr
from cusa.eval.relevance import same_group

_BLOCK = 1024  # queries at once


def precision_at_r(
    queries: np.ndarray,
    candidates: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    exclude: np.ndarray | None = None,
) -> dict[str, Any]:
    """R-Precision and mAP@R (Musgrave et al., ECCV 2020, section 4), R being a query's number of relevant candidates.

    Queries without a relevant candidate do not count. Equal similarities rank in candidate order.

    Args:
        queries: float ``[n, d]``; similarities are dot products in this type.
        candidates: float ``[m, d]``.
        indptr: int64 ``[n + 1]``; query i's relevant candidates are ``indices[indptr[i]:indptr[i + 1]]``.
        indices: int64.
        exclude: int64 ``[n]`` or ``None``: the query's own position among the candidates.

    Returns:
        ``r_precision`` and ``map_at_r`` in percent (``None`` if no query counts), and ``queries``, how many count.
    """
    sizes = np.diff(indptr)
    counted = np.flatnonzero(sizes)
    r_precision, average = np.zeros(len(counted)), np.zeros(len(counted))
    for a in range(0, len(counted), _BLOCK):
        block = counted[a : a + _BLOCK]
        scores = queries[block] @ candidates.T
        if exclude is not None:
            scores[np.arange(len(block)), exclude[block]] = -np.inf
        relevant = np.zeros(scores.shape, bool)
        rows = np.repeat(np.arange(len(block)), sizes[block])
        relevant[rows, np.concatenate([indices[indptr[q] : indptr[q + 1]] for q in block])] = True
        depth = int(sizes[block].max())
        top = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        hits = np.take_along_axis(relevant, top, axis=1) & (np.arange(depth) < sizes[block][:, None])
        precision = np.cumsum(hits, axis=1) / np.arange(1, depth + 1)
        r_precision[a : a + len(block)] = hits.sum(axis=1) / sizes[block]
        average[a : a + len(block)] = (precision * hits).sum(axis=1) / sizes[block]
    if not len(counted):
        return {"r_precision": None, "map_at_r": None, "queries": 0}
    return {
        "r_precision": 100 * float(r_precision.mean()),
        "map_at_r": 100 * float(average.mean()),
        "queries": len(counted),
    }


def image_retrieval(
    embeddings: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
    normalize: bool = True,
) -> dict[str, Any]:
    """Image-to-image retrieval by class label.

    With one set, every image is a query against the others; with a gallery, queries go against the gallery and
    nothing is left out.

    Args:
        embeddings: float ``[n, d]``.
        labels: ``[n]``, numbers or texts.
        gallery: float ``[m, d]``, or ``None`` for one set.
        gallery_labels: ``[m]``.
        normalize: L2-normalise (cosine similarity); otherwise candidates are ranked by Euclidean distance.

    Returns:
        In percent: ``r1`` over all queries (one without a positive is a miss, as the paper's script counts);
        ``precision_at_1``, ``r_precision`` and ``map_at_r`` over the queries that have a positive (as
        pytorch-metric-learning counts); ``queries``, ``queries_with_positive`` and ``candidates``.

    Raises:
        CusaError: If embeddings are not finite or labels do not fit.
    """
    from cusa.train.ranks import best_ranks

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
        (indptr, indices), exclude = same_group(of_queries), np.arange(len(labels))
    else:
        indptr, indices = csr([np.flatnonzero(of_gallery == c) for c in of_queries])
        exclude = None
    ranks = best_ranks(queries, candidates, indptr, indices, exclude)
    hits = int(np.count_nonzero(ranks == 0))
    precision = precision_at_r(queries, candidates, indptr, indices, exclude)
    n_with_positive = precision.pop("queries")
    return {
        "r1": 100 * hits / len(ranks),
        "precision_at_1": 100 * hits / n_with_positive if n_with_positive else None,
        **precision,
        "queries": len(ranks),
        "queries_with_positive": n_with_positive,
        "candidates": len(candidates) - alone,
    }


def _as_dot_products(queries: np.ndarray, candidates: np.ndarray, normalize: bool) -> tuple[np.ndarray, np.ndarray]:
    """Arrays whose dot products order candidates as asked for."""
    if normalize:
        q, c = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, candidates))
        return q, c
    # -|q - c|^2 / 2 + |q|^2 / 2 = q.c - |c|^2 / 2: one more column makes it a dot product, in float64 since the squares
    # are much larger than the differences that decide.
    squares = (candidates.astype(np.float64) ** 2).sum(axis=1, keepdims=True) / 2
    return np.hstack([queries, np.ones((len(queries), 1))]), np.hstack([candidates, -squares])
