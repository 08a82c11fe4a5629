"""What a store holds, for ``cusa-store info``: reads attributes and a few rows, whatever the number of rows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cusa.data.store.reader import Embeddings, EmbeddingStore

_SAMPLED_PLACES, _SAMPLED_RUN = 16, 64


def summarize(path: Path) -> dict[str, Any]:
    """The contents of a store as a JSON-compatible dictionary.

    Raises:
        CusaError: If it cannot be read.
    """
    store = EmbeddingStore(path)
    teachers = {}
    for name, settings in store.teachers.items():
        rows = {}
        for split in store.splits_of(name):
            e = store.embeddings(name, split)
            rows[split] = {
                "rows": len(e),
                "skipped": len(e.skipped),
                "shards": e.n_shards,
                "bytes": e.shape[0] * e.shape[1] * e.dtype.itemsize,
                "norms": _norms(e),
            }
        teachers[name] = {
            **asdict(settings),
            "source": store.sources[name],
            "versions": store.versions[name],
            "rows": rows,
        }
    return {
        "dataset": store.dataset,
        "image_root": str(store.image_root),
        "splits": {
            name: {
                "images": s.n_images,
                "captions": s.n_captions,
                "truth": s.truth is not None,
                "fingerprint": s.fingerprint,
            }
            for name, s in store.splits.items()
        },
        "teachers": teachers,
    }


def _norms(rows: Embeddings) -> list[float] | None:
    """Least, mean and greatest norm of up to 1,024 rows, runs of 64 at 16 places; ``None`` if all were skipped."""
    starts = np.linspace(0, max(0, len(rows) - _SAMPLED_RUN), _SAMPLED_PLACES).astype(np.int64)
    chosen = np.unique(np.minimum(starts[:, None] + np.arange(_SAMPLED_RUN), len(rows) - 1))
    norms = np.linalg.norm(rows.gather(chosen).astype(np.float64), axis=1)
    norms = norms[np.isfinite(norms)]
    return [float(norms.min()), float(norms.mean()), float(norms.max())] if len(norms) else None
