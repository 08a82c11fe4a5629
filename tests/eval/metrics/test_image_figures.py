"""Image retrieval by class against pytorch-metric-learning's calculator, and what ties count as."""

import numpy as np
import pytest

from cusa.eval.metrics.bootstrap import Bootstrap
from cusa.eval.metrics.by_class import image_figures, image_retrieval, image_search
from cusa.eval.metrics.metric_options import Scoring
from cusa.eval.metrics.per_query import rank_all
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
        found = image_retrieval(rows, labels, normalize=normalize)
        want = _theirs(rows, labels, rows, labels, True, k)
        lonely = sum(np.count_nonzero(labels == own) == 1 for own in labels)
    else:
        of_query = rng.random(len(labels)) < 0.3
        in_gallery = ~of_query & (labels > 4)
        parts = rows[of_query], labels[of_query], rows[in_gallery], labels[in_gallery]
        found = image_retrieval(*parts, normalize=normalize)
        want = _theirs(*parts, False, k)
        lonely = sum(own not in labels[in_gallery] for own in labels[of_query])
        assert found["candidates"] == np.count_nonzero(in_gallery)
    assert lonely > 2
    assert found["queries"] - found["queries_with_positive"] == lonely
    for ours, theirs in PAIRS.items():
        assert found[ours] == pytest.approx(100 * want[theirs], rel=1e-9), ours
    answered = found["queries_with_positive"] / found["queries"]
    assert found["r1"] == pytest.approx(found["precision_at_1"] * answered)
    assert 5 < found["map_at_r"] < found["r_precision"] < found["precision_at_1"] < 95


def test_ties_count_as_told():
    """Of the classes a, a, b, all equal: each a ties with its positive and with b, b has none."""
    rows, labels = np.ones((3, 4)), np.array(["a", "a", "b"])
    of = {
        ties: image_retrieval(rows, labels, ties=ties)
        for ties in ("pessimistic", "mean", "optimistic")
    }
    third = 100 / 3
    assert [of[t]["r1"] for t in of] == pytest.approx([0, third, 2 * third])
    assert [of[t]["precision_at_1"] for t in of] == [0, 50, 100]
    assert [of[t]["r_precision"] for t in of] == [0, 50, 100]
    assert [of[t]["map_at_r"] for t in of] == [0, 50, 100]
    assert [of[t]["r5"] for t in of] == pytest.approx([2 * third] * 3)
    assert [of[t]["tied"] for t in of] == [2, 2, 2]


def test_no_query_with_a_positive():
    """Figures over no query are unknown, without an interval; R@1 is zero: all queries miss."""
    rankings = rank_all(*image_search(np.eye(3), np.arange(3)))
    found = image_figures(rankings, Scoring(bootstrap=Bootstrap(20)))
    assert [found[k] for k in ("r1", "r10", "precision_at_1", "r_precision", "map_at_r")] == [
        0,
        0,
        None,
        None,
        None,
    ]
    assert (found["queries"], found["queries_with_positive"], found["candidates"]) == (3, 0, 2)
    assert found["ci"] == {"r1": [0, 0], "r5": [0, 0], "r10": [0, 0]}
    one = image_retrieval(np.eye(1), np.arange(1))
    assert (one["r1"], one["precision_at_1"], one["candidates"]) == (0, None, 0)


def test_intervals_are_of_the_same_queries_as_the_figures():
    labels = np.repeat(np.arange(30), 3)
    labels[:20] = np.arange(100, 120)  # alone
    rows = unit_rows(90, 6, 3) + unit_rows(120, 6, 4)[labels]
    rankings = rank_all(*image_search(rows, labels))
    found = image_figures(rankings, Scoring(bootstrap=Bootstrap(400)))
    assert set(found["ci"]) == {"r1", "r5", "r10", "precision_at_1", "r_precision", "map_at_r"}
    for name, (low, high) in found["ci"].items():
        assert low < found[name] < high, name
    plain = image_figures(rankings)
    assert "ci" not in plain
    assert {k: v for k, v in found.items() if k != "ci"} == plain
