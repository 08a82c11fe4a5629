"""Ranks and precisions of each query of a retrieval task; every metric is a mean of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from cusa.data.errors import EmbeddingsError, SettingError
from cusa.eval.metrics.bootstrap import Bootstrap, resampled_means
from cusa.eval.metrics.ranks import RankBounds
from cusa.eval.metrics.recalls import (
    CUTS,
    is_hit,
    recall_name,
    recall_sum,
)
from cusa.eval.metrics.similarity_blocks import ranking_dtype

Ties = Literal["pessimistic", "mean", "optimistic"]
TIES: tuple[Ties, ...] = get_args(Ties)
# Cut-offs k of the recall curve that the report draws.
CURVE = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000)


class Bounds(NamedTuple):
    """A value of each query, float64 ``[n]``, with ties counted for it and against it."""

    optimistic: np.ndarray
    pessimistic: np.ndarray


@dataclass(frozen=True)
class Rankings:
    """Rankings of one task.

    Attributes:
        best: Rank of each query's best relevant candidate; -1 for a query that has none.
        candidates: Number of candidates of each query.
        r_precision: For R relevant candidates, the share of them within the first R, 0 to 1; 0 for
            a query without any. ``None`` if not computed.
        average_precision: Average precision within the first R, 0 to 1, whose mean is mAP@R;
            ``None`` if not computed.
        clusters: int64 ``[n]``: the cluster of each query, such as a caption's image; ``None`` if
            queries are independent.
    """

    best: RankBounds
    candidates: int
    r_precision: Bounds | None = None
    average_precision: Bounds | None = None
    clusters: np.ndarray | None = None
    _resampled: dict[tuple[Ties, Bootstrap], dict[str, np.ndarray]] = field(
        default_factory=dict,
        init=False,
        repr=False,
        compare=False,
    )

    def answerable(self) -> Rankings:
        """Return the rankings of the queries that have a relevant candidate."""
        has_relevant = self.best.optimistic >= 0
        if has_relevant.all():
            return self
        return Rankings(
            RankBounds(*(ranks[has_relevant] for ranks in self.best)),
            self.candidates,
            _selected(self.r_precision, has_relevant),
            _selected(self.average_precision, has_relevant),
            None if self.clusters is None else self.clusters[has_relevant],
        )

    def values(self, ties: Ties) -> dict[str, np.ndarray]:
        """Return the values of each query, of which the metrics are the means.

        Args:
            ties: How equal similarities count: ``"optimistic"`` (for the query) or
                ``"pessimistic"`` (against it); ``"mean"`` averages a query's two values.

        Returns:
            Percent, float64 ``[n]``, by metric: ``r1``, ``r5`` and ``r10``; ``r_precision`` and
            ``map_at_r`` if they were computed.

        Raises:
            SettingError: If ``ties`` is unknown.
        """
        check_ties(ties)
        values: dict[str, np.ndarray] = {}
        for cut in CUTS:
            values[recall_name(cut)] = self._hits(cut, ties)
        precisions = {
            "r_precision": self.r_precision,
            "map_at_r": self.average_precision,
        }
        for name, bounds in precisions.items():
            if bounds is not None:
                percentages = [100.0 * shares for shares in bounds]
                values[name] = by_ties(Bounds(*percentages), ties)
        return values

    def resampled(self, ties: Ties, bootstrap: Bootstrap) -> dict[str, np.ndarray]:
        """Resample each metric of :meth:`values` and ``mean``, the mean of the recalls.

        They are computed once for each rule for ties and bootstrap, so that a model's own intervals
        and its differences from another model come from the same samples.

        Returns:
            Percent, float64 ``[samples]``, by metric.
        """
        key = ties, bootstrap
        if key not in self._resampled:
            values = self.values(ties)
            # Resampled together, the mean shares the draws of its recalls.
            values["mean"] = recall_sum([values]) / len(CUTS)
            self._resampled[key] = resampled_means(values, bootstrap, self.clusters)
        return self._resampled[key]

    def summary(self, ties: Ties) -> dict[str, Any]:
        """Compute the metrics, as metrics.json holds them.

        Args:
            ties: As for :meth:`values`.

        Returns:
            The metrics of :meth:`values` and ``mean``, the mean of the recalls, in percent;
            ``median_rank`` and ``mean_rank``, 1 being first, over the queries that have a relevant
            candidate; the counts ``queries``, ``candidates`` and ``tied``, the queries whose rank
            depends on the rule for ties; and ``curve``, the lists ``k`` and ``recall``. Without any
            query there is no curve, and all but the counts are ``None``.
        """
        values = self.values(ties)
        counts = {
            "queries": len(self.best.optimistic),
            "candidates": self.candidates,
        }
        # A mean over no query is unknown, not zero.
        if not counts["queries"]:
            unknown = dict.fromkeys((*values, "mean", "median_rank", "mean_rank"))
            return {**unknown, **counts, "tied": 0}

        figures: dict[str, Any] = {}
        for name, query_values in values.items():
            figures[name] = float(query_values.mean())
        figures["mean"] = recall_sum([figures]) / len(CUTS)

        ranks_from_one = [1.0 + ranks[ranks >= 0] for ranks in self.best]
        ranks_by_ties = by_ties(Bounds(*ranks_from_one), ties)
        figures["median_rank"] = figures["mean_rank"] = None
        if len(ranks_by_ties):
            figures["median_rank"] = float(np.median(ranks_by_ties))
            figures["mean_rank"] = float(ranks_by_ties.mean())

        figures |= counts
        is_tied = self.best.optimistic != self.best.pessimistic
        figures["tied"] = int(np.count_nonzero(is_tied))
        # Beyond the number of candidates, recall is the same at every cut.
        cuts = [cut for cut in CURVE if cut <= self.candidates]
        recalls: list[float] = []
        for cut in cuts:
            recalls.append(float(self._hits(cut, ties).mean()))
        figures["curve"] = {"k": cuts, "recall": recalls}
        return figures

    def _hits(
        self,
        cut: int,
        ties: Ties,
    ) -> np.ndarray:
        """Return 100 for each query that is a hit at a cut, else 0: float64 ``[n]``."""
        hits = [100.0 * is_hit(ranks, cut) for ranks in self.best]
        return by_ties(Bounds(*hits), ties)


def _selected(
    bounds: Bounds | None,
    is_selected: np.ndarray,
) -> Bounds | None:
    if bounds is None:
        return None
    return Bounds(*(values[is_selected] for values in bounds))


def by_ties(
    bounds: Bounds,
    ties: Ties,
) -> np.ndarray:
    """Return each query's value by a rule for ties, float64 ``[n]``.

    Args:
        bounds: Values of the queries with ties counted for and against them.
        ties: ``"optimistic"``, ``"pessimistic"``, or ``"mean"`` of the two.
    """
    if ties == "optimistic":
        return bounds.optimistic
    if ties == "pessimistic":
        return bounds.pessimistic
    return (bounds.optimistic + bounds.pessimistic) / 2


def check_ties(ties: str) -> None:
    """Refuse an unknown rule for ties.

    Raises:
        SettingError: If it is not one of :data:`TIES`.
    """
    if ties not in TIES:
        legal = ", ".join(TIES)
        raise SettingError(f"unknown rule for ties {ties!r}; legal: {legal}", name="ties")


def check_rows(
    rows: np.ndarray,
    item_name: str,
) -> None:
    """Refuse an array that does not hold embeddings.

    Args:
        rows: The array.
        item_name: What a row is of, for the error, such as ``"query"``.

    Raises:
        EmbeddingsError: If its shape is not ``[n, d]``, or it does not hold real numbers.
    """
    if rows.ndim != 2:
        raise EmbeddingsError(
            f"{item_name} embeddings of shape {rows.shape} cannot be ranked; give one row each, "
            "[n, d]"
        )
    ranking_dtype(rows)


def refuse_zeros(
    rows: np.ndarray,
    item_name: str,
) -> None:
    """Refuse all-zero embeddings: they tie with everything, so the rule for ties alone ranks them.

    Args:
        rows: float ``[n, d]``.
        item_name: What a row is of, for the error, such as ``"query"``.

    Raises:
        EmbeddingsError: If a row is all zeros.
    """
    is_zero = ~rows.any(axis=1)
    if is_zero.any():
        row = int(is_zero.argmax())
        raise EmbeddingsError(
            f"{item_name} embedding {row} is all zeros and cannot be ranked; leave that item out",
            name=f"{item_name} {row}",
        )
