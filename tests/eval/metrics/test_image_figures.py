"""Image retrieval by class against pytorch-metric-learning's calculator, and what ties count as."""

import numpy as np
import pytest

from cusa.eval.metrics.bootstrap import Bootstrap
from cusa.eval.metrics.by_class import image_figures, image_retrieval, image_search
from cusa.eval.metrics.full_ranking import rank_all
from cusa.eval.metrics.metric_options import Scoring
from tests.helpers import unit_rows

PAIRS = {
    "precision_at_1": "precision_at_1",
    "r_precision": "r_precision",
    "map_at_r": "mean_average_precision_at_r",
}


def _theirs(query, labels, gallery, gallery_labels, same, k):
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    arrays = (torch.from_numpy(x) for x in (query, labels, gallery, gallery_labels))
    calculator = AccuracyCalculator(include=tuple(PAIRS.values()), k=k, device=torch.device("cpu"))
    return calculator.get_accuracy(*arrays, ref_includes_query=same)


@pytest.mark.parametrize("k", [None, "max_bin_count"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("case", ["one set", "gallery"])
def test_equality_with_pytorch_metric_learning(case, normalize, k):
    """Classes of 1 to 60 images; with a gallery, some of the queries' classes are not in it."""
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(40), rng.integers(1, 60, 40))
    labels[:3] = (100, 101, 102)  # alone
    rows = (unit_rows(len(labels), 12, 0) + 0.8 * unit_rows(103, 12, 1)[labels]) * rng.uniform(
        0.5, 2, (len(labels), 1)
    )
    rows = rows.astype(np.float32)
    if normalize:  # theirs ranks by Euclidean distance: of unit rows, that is the order of cosines
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if case == "one set":
        figures = image_retrieval(rows, labels, normalize=normalize)
        expected = _theirs(rows, labels, rows, labels, True, k)
        lonely = sum(np.count_nonzero(labels == label) == 1 for label in labels)
    else:
        of_query = rng.random(len(labels)) < 0.3
        in_gallery = ~of_query & (labels > 4)
        search = rows[of_query], labels[of_query], rows[in_gallery], labels[in_gallery]
        figures = image_retrieval(*search, normalize=normalize)
        expected = _theirs(*search, False, k)
        lonely = sum(label not in labels[in_gallery] for label in labels[of_query])
        assert figures["candidates"] == np.count_nonzero(in_gallery)
    assert lonely > 2
    assert figures["queries"] - figures["queries_with_positive"] == lonely
    for ours, theirs in PAIRS.items():
        assert figures[ours] == pytest.approx(100 * expected[theirs], rel=1e-9), ours
    answered = figures["queries_with_positive"] / figures["queries"]
    assert figures["r1"] == pytest.approx(figures["precision_at_1"] * answered)
    assert 5 < figures["map_at_r"] < figures["r_precision"] < figures["precision_at_1"] < 95


def test_ties_count_as_told():
    """Of the classes a, a, b, all equal: each a ties with its positive and with b, b has none."""
    rows, labels = np.ones((3, 4)), np.array(["a", "a", "b"])
    by_ties = {
        ties: image_retrieval(rows, labels, ties=ties)
        for ties in ("pessimistic", "mean", "optimistic")
    }
    third = 100 / 3
    assert [by_ties[t]["r1"] for t in by_ties] == pytest.approx([0, third, 2 * third])
    assert [by_ties[t]["precision_at_1"] for t in by_ties] == [0, 50, 100]
    assert [by_ties[t]["r_precision"] for t in by_ties] == [0, 50, 100]
    assert [by_ties[t]["map_at_r"] for t in by_ties] == [0, 50, 100]
    assert [by_ties[t]["r5"] for t in by_ties] == pytest.approx([2 * third] * 3)
    assert [by_ties[t]["tied"] for t in by_ties] == [2, 2, 2]


def test_no_query_with_a_positive():
    """Figures over no query are unknown, without an interval; R@1 is zero: all queries miss."""
    rankings = rank_all(*image_search(np.eye(3), np.arange(3)))
    figures = image_figures(rankings, Scoring(bootstrap=Bootstrap(20)))
    assert [figures[k] for k in ("r1", "r10", "precision_at_1", "r_precision", "map_at_r")] == [
        0,
        0,
        None,
        None,
        None,
    ]
    assert (figures["queries"], figures["queries_with_positive"], figures["candidates"]) == (
        3,
        0,
        2,
    )
    assert figures["ci"] == {"r1": [0, 0], "r5": [0, 0], "r10": [0, 0]}
    single = image_retrieval(np.eye(1), np.arange(1))
    assert (single["r1"], single["precision_at_1"], single["candidates"]) == (0, None, 0)


def test_intervals_are_of_the_same_queries_as_the_figures():
    labels = np.repeat(np.arange(30), 3)
    labels[:20] = np.arange(100, 120)  # alone
    rows = unit_rows(90, 6, 3) + unit_rows(120, 6, 4)[labels]
    rankings = rank_all(*image_search(rows, labels))
    figures = image_figures(rankings, Scoring(bootstrap=Bootstrap(400)))
    assert set(figures["ci"]) == {"r1", "r5", "r10", "precision_at_1", "r_precision", "map_at_r"}
    for name, (low, high) in figures["ci"].items():
        assert low < figures[name] < high, name
    plain = image_figures(rankings)
    assert "ci" not in plain
    assert {k: v for k, v in figures.items() if k != "ci"} == plain
