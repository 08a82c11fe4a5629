"""Approximate search beside the exact one."""

import numpy as np
import pytest

from cusa.eval.evaluators.retrieval.measure import cross_modal_recalls
from cusa.eval.metrics.by_class import image_retrieval
from cusa.eval.metrics.ranks import cross_modal_relevance
from cusa.eval.metrics.relevance import same_group
from cusa.eval.search.approximate import recall_of_exact, search_approximately
from tests.helpers import unit_rows


def test_recall_of_exact_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    found = np.stack([rng.permutation(20)[:6] for _ in range(30)])
    exact = np.stack([rng.permutation(20)[:4] for _ in range(30)])
    found[3, 2:] = -1  # an index may give up
    exact[4, 3] = -1  # and there may be fewer than asked for
    shared = sum(
        len(set(f) & set(e) - {-1}) for f, e in zip(found.tolist(), exact.tolist(), strict=True)
    )
    assert recall_of_exact(found, exact) == pytest.approx(100 * shared / (30 * 4 - 1))
    assert recall_of_exact(exact, exact) == 100
    assert recall_of_exact(np.full((2, 3), -1), np.full((2, 3), -1)) is None


def _clustered(n, clusters, dim=16):
    """Rows around centres: of such are lists of neighbours made."""
    group = np.arange(n) % clusters
    rows = unit_rows(clusters, dim, 1)[group] + 0.4 * unit_rows(n, dim, 2)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), group


@pytest.mark.parametrize(
    ("kind", "settings"), [("hnsw", {"ef_search": 128}), ("ivf", {"lists": 51, "probed": 8})]
)
def test_two_thousand_rows(kind, settings):
    images, of = _clustered(2_000, 50)
    texts = images + 0.7 * unit_rows(2_000, 16, 3)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    _, t2i = cross_modal_relevance(np.arange(2_000), 2_000)
    found, used = search_approximately(texts, images, *t2i, kind=kind)
    assert settings.items() <= used.items()
    assert found["recall_of_exact_top10"] > 90
    exact = cross_modal_recalls(images, texts, np.arange(2_000))["t2i"]
    assert 20 < exact["r1"] < exact["r10"] < 99
    for k in ("r1", "r5", "r10"):
        assert found[k] == pytest.approx(
            exact[k], abs=10 - found["recall_of_exact_top10"] / 10 + 0.5
        )
    groups = same_group(of)
    alike, _ = search_approximately(images, images, *groups, np.arange(2_000), kind=kind)
    assert alike["r1"] == pytest.approx(image_retrieval(images, of)["r1"], abs=1)
    assert alike["recall_of_exact_top10"] > 90


def test_the_query_is_not_among_its_hits():
    """Pairs of copies: the other copy is the first hit, be it before the query or after it."""
    rows = np.repeat(unit_rows(40, 8, 0), 2, axis=0)
    pairs = same_group(np.repeat(np.arange(40), 2))
    for kind in ("hnsw", "ivf"):
        found, _ = search_approximately(rows, rows, *pairs, np.arange(80), kind=kind)
        assert found["r1"] == 100
        lonely, _ = search_approximately(
            rows, rows, *same_group(np.arange(80)), np.arange(80), kind=kind
        )
        assert [lonely[k] for k in ("r1", "r5", "r10")] == [0, 0, 0]


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize("n", [1, 2, 5, 11])
def test_tiny_galleries(n, kind):
    """Fewer candidates than hits asked for: all are found, and exact figures come out."""
    rows = unit_rows(n, 4, n)
    texts = rows[::-1].copy()
    i2t, _ = cross_modal_relevance(np.arange(n), n)
    found, _ = search_approximately(rows, texts, *i2t, kind=kind)
    exact = cross_modal_recalls(rows, texts, np.arange(n))["i2t"]
    assert found == pytest.approx(
        {**{k: exact[k] for k in ("r1", "r5", "r10")}, "recall_of_exact_top10": 100}
    )
    last = (
        np.minimum(np.arange(n + 1), 1),
        np.array([n - 1]),
    )  # the first query's alone: what is no hit is not it
    found, _ = search_approximately(rows, rows, *last, kind=kind)
    assert found["r10"] == pytest.approx(100 / n) or n > 10
    alike, _ = search_approximately(
        rows, rows, *same_group(np.zeros(n, int)), np.arange(n), kind=kind
    )
    assert alike["r1"] == (100 if n > 1 else 0)
    assert alike["recall_of_exact_top10"] == (100 if n > 1 else None)


def test_queries_whose_item_is_missing_are_misses():
    """The second of three images could not be read: its text has nothing to find."""
    images, texts = np.eye(3, dtype=np.float32)[[0, 2]], np.eye(3, dtype=np.float32)
    i2t, t2i = cross_modal_relevance(np.array([0, -1, 1]), 2)
    for kind in ("hnsw", "ivf"):
        assert search_approximately(texts, images, *t2i, kind=kind)[0]["r1"] == pytest.approx(
            200 / 3
        )
        assert search_approximately(images, texts, *i2t, kind=kind)[0]["r1"] == 100
