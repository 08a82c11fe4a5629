"""Approximate indexes of FAISS for large galleries, and how much of the exact hits they find."""

from __future__ import annotations

import math
from typing import Any, Literal

import faiss
import numpy as np

ApproximateKind = Literal["hnsw", "ivf"]
HNSW_SEARCH = 128  # candidates that a search keeps
_HNSW_LINKS = 32
_HNSW_CONSTRUCTION = 200
_FAISS_LEAST_ROWS = 39  # that FAISS wants for each list when it trains
_MOST_TRAINING_ROWS = 64  # for each list
_LISTS_PER_PROBE = 16  # one list of so many is searched, and no fewer than 8
_LEAST_PROBES = 8


def make_index(rows: np.ndarray, kind: ApproximateKind) -> Any:
    """Build an index of rows for search by dot product.

    Args:
        rows: float32 ``[n, d]``.
        kind: ``"hnsw"`` (a graph of neighbours; Malkov and Yashunin 2018) or ``"ivf"`` (lists of
            clusters).
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
        # Of fewer rows than FAISS wants there is one list, and nothing to warn of.
        index.cp.min_points_per_centroid = 1
        index.train(rows)
        index.nprobe = min(n_lists, max(_LEAST_PROBES, n_lists // _LISTS_PER_PROBE))
    index.add(rows)
    return index


def recall_of_exact(hits: np.ndarray, exact_hits: np.ndarray) -> float | None:
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
