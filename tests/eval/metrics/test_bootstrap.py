"""Resampled queries: intervals of known cases, and which figures are resampled together."""

import math

import numpy as np
import pytest
from scipy.stats import binom, spearmanr

from cusa.eval.metrics.bootstrap import (
    NO_BOOTSTRAP,
    Bootstrap,
    interval,
    resampled,
    resampled_means,
    two_sided_p,
)
from cusa.eval.metrics.correlation import ScoredPairs, resampled_spearman
from cusa.eval.metrics.metric_options import Scoring, direction_figures, two_way_figures
from cusa.eval.metrics.per_query import Rankings
from cusa.eval.metrics.ranks import RankBounds

SOME = Bootstrap(300)


def test_the_interval_of_a_share_is_the_binomials():
    """The resampled mean of n zeros and ones with share p is binomial(n, p) / n."""
    n, p = 400, 0.3
    values = {"hit": np.repeat([1.0, 0.0], [int(n * p), n - int(n * p)])}
    samples = resampled_means(values, Bootstrap(4000))["hit"]
    assert len(samples) == 4000
    assert samples.mean() == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n / 4000))
    assert samples.std() == pytest.approx(math.sqrt(p * (1 - p) / n), rel=0.05)
    low, high = interval(samples)
    # The samples' own quantiles vary a little: those of 2.5 % lie within the binomial's of 1.8 and
    # 3.3 %.
    assert binom.ppf(0.018, n, p) / n <= low <= binom.ppf(0.033, n, p) / n
    assert binom.ppf(0.967, n, p) / n <= high <= binom.ppf(0.982, n, p) / n


def test_resamples_are_an_explicit_draw():
    values = {"a": np.arange(5.0), "b": np.arange(5.0) ** 2}
    means = resampled_means(values, Bootstrap(7, seed=3))
    drawn = []
    resampled(lambda picked: drawn.append(picked) or 0.0, 5, Bootstrap(7, seed=3))
    for i, picked in enumerate(drawn):
        assert means["a"][i] == pytest.approx(values["a"][picked].mean())
        assert means["b"][i] == pytest.approx(values["b"][picked].mean())
    assert len({tuple(p) for p in drawn}) > 1


def test_which_figures_are_resampled_together():
    rng = np.random.default_rng(0)
    first_model, second_model = {"r1": rng.random(50)}, {"r1": rng.random(50)}
    second_model["r1"][0] = 7
    means = resampled_means(first_model, SOME)["r1"]
    np.testing.assert_array_equal(means, resampled_means(dict(first_model), SOME)["r1"])
    # Paired: the resamples of a sum are the sum of the resamples.
    sums = resampled_means({"r1": first_model["r1"] + second_model["r1"]}, SOME)["r1"]
    np.testing.assert_allclose(sums, means + resampled_means(second_model, SOME)["r1"])
    other_seed = resampled_means(first_model, Bootstrap(300, seed=1))["r1"]
    assert abs(np.corrcoef(means, other_seed)[0, 1]) < 0.25


def test_no_samples_and_no_queries_have_no_interval():
    assert interval(resampled_means({"r1": np.ones(3)}, NO_BOOTSTRAP)["r1"]) is None
    assert interval(resampled_means({"r1": np.ones(0)}, SOME)["r1"]) is None
    assert resampled_means({}, SOME) == {}
    assert len(resampled(lambda picked: 1.0, 0, SOME)) == 0
    assert len(resampled(lambda picked: 1.0, 4, NO_BOOTSTRAP)) == 0
    assert interval(np.array([np.nan, np.nan])) is None
    assert interval(np.array([np.nan, 2.0, np.nan])) == [2.0, 2.0]
    assert interval(np.arange(101.0)) == pytest.approx([2.5, 97.5])


def test_the_p_value_is_twice_the_rarer_sign():
    assert two_sided_p(np.array([1.0] * 97 + [-1.0] * 3)) == pytest.approx(0.06)
    assert two_sided_p(np.array([-1.0] * 97 + [1.0] * 3)) == pytest.approx(0.06)
    assert two_sided_p(np.ones(200)) == 1 / 200  # never zero: more samples might have found one
    assert two_sided_p(np.zeros(200)) == 1
    assert two_sided_p(np.array([1.0, 0.0, 0.0, 1.0])) == 1


def test_intervals_of_a_direction():
    ranks = np.arange(40) % 20
    rankings = Rankings(RankBounds(ranks, ranks), 100)
    plain = direction_figures(rankings)
    assert "ci" not in plain
    figures = direction_figures(rankings, Scoring(bootstrap=SOME))
    assert set(figures["ci"]) == {"r1", "r5", "r10", "mean"}
    for name, (low, high) in figures["ci"].items():
        assert low < figures[name] < high, name
    assert figures["ci"]["r1"][1] < figures["ci"]["r10"][0]
    figures_of_both = two_way_figures({"i2t": rankings, "t2i": rankings}, Scoring(bootstrap=SOME))
    assert figures_of_both["i2t"] == figures
    assert figures_of_both["rsum"] == pytest.approx(6 * figures_of_both["mean"])
    interval_of_mean = figures_of_both["ci"]["mean"]
    assert figures_of_both["ci"]["rsum"] == pytest.approx([6 * bound for bound in interval_of_mean])
    # The same images are drawn in both directions: here these are equal, and so is their mean.
    assert interval_of_mean == pytest.approx(figures["ci"]["mean"])


def test_clusters_are_drawn_whole():
    """Three captions of each image that all succeed or all fail tell no more than one."""
    image_recalls = np.random.default_rng(1).random(60)
    images, captions = np.arange(60), np.repeat(np.arange(60), 3)
    shuffled = np.random.default_rng(2).permutation(180)
    means = resampled_means({"r1": image_recalls}, SOME)["r1"]
    caption_recalls = {"r1": image_recalls[captions][shuffled]}
    clusters = captions[shuffled] * 10 - 7  # numbers of any kind
    clustered = resampled_means(caption_recalls, SOME, clusters)["r1"]
    np.testing.assert_allclose(clustered, means)
    assert resampled_means({"r1": image_recalls[captions]}, SOME)["r1"].std() < 0.8 * means.std()
    np.testing.assert_allclose(resampled_means({"r1": image_recalls}, SOME, images)["r1"], means)


def test_clusters_of_different_sizes_against_an_explicit_draw():
    values, clusters = np.array([1.0, 5.0, 2.0, 8.0]), np.array([4, 9, 4, 4])
    means = resampled_means({"r1": values}, Bootstrap(9, seed=2), clusters)["r1"]
    drawn = []
    resampled(lambda picked: drawn.append(picked) or 0.0, 2, Bootstrap(9, seed=2))
    rows = {0: [0, 2, 3], 1: [1]}
    for mean, picked in zip(means, drawn, strict=True):
        assert mean == pytest.approx(np.mean([values[r] for c in picked for r in rows[c]]))


def test_resampled_correlations():
    rng = np.random.default_rng(4)
    gold = rng.integers(0, 6, 60).astype(float)
    pairs = ScoredPairs(gold + rng.normal(size=60), gold)
    samples = resampled_spearman(pairs, Bootstrap(200))
    picked = []
    resampled(lambda rows: picked.append(rows) or 0.0, 60, Bootstrap(200))
    for rows, value in zip(picked[:5], samples[:5], strict=True):
        assert value == pytest.approx(
            100 * spearmanr(pairs.similarities[rows], gold[rows]).statistic
        )
    low, high = interval(samples)
    assert low < 100 * spearmanr(pairs.similarities, gold).statistic < high
    few = resampled_spearman(
        ScoredPairs(np.array([0.1, 0.2]), np.array([1.0, 2.0])), Bootstrap(200)
    )
    assert set(few[~np.isnan(few)]) == {100.0}
    assert 60 < np.isnan(few).sum() < 140  # one pair drawn twice has no correlation
