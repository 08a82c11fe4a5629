"""Image-to-image retrieval by class label: R@1 as the paper counts it, R-Precision and mAP@R."""

from __future__ import annotations

from typing import Any

import numpy as np

from cusa.data.errors import EmbeddingsError
from cusa.data.records import csr
from cusa.data.unit_rows import unit_rows
from cusa.eval.metrics.metric_options import PLAIN, Scoring, one_way
from cusa.eval.metrics.per_query import Rankings, Ties, check_rows, rank_all, refuse_zeros
from cusa.eval.metrics.ranks import ranking_dtype
from cusa.eval.metrics.relevance import same_group

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
        EmbeddingsError: If embeddings are not finite or, to be normalised, all zeros, or labels do
            not fit.
        SettingError: If there is no such rule for ties.
    """
    scoring = Scoring(ties)
    searched = image_search(embeddings, labels, gallery, gallery_labels, normalize)
    return image_figures(rank_all(*searched), scoring)


def image_search(
    embeddings: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
    normalize: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """What :func:`cusa.eval.metrics.per_query.rank_all` takes; arguments and errors as of :func:`image_retrieval`."""
    if (gallery is None) != (gallery_labels is None):
        raise EmbeddingsError("gallery and gallery_labels belong together; pass both or neither")
    alone = gallery is None
    if gallery is None or gallery_labels is None:
        gallery, gallery_labels = embeddings, labels
    queries, candidates = _as_dot_products(np.asarray(embeddings), np.asarray(gallery), normalize)
    labels, gallery_labels = (
        _checked_labels(given, len(rows))
        for given, rows in ((labels, queries), (gallery_labels, candidates))
    )
    if (labels.dtype.kind in "US") != (gallery_labels.dtype.kind in "US"):
        raise EmbeddingsError(
            f"labels are {labels.dtype}, gallery_labels {gallery_labels.dtype}; give both as numbers, or both as texts",
            name="gallery_labels",
        )
    classes = np.unique(np.concatenate([labels, gallery_labels]), return_inverse=True)[1]
    of_queries, of_gallery = classes[: len(labels)], classes[len(labels) :]
    if alone:
        return queries, candidates, *same_group(of_queries), np.arange(len(labels))
    order = np.argsort(of_gallery, kind="stable")
    starts, stops = (
        np.searchsorted(of_gallery[order], of_queries, side) for side in ("left", "right")
    )
    relevant = [order[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
    return queries, candidates, *csr(relevant), None


def image_figures(rankings: Rankings, scoring: Scoring = PLAIN) -> dict[str, Any]:
    """Figures of :func:`image_retrieval`, with ``ci``: intervals by metric, where asked for."""
    every, answerable = one_way(rankings, scoring), one_way(rankings.answerable(), scoring)
    figures = {name: every[name] for name in _OVER_ALL} | {"precision_at_1": answerable["r1"]}
    figures |= {name: answerable[name] for name in _ANSWERABLE}
    ci = {k: every["ci"][k] for k in _OVER_ALL} if "ci" in every else {}
    if "ci" in answerable:
        ci |= {"precision_at_1": answerable["ci"]["r1"]} | {
            k: answerable["ci"][k] for k in _ANSWERABLE
        }
    return {
        **figures,
        "queries": every["queries"],
        "queries_with_positive": answerable["queries"],
        "candidates": every["candidates"],
        "tied": every["tied"],
        **({"ci": ci} if ci else {}),
    }


def _checked_labels(labels: np.ndarray, n_rows: int) -> np.ndarray:
    """Labels as an array ``[n_rows]`` of numbers or texts."""
    given = np.asarray(labels)
    if given.dtype.kind == "O" and all(isinstance(label, str) for label in given.ravel()):
        given = given.astype(str)
    if given.shape != (n_rows,):
        raise EmbeddingsError(
            f"{n_rows} embeddings have {given.size} labels, of shape {list(given.shape)}; there must be one each",
            name="labels",
        )
    if given.size and (
        given.dtype.kind not in "biufUS"
        or (given.dtype.kind == "f" and not np.isfinite(given).all())
    ):
        raise EmbeddingsError(
            f"labels are {given.dtype}, or not finite; give numbers or texts", name="labels"
        )
    return given


def _as_dot_products(
    queries: np.ndarray, candidates: np.ndarray, normalize: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Arrays whose dot products order candidates as asked for."""
    check_rows(queries, "query")
    check_rows(candidates, "gallery")
    if normalize:
        refuse_zeros(queries, "query")
        refuse_zeros(candidates, "gallery")
        dtype = ranking_dtype(queries, candidates)
        return unit_rows(queries, dtype), unit_rows(candidates, dtype)
    # -|q - c|^2 / 2 + |q|^2 / 2 = q.c - |c|^2 / 2: one more column makes it a dot product, in
    # float64 since the squares are much larger than the differences that decide. Distances in
    # another unit, a power of two, have the same order, and squares that float64 holds.
    greatest = max(float(np.abs(rows).max(initial=0)) for rows in (queries, candidates))
    exponent = np.frexp(greatest)[1]
    queries, candidates = (
        np.ldexp(rows.astype(np.float64), -exponent) for rows in (queries, candidates)
    )
    squares = (candidates**2).sum(axis=1, keepdims=True) / 2
    return np.hstack([queries, np.ones((len(queries), 1))]), np.hstack([candidates, -squares])
