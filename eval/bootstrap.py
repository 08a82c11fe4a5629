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


def resampled_means(values: Mapping[str, np.ndarray], bootstrap: Bootstrap, stream: str = "") -> dict[str, np.ndarray]:
    """Means over queries drawn with replacement, as many as there are (Efron 1979).

    Args:
        values: Per metric float64 ``[n]``, each query's part.
        bootstrap: How.
        stream: Metrics of the same stream and n are resampled together, those of others independently.

    Returns:
        Per metric float64 ``[samples]``; empty without queries.
    """
    names = list(values)
    n = len(values[names[0]]) if names else 0
    if not n or not bootstrap.samples:
        return {name: np.zeros(0) for name in names}
    columns = np.stack([values[name] for name in names], axis=1)
    rng = _generator(bootstrap, stream, n)
    means = np.stack(
        [np.bincount(rng.integers(n, size=n), minlength=n) @ columns / n for _ in range(bootstrap.samples)]
    )
    return {name: means[:, i] for i, name in enumerate(names)}


def resampled(statistic: Statistic, n: int, bootstrap: Bootstrap, stream: str = "") -> np.ndarray:
    """Any statistic over resampled queries: float64 ``[samples]``.

    Args:
        statistic: Takes numbers of queries, int64 ``[n]``.
        n: Queries.
        bootstrap: How.
        stream: As in :func:`resampled_means`.
    """
    rng = _generator(bootstrap, stream, n)
    return np.array([statistic(rng.integers(n, size=n)) for _ in range(bootstrap.samples if n else 0)])


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


def _generator(bootstrap: Bootstrap, stream: str, n: int) -> np.random.Generator:
    return np.random.default_rng([bootstrap.seed, n, *stream.encode()])
