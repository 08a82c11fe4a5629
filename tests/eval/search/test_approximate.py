"""Approximate indexes."""

import faiss
import numpy as np
import pytest

from cusa.eval.search.approximate import make_index, recall_of_exact
from tests.helpers import unit_rows


def test_recall_of_exact_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    hits = np.stack([rng.permutation(20)[:6] for _ in range(30)])
    exact = np.stack([rng.permutation(20)[:4] for _ in range(30)])
    hits[3, 2:] = -1  # an index may give up
    exact[4, 3] = -1  # and there may be fewer than asked for
    shared = sum(
        len(set(f) & set(e) - {-1}) for f, e in zip(hits.tolist(), exact.tolist(), strict=True)
    )
    assert recall_of_exact(hits, exact) == pytest.approx(100 * shared / (30 * 4 - 1))
    assert recall_of_exact(exact, exact) == 100
    assert recall_of_exact(np.full((2, 3), -1), np.full((2, 3), -1)) is None


def _clustered(n, clusters, dim=16):
    """Rows around centres, as lists of neighbours are made for."""
    centres = unit_rows(clusters, dim, 1)
    return centres[np.arange(n) % clusters] + 0.4 * unit_rows(n, dim, 2)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_two_thousand_rows(kind):
    images = _clustered(2_000, 50)
    texts = images + 0.7 * unit_rows(2_000, 16, 3)
    _, hits = make_index(images, kind).search(texts, 10)
    _, exact_hits = faiss.knn(texts, images, 10, metric=faiss.METRIC_INNER_PRODUCT)
    assert recall_of_exact(hits, exact_hits) > 90


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize("n", [1, 2, 5, 11])
def test_tiny_galleries(n, kind):
    """Fewer candidates than hits asked for: all are found."""
    rows = unit_rows(n, 4, n)
    _, hits = make_index(rows, kind).search(rows, 12)
    assert np.array_equal(np.sort(hits)[:, 12 - n :], np.tile(np.arange(n), (n, 1)))
    assert (np.sort(hits)[:, : 12 - n] == -1).all()
