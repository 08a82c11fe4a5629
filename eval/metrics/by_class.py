"""Image-to-image retrieval by class label: R@1 as the paper counts it, R-Precision and mAP@R."""

from __future__ import annotations

from typing import Any

import numpy as np

from cusa.data.errors import EmbeddingsError
from cusa.data.records import csr
from cusa.data.unit_rows import unit_rows
from cusa.eval.metrics.full_ranking import rank_all
from cusa.eval.metrics.metric_options import (
    DEFAULT_SCORING,
    Scoring,
    direction_figures,
)
from cusa.eval.metrics.per_query import (
    Rankings,
    Ties,
    check_rows,
    refuse_zeros,
)
from cusa.eval.metrics.recalls import RECALL_NAMES
from cusa.eval.metrics.relevance import group_members, same_group
from cusa.eval.metrics.similarity_blocks import ranking_dtype

# Figures over the queries that have a positive, and their keys among those of one direction.
_ANSWERABLE = {
    "precision_at_1": "r1",
    "r_precision": "r_precision",
    "map_at_r": "map_at_r",
}

# Queries, candidates, indptr and indices of the relevant candidates, and each query's own position
# among the candidates, if it is one of them.
SearchArguments = tuple[
    np.ndarray,
    np.ndarray,
    np.ndarray,
    np.ndarray,
    np.ndarray | None,
]


def image_retrieval(
    embeddings: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
    normalize: bool = True,
    ties: Ties = "pessimistic",
) -> dict[str, Any]:
    """Evaluate image-to-image retrieval by class label.

    Without a gallery, every image is a query against all others; the query itself is excluded by
    its position, wherever it would rank. With a gallery, queries are compared with the gallery, and
    nothing is excluded.

    Args:
        embeddings: float ``[n, d]``, not necessarily L2-normalised.
        labels: Class of each image, ``[n]``: numbers or strings.
        gallery: float ``[m, d]``; ``None`` if the images search among themselves.
        gallery_labels: Class of each image of the gallery, ``[m]``.
        normalize: Whether to L2-normalise the embeddings and rank by cosine similarity; otherwise
            candidates are ranked by Euclidean distance.
        ties: Where to rank candidates that are as similar as a relevant one: ``"pessimistic"``
            (ahead of it) or ``"optimistic"`` (behind it); ``"mean"`` averages the two figures.

    Returns:
        In percent: ``r1``, ``r5``, ``r10`` over all queries (one without a positive is a miss, as
        the paper's script counts); ``precision_at_1``, ``r_precision`` and ``map_at_r`` over the
        queries that have a positive (as pytorch-metric-learning counts), ``None`` without any.
        Counts: ``queries``, ``queries_with_positive``, ``candidates``, and ``tied``, the queries
        whose rank ties decide.

    Raises:
        EmbeddingsError: If an embedding is not finite, or is all zeros and cannot be normalised, or
            the labels do not fit the embeddings.
        SettingError: If ``ties`` is unknown.
    """
    scoring = Scoring(ties)
    search = image_search(embeddings, labels, gallery, gallery_labels, normalize)
    return image_figures(rank_all(*search), scoring)


def image_search(
    embeddings: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
    normalize: bool = True,
) -> SearchArguments:
    """Prepare the first five arguments of :func:`cusa.eval.metrics.per_query.rank_all`.

    Arguments and errors are those of :func:`image_retrieval`.
    """
    if (gallery is None) != (gallery_labels is None):
        raise EmbeddingsError(
            "gallery and gallery_labels belong together; pass both or neither",
            name="gallery_labels",
        )
    queries, candidates = _as_dot_products(
        embeddings, embeddings if gallery is None else gallery, normalize
    )
    labels = _checked_labels(labels, len(queries))
    if gallery_labels is None:
        classes = np.unique(labels, return_inverse=True)[1]
        own_positions = np.arange(len(labels))
        return queries, candidates, *same_group(classes), own_positions

    gallery_labels = _checked_labels(gallery_labels, len(candidates))
    if (labels.dtype.kind in "US") != (gallery_labels.dtype.kind in "US"):
        raise EmbeddingsError(
            f"labels are {labels.dtype}, gallery_labels {gallery_labels.dtype}; give both as "
            "numbers, or both as strings",
            name="gallery_labels",
        )
    # Number the classes of both sets together, so that a class has the same number in both.
    all_labels = np.concatenate([labels, gallery_labels])
    classes = np.unique(all_labels, return_inverse=True)[1]
    query_classes, gallery_classes = np.split(classes, [len(labels)])
    relevant = group_members(gallery_classes, query_classes)
    return queries, candidates, *csr(relevant), None


def image_figures(
    rankings: Rankings,
    scoring: Scoring = DEFAULT_SCORING,
) -> dict[str, Any]:
    """Compute the figures that :func:`image_retrieval` returns.

    Args:
        rankings: Rankings of all queries.
        scoring: Metric options; with a bootstrap, the figures include ``ci``, an interval
            ``[low, high]`` by metric.
    """
    all_queries = direction_figures(rankings, scoring)
    answerable = direction_figures(rankings.answerable(), scoring)
    origins = [(name, all_queries, name) for name in RECALL_NAMES]
    origins += [(name, answerable, key) for name, key in _ANSWERABLE.items()]
    figures: dict[str, Any] = {}
    intervals: dict[str, list[float]] = {}
    for name, direction, key in origins:
        figures[name] = direction[key]
        if "ci" in direction:
            intervals[name] = direction["ci"][key]
    figures["queries"] = all_queries["queries"]
    figures["queries_with_positive"] = answerable["queries"]
    figures["candidates"] = all_queries["candidates"]
    figures["tied"] = all_queries["tied"]
    if intervals:
        figures["ci"] = intervals
    return figures


def _checked_labels(
    labels: np.ndarray,
    n_rows: int,
) -> np.ndarray:
    """Return labels as an array ``[n_rows]`` of numbers or strings."""
    checked = np.asarray(labels)
    # Strings from pandas have the dtype object.
    is_object = checked.dtype.kind == "O"
    if is_object and all(isinstance(label, str) for label in checked.ravel()):
        checked = checked.astype(str)
    if checked.shape != (n_rows,):
        raise EmbeddingsError(
            f"{n_rows} embeddings come with labels of shape {list(checked.shape)}; give one label "
            "for each",
            name="labels",
        )
    is_legal = checked.dtype.kind in "biuUS" or not checked.size
    if checked.dtype.kind == "f":
        is_legal = bool(np.isfinite(checked).all())
    if not is_legal:
        raise EmbeddingsError(
            f"labels are {checked.dtype}, or not finite; give finite numbers or strings",
            name="labels",
        )
    return checked


def _as_dot_products(
    queries: np.ndarray,
    candidates: np.ndarray,
    normalize: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Convert embeddings so that dot products rank by cosine, or by Euclidean distance."""
    queries = np.asarray(queries)
    candidates = np.asarray(candidates)
    check_rows(queries, "query")
    check_rows(candidates, "gallery")
    if not normalize:
        return _as_distances(queries, candidates)
    refuse_zeros(queries, "query")
    refuse_zeros(candidates, "gallery")
    dtype = ranking_dtype(queries, candidates)
    return unit_rows(queries, dtype), unit_rows(candidates, dtype)


def _as_distances(
    queries: np.ndarray,
    candidates: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 rows ``[n, d + 1]`` whose dot products order candidates by Euclidean distance.

    For a fixed query q, candidates c are ordered by q.c - |c|^2 / 2 = (|q|^2 - |q - c|^2) / 2. One
    more column turns this into a dot product. It takes float64, since the squares are much larger
    than the differences that decide.
    """
    # Scaling by a power of two keeps the order exactly, and keeps the squares within float64.
    queries = queries.astype(np.float64)
    candidates = candidates.astype(np.float64)
    largest = max(np.abs(rows).max(initial=0) for rows in (queries, candidates))
    _, exponent = np.frexp(largest)
    queries = np.ldexp(queries, -exponent)
    candidates = np.ldexp(candidates, -exponent)
    ones = np.ones((len(queries), 1))
    squares = (candidates**2).sum(axis=1, keepdims=True)
    half_squares = squares / 2
    query_rows = np.hstack([queries, ones])
    candidate_rows = np.hstack([candidates, -half_squares])
    return query_rows, candidate_rows
