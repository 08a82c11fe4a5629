"""Bootstrap intervals: how much a metric would vary with other queries of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95

# A metric over resampled queries: their positions int64 [n] -> its value.
Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Bootstrap:
    """Settings of the resampling.

    Attributes:
        samples: Number of resamplings; 0 means none, and no interval.
        seed: Seed of the draws. Metrics over as many queries are resampled alike, whatever the
            model, so that differences between models are paired.
    """

    samples: int = 1000
    seed: int = 0


NO_BOOTSTRAP = Bootstrap(samples=0)


def resampled_means(
    values: Mapping[str, np.ndarray],
    bootstrap: Bootstrap,
    clusters: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Compute means over queries drawn with replacement, as many as there are (Efron 1979).

    Captions of one image are not independent of each other: drawn one by one, they would make
    intervals too narrow. Queries that belong together are therefore drawn together.

    Args:
        values: Per metric float64 ``[n]``, the value of each query.
        bootstrap: Number of resamplings and seed.
        clusters: int64 ``[n]``: the cluster of each query, which is drawn as a whole; ``None``:
            each query by itself. Draws depend on the number of clusters alone, so that images,
            and captions by image, are drawn alike.

    Returns:
        Per metric float64 ``[samples]``; empty without queries.
    """
    first_column = next(iter(values.values()), ())
    n_queries = len(first_column)
    if not n_queries or not bootstrap.samples:
        return {metric: np.zeros(0) for metric in values}

    # The column of ones counts queries: clusters differ in size, and so do draws of them.
    counts = np.ones(n_queries)
    columns = np.stack([counts, *values.values()], axis=1)
    if clusters is not None:
        columns = _sums_by_cluster(columns, clusters)

    n_units = len(columns)
    generator = _generator(bootstrap, n_units)
    means = np.empty((bootstrap.samples, len(values)))
    for sample in range(bootstrap.samples):
        drawn = generator.integers(n_units, size=n_units)
        times_drawn = np.bincount(drawn, minlength=n_units)
        sums = times_drawn @ columns
        means[sample] = sums[1:] / sums[0]
    return dict(zip(values, means.T, strict=True))


def resampled(
    statistic: Statistic,
    n_queries: int,
    bootstrap: Bootstrap,
) -> np.ndarray:
    """Compute a statistic of any kind over resampled queries: float64 ``[samples]``.

    Args:
        statistic: Function of the positions of the queries drawn, int64 ``[n_queries]``.
        n_queries: Number of queries; without any, there is no sample.
        bootstrap: Number of resamplings and seed.
    """
    n_samples = bootstrap.samples if n_queries else 0
    generator = _generator(bootstrap, n_queries)
    samples = np.empty(n_samples)
    for sample in range(n_samples):
        drawn = generator.integers(n_queries, size=n_queries)
        samples[sample] = statistic(drawn)
    return samples


def interval(samples: np.ndarray) -> list[float] | None:
    """Return the 95 % percentile interval ``[low, high]`` of samples that are not NaN, if any."""
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return None
    tail = (1 - LEVEL) / 2
    quantiles = [tail, (1 + LEVEL) / 2]
    low, high = np.quantile(samples, quantiles)
    return [float(low), float(high)]


def two_sided_p(differences: np.ndarray) -> float:
    """Compute the bootstrap p-value against no difference.

    Args:
        differences: float64 ``[samples]``: the difference in each resampling.

    Returns:
        Twice the share of resamplings in which the difference has the rarer sign; at least
        1 / samples, at most 1.
    """
    # A difference of zero counts on both sides.
    n_not_positive = int(np.count_nonzero(differences <= 0))
    n_not_negative = int(np.count_nonzero(differences >= 0))
    rarer = min(n_not_positive, n_not_negative)
    n_samples = len(differences)
    p_value = max(2 * rarer / n_samples, 1 / n_samples)
    return min(1.0, p_value)


def _sums_by_cluster(
    columns: np.ndarray,
    clusters: np.ndarray,
) -> np.ndarray:
    """Add up the rows of each cluster: ``[n, c]`` -> ``[n_clusters, c]``, clusters ascending."""
    order = np.argsort(clusters, kind="stable")
    ordered = clusters[order]
    another = ordered[0] - 1  # any other than the first
    is_first = np.diff(ordered, prepend=another)
    starts = np.flatnonzero(is_first)
    return np.add.reduceat(columns[order], starts)


def _generator(
    bootstrap: Bootstrap,
    n_drawn: int,
) -> np.random.Generator:
    return np.random.default_rng([bootstrap.seed, n_drawn])
