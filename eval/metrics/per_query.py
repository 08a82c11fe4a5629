"""What a task's rankings say of each query, of which every metric is a mean: ranks and precisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from cusa.data.errors import EmbeddingsError, SettingError
from cusa.eval.metrics.ranks import (
    RankBounds,
    block_bounds,
    join_bounds,
    over_blocks,
    ranking_dtype,
)

Ties = Literal["pessimistic", "mean", "optimistic"]
TIES: tuple[Ties, ...] = get_args(Ties)
CUTS = (1, 5, 10)
CURVE = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000)
_GROUPS = 256  # of candidates, whose maxima tell which candidates can be among the first R


class Bounds(NamedTuple):
    """A figure of each query, float64 ``[n]`` in 0 to 1: ties counted for it, and against it."""

    optimistic: np.ndarray
    pessimistic: np.ndarray


@dataclass(frozen=True)
class Rankings:
    """Rankings of one task.

    Attributes:
        best: Rank of each query's best relevant candidate; -1 for a query that has none.
        candidates: Candidates of each query.
        r_precision: Of R relevant candidates, the share within the first R; 0 for a query without any.
        average_precision: Average precision within the first R: its mean is mAP@R.
        clusters: int64 ``[n]``: queries that belong together, as captions of an image do; ``None``: none do.
    """

    best: RankBounds
    candidates: int
    r_precision: Bounds | None = None
    average_precision: Bounds | None = None
    clusters: np.ndarray | None = None

    def answerable(self) -> Rankings:
        """Without the queries that have no relevant candidate."""
        kept = self.best.optimistic >= 0
        r_precision, average = (
            Bounds(*(side[kept] for side in b)) if b else None
            for b in (self.r_precision, self.average_precision)
        )
        clusters = self.clusters[kept] if self.clusters is not None else None
        best = RankBounds(*(side[kept] for side in self.best))
        return Rankings(best, self.candidates, r_precision, average, clusters)

    def values(self, ties: Ties) -> dict[str, np.ndarray]:
        """Per metric, each query's part in percent: the metric is the mean of it.

        Args:
            ties: ``"optimistic"``, ``"pessimistic"`` (equal similarities count for or against the query), or
                ``"mean"``: the mean of a query's two figures.

        Raises:
            SettingError: If it is none of them.
        """
        check_ties(ties)
        found = {
            f"r{k}": _chosen([100.0 * ((r >= 0) & (r < k)) for r in self.best], ties) for k in CUTS
        }
        for name, bounds in (
            ("r_precision", self.r_precision),
            ("map_at_r", self.average_precision),
        ):
            if bounds is not None:
                found[name] = _chosen([100.0 * side for side in bounds], ties)
        return found

    def summary(self, ties: Ties) -> dict[str, Any]:
        """The metrics, as metrics.json holds them: in percent; ``None`` without any query."""
        counts = {"queries": len(self.best.optimistic), "candidates": self.candidates}
        values = self.values(ties)
        if not counts["queries"]:
            return {
                **dict.fromkeys((*values, "mean", "median_rank", "mean_rank")),
                **counts,
                "tied": 0,
            }
        found: dict[str, Any] = {name: float(v.mean()) for name, v in values.items()}
        found["mean"] = sum(found[f"r{k}"] for k in CUTS) / len(CUTS)
        ranks = _chosen([1.0 + side[side >= 0] for side in self.best], ties)
        found["median_rank"] = float(np.median(ranks)) if len(ranks) else None
        found["mean_rank"] = float(ranks.mean()) if len(ranks) else None
        cuts = [k for k in CURVE if k <= self.candidates]
        recall = [
            float(_chosen([100.0 * ((r >= 0) & (r < k)) for r in self.best], ties).mean())
            for k in cuts
        ]
        tied = int(np.count_nonzero(self.best.optimistic != self.best.pessimistic))
        return {**found, **counts, "tied": tied, "curve": {"k": cuts, "recall": recall}}


def _chosen(sides: list[np.ndarray], ties: Ties) -> np.ndarray:
    """One of (optimistic, pessimistic), or their mean."""
    optimistic, pessimistic = sides
    return {
        "optimistic": optimistic,
        "pessimistic": pessimistic,
        "mean": (optimistic + pessimistic) / 2,
    }[ties]


def check_ties(ties: str) -> None:
    """Refuse a rule for ties that does not exist.

    Raises:
        SettingError: If it is none of :data:`TIES`.
    """
    if ties not in TIES:
        raise SettingError(f"unknown rule for ties {ties!r}; legal: {', '.join(TIES)}", name="ties")


def check_rows(rows: np.ndarray, what: str) -> None:
    """Refuse arrays that are no embeddings.

    Args:
        rows: The array.
        what: What it is of, for the error.

    Raises:
        EmbeddingsError: If it is not ``[n, d]``, or holds no numbers.
    """
    if rows.ndim != 2:
        raise EmbeddingsError(
            f"{what} embeddings of shape {rows.shape} cannot be ranked; give one row each, [n, d]"
        )
    ranking_dtype(rows)


def refuse_zeros(rows: np.ndarray, what: str) -> None:
    """Embeddings of zeros are equally similar to all, and would rank by the rule for ties alone.

    Args:
        rows: float ``[n, d]``.
        what: What they are of, for the error.

    Raises:
        EmbeddingsError: If a row is all zeros.
    """
    zero = ~rows.any(axis=1)
    if zero.any():
        name = f"{what} {int(zero.argmax())}"
        raise EmbeddingsError(
            f"{what} embedding {int(zero.argmax())} is all zeros; such embeddings cannot be ranked",
            name=name,
        )


def rank_all(
    queries: np.ndarray,
    candidates: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    exclude: np.ndarray | None = None,
    n_relevant: np.ndarray | None = None,
) -> Rankings:
    """Ranks, R-Precision and average precision of every query, from one pass over the similarities.

    R-Precision and mAP@R are those of Musgrave et al., A Metric Learning Reality Check (ECCV 2020), section 4.

    Args:
        queries: float ``[n, d]``; similarities are dot products in float32, in float64 if given so.
        candidates: float ``[m, d]``.
        indptr: int64 ``[n + 1]``; query i's relevant candidates are ``indices[indptr[i]:indptr[i + 1]]``.
        indices: int64, none twice for a query.
        exclude: int64 ``[n]`` or ``None``: the query's own position among the candidates.
        n_relevant: int64 ``[n]``: R, where relevant items exist that are no candidates; ``None``: as many as given.

    Raises:
        EmbeddingsError: If an embedding is not finite, or has no dot products that can be ranked.
    """
    sizes = np.diff(indptr) if n_relevant is None else n_relevant
    figures = np.zeros((4, len(queries)))

    def ranked(a: int, scores: np.ndarray) -> RankBounds:
        part = slice(a, a + len(scores))
        bounds = indptr[a : a + len(scores) + 1]
        best = block_bounds(scores, bounds, indices, None if exclude is None else exclude[part])
        rows = np.repeat(np.arange(len(scores)), np.diff(bounds))
        figures[:, part] = _precisions(scores, rows, indices[bounds[0] : bounds[-1]], sizes[part])
        return best

    best = join_bounds(over_blocks(ranked, queries, candidates))
    n_candidates = max(0, len(candidates) - (exclude is not None))
    return Rankings(best, n_candidates, Bounds(*figures[:2]), Bounds(*figures[2:]))


def _precisions(
    scores: np.ndarray, rows: np.ndarray, columns: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """R-Precision and average precision of a block of queries, each with ties counted for and against it.

    Args:
        scores: float ``[n, m]``.
        rows: int64 ``[p]``: query of each relevant pair, ascending.
        columns: int64 ``[p]``: its candidate.
        sizes: int64 ``[n]``: R.

    Returns:
        float64 ``[4, n]``.
    """
    n, m = scores.shape
    out = np.zeros((4, n))
    depth = np.minimum(sizes, m)
    if not len(rows):
        return out
    # Candidates are put into groups. A query's R-th largest group maximum is no larger than its R-th largest score:
    # only candidates from it on can be among the first R, and none that ties with one of them is lost.
    groups = min(m, max(_GROUPS, 4 * int(depth.max())))
    maxima = scores[:, : m // groups * groups].reshape(n, -1, groups).max(axis=1)
    maxima.sort(axis=1)
    least = maxima[np.arange(n), groups - np.maximum(depth, 1)]
    row, column = np.divmod(np.flatnonzero(scores >= least[:, None]), m)
    relevant = np.zeros((n, m), bool)
    relevant[rows, columns] = True
    hit, score = relevant[row, column], scores[row, column]
    starts = np.searchsorted(row, np.arange(n))
    for side, first in enumerate((~hit, hit)):  # of equal scores, False comes first
        order = np.lexsort((first, -score, row))
        rank = np.arange(len(row)) - starts[row]
        counts = hit[order] & (rank < depth[row])
        so_far = np.cumsum(counts)
        so_far -= (so_far - counts)[starts[row]]
        out[side] = np.bincount(row, counts, n)
        out[2 + side] = np.bincount(row, counts * so_far / (rank + 1), n)
    return out / np.maximum(sizes, 1)
