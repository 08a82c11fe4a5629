"""Approximate search beside the exact one: what an index of FAISS finds of it, and what that does to the recalls."""

from __future__ import annotations

import math
from typing import Any, Literal

import faiss
import numpy as np

from cusa.eval.metrics.recalls import CUTS

ApproximateKind = Literal["hnsw", "ivf"]
HNSW_SEARCH = 128  # candidates that a search keeps
_LINKS, _BUILD = 32, 200
_TRAINED_ON = 64  # rows per list, at most
_PROBED = 16  # one list of so many is searched, and no fewer than 8
_TOP = max(CUTS)


def make_index(rows: np.ndarray, kind: ApproximateKind) -> tuple[Any, dict[str, int]]:
    """An index of rows for search by dot product.

    Args:
        rows: float32 ``[n, d]``.
        kind: ``"hnsw"`` (a graph of neighbours; Malkov and Yashunin 2018) or ``"ivf"`` (lists of clusters).

    Returns:
        The index, and its settings.
    """
    n, dim = rows.shape
    index: Any
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, _LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = _BUILD, HNSW_SEARCH
        settings = {"links": _LINKS, "ef_construction": _BUILD, "ef_search": HNSW_SEARCH}
    else:
        lists = max(
            1, min(n, round(4 * math.sqrt(n)), n // 39)
        )  # FAISS asks for 39 rows a list to be trained on
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = _TRAINED_ON
        index.cp.min_points_per_centroid = (
            1  # of fewer than 39 rows there is one list, and nothing to warn of
        )
        index.train(rows)
        index.nprobe = min(lists, max(8, lists // _PROBED))
        settings = {"lists": lists, "probed": index.nprobe}
    index.add(rows)
    return index, settings


def recall_of_exact(found: np.ndarray, exact: np.ndarray) -> float | None:
    """Percent of the exact hits that are among those found; -1 is no hit.

    Args:
        found: int64 ``[n, k]``: an approximate index's hits.
        exact: int64 ``[n, k]``: the exact ones.
    """
    known = exact >= 0
    shared = (exact[:, :, None] == found[:, None, :]).any(axis=2) & known
    return 100.0 * float(shared.sum() / known.sum()) if known.any() else None


def search_approximately(
    queries: np.ndarray,
    candidates: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    exclude: np.ndarray | None = None,
    *,
    kind: ApproximateKind,
) -> tuple[dict[str, Any], dict[str, int]]:
    """R@1/5/10 from an approximate search, and how much of the exact ten nearest it finds.

    Args:
        queries: float32 ``[n, d]``.
        candidates: float32 ``[m, d]``.
        indptr: int64 ``[n + 1]``; query i's relevant candidates are ``indices[indptr[i]:indptr[i + 1]]``.
        indices: int64.
        exclude: int64 ``[n]`` or ``None``: the query's own position among the candidates.
        kind: The index.

    Returns:
        ``r1``, ``r5``, ``r10`` and ``recall_of_exact_top10`` in percent; and the index's settings.
    """
    index, settings = make_index(candidates, kind)
    depth = _TOP + (exclude is not None)
    _, found = index.search(queries, depth)
    _, exact = faiss.knn(
        queries, candidates, min(depth, len(candidates)), metric=faiss.METRIC_INNER_PRODUCT
    )
    if exclude is not None:
        found, exact = (_without(hits, exclude)[:, :_TOP] for hits in (found, exact))
    query = np.repeat(np.arange(len(queries)), np.diff(indptr))
    pairs = np.unique(query * len(candidates) + indices[indptr[0] : indptr[-1]])
    hit = np.isin(np.arange(len(queries))[:, None] * len(candidates) + found, pairs) & (found >= 0)
    recalls = {f"r{k}": 100.0 * float(hit[:, :k].any(axis=1).mean()) for k in CUTS}
    return {**recalls, "recall_of_exact_top10": recall_of_exact(found, exact)}, settings


def _without(hits: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Hits without the query itself: its place is filled from behind."""
    is_own = hits == own[:, None]
    order = np.argsort(is_own, axis=1, kind="stable")
    return np.where(
        np.take_along_axis(is_own, order, axis=1), -1, np.take_along_axis(hits, order, axis=1)
    )
