"""A summary of a store, for ``cusa-store info``.

Only attributes and a few rows are read, however large the store is.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cusa.data.store.embeddings import Embeddings
from cusa.data.store.mapped_split import Split
from cusa.data.store.reader import EmbeddingStore

_SAMPLED_RUNS = 16
_RUN_ROWS = 64


def summarize(path: Path) -> dict[str, Any]:
    """Summarise a store as a JSON-compatible dictionary.

    Raises:
        CusaError: If it cannot be read.
    """
    store = EmbeddingStore(path)
    return {
        "dataset": store.dataset,
        "image_root": str(store.image_root),
        "splits": {name: _split_summary(split) for name, split in store.splits.items()},
        "teachers": {name: _teacher_summary(store, name) for name in store.teachers},
    }


def _split_summary(split: Split) -> dict[str, Any]:
    return {
        "images": split.n_images,
        "captions": split.n_captions,
        "truth": split.truth is not None,
        "fingerprint": split.fingerprint,
    }


def _teacher_summary(store: EmbeddingStore, teacher_name: str) -> dict[str, Any]:
    rows_by_split = {}
    for split_name in store.splits_of(teacher_name):
        embeddings = store.embeddings(teacher_name, split_name)
        n_rows, dim = embeddings.shape
        rows_by_split[split_name] = {
            "rows": n_rows,
            "skipped": len(embeddings.skipped),
            "shards": embeddings.n_shards,
            "bytes": n_rows * dim * embeddings.dtype.itemsize,
            "norms": _sampled_norms(embeddings),
        }
    return {
        **asdict(store.teachers[teacher_name]),
        "source": store.sources[teacher_name],
        "versions": store.versions[teacher_name],
        "rows": rows_by_split,
    }


def _sampled_norms(embeddings: Embeddings) -> list[float] | None:
    """Return the least, mean and greatest norm of up to 1,024 rows.

    The rows are 16 evenly spread runs of 64. ``None`` if all of them were skipped.
    """
    last_start = max(0, len(embeddings) - _RUN_ROWS)
    starts = np.linspace(0, last_start, _SAMPLED_RUNS).astype(np.int64)
    runs = starts[:, None] + np.arange(_RUN_ROWS)
    # In a short split the runs overlap, so repeated rows are dropped.
    rows = np.unique(np.minimum(runs, len(embeddings) - 1))

    norms = np.linalg.norm(embeddings.gather(rows).astype(np.float64), axis=1)
    norms = norms[np.isfinite(norms)]
    if not len(norms):
        return None
    return [float(norms.min()), float(norms.mean()), float(norms.max())]
