"""Bootstrap intervals: how far a metric could have come out otherwise, had other such queries been asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95

# A metric over resampled queries: their numbers int64 [n] -> its value.
Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Bootstrap:
    """How to resample.

    Attributes:
        samples: Resamplings; 0: none, and no interval.
        seed: Their seed. Metrics over as many queries are resampled alike, whatever the model, so that differences
            between models are paired.
    """

    samples: int = 1000
    seed: int = 0


NO_BOOTSTRAP = Bootstrap(samples=0)


def resampled_means(
    values: Mapping[str, np.ndarray], bootstrap: Bootstrap, clusters: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Means over queries drawn with replacement, as many as there are (Efron 1979), or over clusters of them.

    Captions of an image are no independent queries: drawn one by one, they would make intervals too narrow.

    Args:
        values: Per metric float64 ``[n]``, each query's part.
        bootstrap: How.
        clusters: int64 ``[n]``: queries of the same cluster are drawn together; ``None``: each by itself. Draws depend
            on the number of clusters alone, so that images and, by image, their captions are drawn alike.

    Returns:
        Per metric float64 ``[samples]``; empty without queries.
    """
    names = list(values)
    n = len(values[names[0]]) if names else 0
    if not n or not bootstrap.samples:
        return {name: np.zeros(0) for name in names}
    columns = np.stack([np.ones(n), *(values[name] for name in names)], axis=1)
    if clusters is not None:
        order = np.argsort(clusters, kind="stable")
        starts = np.flatnonzero(np.diff(clusters[order], prepend=clusters[order[0]] - 1))
        columns = np.add.reduceat(columns[order], starts)
    rng = _generator(bootstrap, len(columns))
    drawn = (
        np.bincount(rng.integers(len(columns), size=len(columns)), minlength=len(columns)) @ columns
        for _ in range(bootstrap.samples)
    )
    means = np.stack([sums[1:] / sums[0] for sums in drawn])
    return {name: means[:, i] for i, name in enumerate(names)}


def resampled(statistic: Statistic, n: int, bootstrap: Bootstrap) -> np.ndarray:
    """Any statistic over resampled queries: float64 ``[samples]``.

    Args:
        statistic: Takes numbers of queries, int64 ``[n]``.
        n: Queries.
        bootstrap: How.
    """
    rng = _generator(bootstrap, n)
    return np.array(
        [statistic(rng.integers(n, size=n)) for _ in range(bootstrap.samples if n else 0)]
    )


def interval(samples: np.ndarray) -> list[float] | None:
    """The 95 % percentile interval ``[low, high]``; ``None`` without samples. NaN is no sample."""
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return None
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def two_sided_p(differences: np.ndarray) -> float:
    """How often resampling turns a difference's sign, twice: a p-value against no difference, at least 1 / samples."""
    n = len(differences)
    tail = min(int(np.count_nonzero(differences <= 0)), int(np.count_nonzero(differences >= 0)))
    return min(1.0, max(2 * tail, 1) / n)


def _generator(bootstrap: Bootstrap, n: int) -> np.random.Generator:
    return np.random.default_rng([bootstrap.seed, n])
