"""Approximate search beside the exact one: how much an index of FAISS finds, and at what recall."""

from __future__ import annotations

import math
from typing import Any, Literal

import faiss
import numpy as np

from cusa.eval.metrics.recalls import CUTS, recall_name

ApproximateKind = Literal["hnsw", "ivf"]
HNSW_SEARCH = 128  # candidates that a search keeps
_HNSW_LINKS = 32
_HNSW_CONSTRUCTION = 200
_FAISS_LEAST_ROWS = 39  # that FAISS wants for each list when it trains
_MOST_TRAINING_ROWS = 64  # for each list
_LISTS_PER_PROBE = 16  # one list of so many is searched, and no fewer than 8
_LEAST_PROBES = 8
_DEPTH = max(CUTS)


def make_index(
    rows: np.ndarray,
    kind: ApproximateKind,
) -> tuple[Any, dict[str, int]]:
    """Build an index of rows for search by dot product.

    Args:
        rows: float32 ``[n, d]``.
        kind: ``"hnsw"`` (a graph of neighbours; Malkov and Yashunin 2018) or ``"ivf"`` (lists of
            clusters).

    Returns:
        The index, and its settings.
    """
    index, settings = _make_hnsw(rows) if kind == "hnsw" else _make_ivf(rows)
    index.add(rows)
    return index, settings


def _make_hnsw(rows: np.ndarray) -> tuple[Any, dict[str, int]]:
    dim = rows.shape[1]
    index = faiss.IndexHNSWFlat(dim, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _HNSW_CONSTRUCTION
    index.hnsw.efSearch = HNSW_SEARCH
    settings = {
        "links": _HNSW_LINKS,
        "ef_construction": _HNSW_CONSTRUCTION,
        "ef_search": HNSW_SEARCH,
    }
    return index, settings


def _make_ivf(rows: np.ndarray) -> tuple[Any, dict[str, int]]:
    n_rows, dim = rows.shape
    wanted_lists = round(4 * math.sqrt(n_rows))
    n_lists = max(1, min(n_rows, wanted_lists, n_rows // _FAISS_LEAST_ROWS))
    quantizer = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFFlat(quantizer, dim, n_lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = _MOST_TRAINING_ROWS
    # Of fewer rows than FAISS wants there is one list, and nothing to warn of.
    index.cp.min_points_per_centroid = 1
    index.train(rows)
    index.nprobe = min(n_lists, max(_LEAST_PROBES, n_lists // _LISTS_PER_PROBE))
    return index, {"lists": n_lists, "probed": index.nprobe}


def recall_of_exact(
    hits: np.ndarray,
    exact_hits: np.ndarray,
) -> float | None:
    """Compute the percentage of the exact hits that an approximate index finds.

    Args:
        hits: int64 ``[n, k]``: its hits; -1 is no hit.
        exact_hits: int64 ``[n, k]``: the exact ones.

    Returns:
        The percentage; ``None`` without exact hits.
    """
    is_exact_hit = exact_hits >= 0
    if not is_exact_hit.any():
        return None
    is_equal = exact_hits[:, :, None] == hits[:, None, :]
    is_shared = is_equal.any(axis=2) & is_exact_hit
    return 100.0 * float(is_shared.sum() / is_exact_hit.sum())


def search_approximately(
    queries: np.ndarray,
    candidates: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    exclude: np.ndarray | None = None,
    *,
    kind: ApproximateKind,
) -> tuple[dict[str, Any], dict[str, int]]:
    """Compute R@1/5/10 by an approximate search, and how much of the exact ten nearest it finds.

    Args:
        queries: float32 ``[n, d]``.
        candidates: float32 ``[m, d]``.
        indptr: int64 ``[n + 1]``; query i's relevant candidates are
            ``indices[indptr[i]:indptr[i + 1]]``.
        indices: int64.
        exclude: int64 ``[n]`` or ``None``: the query's own position among the candidates.
        kind: Kind of the index.

    Returns:
        ``r1``, ``r5``, ``r10`` and ``recall_of_exact_top10`` in percent; and the index's settings.
    """
    index, settings = make_index(candidates, kind)
    # The query itself may take a place among the hits.
    depth = _DEPTH + (exclude is not None)
    exact_depth = min(depth, len(candidates))
    _, hits = index.search(queries, depth)
    _, exact_hits = faiss.knn(queries, candidates, exact_depth, metric=faiss.METRIC_INNER_PRODUCT)
    if exclude is not None:
        hits = _without_query(hits, exclude)[:, :_DEPTH]
        exact_hits = _without_query(exact_hits, exclude)[:, :_DEPTH]

    is_relevant = _are_relevant(hits, indptr, indices, len(candidates))
    figures: dict[str, Any] = {}
    for cut in CUTS:
        is_hit = is_relevant[:, :cut].any(axis=1)
        figures[recall_name(cut)] = 100.0 * float(is_hit.mean())
    figures["recall_of_exact_top10"] = recall_of_exact(hits, exact_hits)
    return figures, settings


def _are_relevant(
    hits: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    n_candidates: int,
) -> np.ndarray:
    """Tell which hits, int64 ``[n, k]``, are relevant to their query: bool ``[n, k]``."""
    # A pair of a query and a candidate is one number.
    first_pairs = np.arange(len(hits)) * n_candidates
    n_relevant = np.diff(indptr)
    relevant_pairs = np.repeat(first_pairs, n_relevant) + indices[indptr[0] : indptr[-1]]
    is_relevant = np.isin(first_pairs[:, None] + hits, relevant_pairs)
    return is_relevant & (hits >= 0)


def _without_query(
    hits: np.ndarray,
    query_positions: np.ndarray,
) -> np.ndarray:
    """Take each query itself out of its hits; those behind it move up."""
    is_query = hits == query_positions[:, None]
    order = np.argsort(is_query, axis=1, kind="stable")
    moved_up = np.take_along_axis(hits, order, axis=1)
    is_left_out = np.take_along_axis(is_query, order, axis=1)
    return np.where(is_left_out, -1, moved_up)
