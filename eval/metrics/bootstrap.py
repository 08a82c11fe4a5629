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
        samples: Number of resamplings; with 0, there are no intervals.
        seed: Seed of the draws. Metrics over equally many queries share their draws, whatever the
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
    """Compute the means of bootstrap samples: n queries drawn with replacement (Efron 1979).

    Captions of one image are not independent of each other: drawn one by one, they would make
    intervals too narrow. Queries that belong together are therefore drawn together.

    Args:
        values: The value of each query, float64 ``[n]``, by metric.
        bootstrap: Number of resamplings and seed.
        clusters: int64 ``[n]``: the cluster of each query, drawn as a whole; ``None`` to draw each
            query by itself. Draws depend only on the seed and the number of clusters.

    Returns:
        The mean in each sample, float64 ``[samples]``, by metric; ``[0]`` without queries.
    """
    n_queries = len(next(iter(values.values()), ()))
    if not n_queries or not bootstrap.samples:
        return {metric: np.zeros(0) for metric in values}

    # The column of ones counts the queries drawn, since clusters differ in size.
    counts = np.ones(n_queries)
    columns = np.stack([counts, *values.values()], axis=1)
    if clusters is not None:
        cluster_ids, cluster_numbers = np.unique(clusters, return_inverse=True)
        sums_by_cluster = np.zeros((len(cluster_ids), columns.shape[1]))
        np.add.at(sums_by_cluster, cluster_numbers, columns)
        columns = sums_by_cluster

    n_units = len(columns)
    generator = np.random.default_rng([bootstrap.seed, n_units])
    means = np.empty((bootstrap.samples, len(values)))
    for sample in range(bootstrap.samples):
        drawn = generator.integers(n_units, size=n_units)
        sums = np.bincount(drawn, minlength=n_units) @ columns
        means[sample] = sums[1:] / sums[0]
    return dict(zip(values, means.T, strict=True))


def resampled(
    statistic: Statistic,
    n_queries: int,
    bootstrap: Bootstrap,
) -> np.ndarray:
    """Compute any statistic over bootstrap samples.

    Args:
        statistic: Function of the positions of the queries drawn, int64 ``[n_queries]``.
        n_queries: Number of queries.
        bootstrap: Number of resamplings and seed.

    Returns:
        float64 ``[samples]``; ``[0]`` without queries.
    """
    n_samples = bootstrap.samples if n_queries else 0
    generator = np.random.default_rng([bootstrap.seed, n_queries])
    samples = np.empty(n_samples)
    for sample in range(n_samples):
        drawn = generator.integers(n_queries, size=n_queries)
        samples[sample] = statistic(drawn)
    return samples


def interval(samples: np.ndarray) -> list[float] | None:
    """Return the 95 % percentile interval ``[low, high]`` of the samples that are not NaN.

    Args:
        samples: float64 ``[samples]``.

    Returns:
        The interval; ``None`` if all samples are NaN, or there are none.
    """
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return None
    tail = (1 - LEVEL) / 2
    quantiles = [tail, (1 + LEVEL) / 2]
    return np.quantile(samples, quantiles).tolist()


def two_sided_p(differences: np.ndarray) -> float:
    """Compute the two-sided bootstrap p-value of the hypothesis that there is no difference.

    Args:
        differences: float64 ``[samples]``, at least one: the difference in each resampling.

    Returns:
        Twice the share of resamplings in which the difference has the rarer sign; at least
        1 / samples, at most 1.
    """
    # A difference of zero counts on both sides.
    n_not_positive = int(np.count_nonzero(differences <= 0))
    n_not_negative = int(np.count_nonzero(differences >= 0))
    rarer = min(n_not_positive, n_not_negative)
    n_extreme = max(2 * rarer, 1)
    return min(1.0, n_extreme / len(differences))
