"""What an approximate index finds, beside the exact figures of a suite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from cusa.data.embeddings import Head
from cusa.eval.evaluators.forms import ApproximateFigures
from cusa.eval.metrics.figures import DirectionFigures
from cusa.eval.search.approximate import ApproximateKind, search_approximately


@dataclass(frozen=True)
class Search:
    """Queries, candidates, and which of these are relevant, as ``rank_all`` takes them.

    Attributes:
        queries: float ``[n, d]``.
        candidates: float ``[m, d]``.
        indptr: int64 ``[n + 1]``.
        indices: int64.
        exclude: int64 ``[n]`` or ``None``: each query's own position among the candidates.
    """

    queries: np.ndarray
    candidates: np.ndarray
    indptr: np.ndarray
    indices: np.ndarray
    exclude: np.ndarray | None = None


def approximate_figures(
    searches: Mapping[Head, Mapping[str, Search]], index: ApproximateKind
) -> ApproximateFigures:
    """Search by an approximate index.

    Args:
        searches: By head and task.
        index: Kind of the index.
    """
    by_head: dict[Head, dict[str, DirectionFigures]] = {}
    settings: dict[str, dict[str, int]] = {}
    for head, by_task in searches.items():
        by_head[head] = {}
        for task, search in by_task.items():
            figures, settings[task] = search_approximately(
                search.queries,
                search.candidates,
                search.indptr,
                search.indices,
                search.exclude,
                kind=index,
            )
            by_head[head][task] = cast("DirectionFigures", figures)
    return {"index": index, "settings": settings, "heads": by_head}
