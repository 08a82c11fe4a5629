"""Approximate FAISS indexes for large galleries, and the share of exact hits that they find."""

from __future__ import annotations

import math
from typing import Any, Literal

import faiss
import numpy as np

ApproximateKind = Literal["hnsw", "ivf"]
HNSW_SEARCH = 128  # candidates that a search keeps
_HNSW_LINKS = 32  # neighbours of each node
_HNSW_CONSTRUCTION = 200  # candidates that inserting a node keeps
_FAISS_LEAST_ROWS = 39  # training rows per list below which FAISS warns
_MOST_TRAINING_ROWS = 64  # training rows per list
_LISTS_PER_PROBE = 16  # one in so many lists is searched
_LEAST_PROBES = 8  # least number of lists that are searched


def make_index(rows: np.ndarray, kind: ApproximateKind) -> Any:
    """Build an approximate index of rows for search by dot product.

    Args:
        rows: float32 ``[n, d]``, n at least 1.
        kind: ``"hnsw"`` (a graph of neighbours; Malkov and Yashunin 2018) or ``"ivf"`` (inverted
            lists of clusters).

    Returns:
        The FAISS index, which holds all rows.
    """
    n_rows, dim = rows.shape
    index: Any
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _HNSW_CONSTRUCTION
        index.hnsw.efSearch = HNSW_SEARCH
    else:
        wanted_lists = round(4 * math.sqrt(n_rows))
        n_lists = max(1, min(n_rows, wanted_lists, n_rows // _FAISS_LEAST_ROWS))
        quantizer = faiss.IndexFlatIP(dim)
        index = faiss.IndexIVFFlat(quantizer, dim, n_lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = _MOST_TRAINING_ROWS
        # With fewer rows than that there is one list only, and FAISS need not warn.
        index.cp.min_points_per_centroid = 1
        index.train(rows)
        index.nprobe = min(n_lists, max(_LEAST_PROBES, n_lists // _LISTS_PER_PROBE))
    index.add(rows)
    return index


def recall_of_exact(hits: np.ndarray, exact_hits: np.ndarray) -> float | None:
    """Compute the percentage of the exact hits that an approximate index finds.

    Args:
        hits: int64 ``[n, k]``: hits of the approximate index; -1 for none.
        exact_hits: int64 ``[n, k]``: hits of the exact index; -1 for none.

    Returns:
        The percentage; ``None`` without exact hits.
    """
    is_exact_hit = exact_hits >= 0
    if not is_exact_hit.any():
        return None
    is_equal = exact_hits[:, :, None] == hits[:, None, :]
    is_shared = is_equal.any(axis=2) & is_exact_hit
    return 100.0 * float(is_shared.sum() / is_exact_hit.sum())
