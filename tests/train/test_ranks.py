import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cusa.data.errors import CusaError
from cusa.train import ranks as module
from cusa.train.ranks import best_ranks, best_ranks_from_scores, recall_at


def _loop(scores, relevant, exclude=None):
    """The rule, spelled out: how many irrelevant candidates are at least as similar as the best relevant one."""
    out = []
    for q, row in enumerate(scores):
        if not relevant[q]:
            out.append(-1)
            continue
        best = max(row[c] for c in relevant[q])
        others = [c for c in range(len(row)) if c not in relevant[q] and not (exclude and c == exclude[q])]
        out.append(sum(row[c] >= best for c in others))
    return out


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_ranks_equal_the_rule_spelled_out_ties_included(data):
    n, m = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 7))
    values = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=m, max_size=m)
    scores = data.draw(st.lists(values, min_size=n, max_size=n))
    relevant = [sorted(data.draw(st.sets(st.integers(0, m - 1)))) for _ in range(n)]
    indptr = np.concatenate([[0], np.cumsum([len(r) for r in relevant])])
    indices = np.array([c for r in relevant for c in r], np.int64)
    assert best_ranks_from_scores(np.array(scores), indptr, indices).tolist() == _loop(scores, relevant)


def test_a_hand_made_case():
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.2, 0.2], [0.3, 0.8, 0.9]])
    indptr, indices = np.array([0, 1, 2, 2]), np.array([2, 0])
    assert best_ranks_from_scores(scores, indptr, indices).tolist() == [1, 2, -1]  # behind one; tied with two; none


def test_blocks_and_exclusion(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(23, 5)).astype(np.float32)
    groups = np.arange(23) // 3
    relevant = [[j for j in range(23) if groups[j] == groups[i] and j != i] for i in range(23)]
    indptr = np.concatenate([[0], np.cumsum([len(r) for r in relevant])])
    indices = np.array([c for r in relevant for c in r])
    want = _loop((x @ x.T).tolist(), relevant, list(range(23)))
    for block in (1, 7 * 23 * 4, 2**20):
        monkeypatch.setattr(module, "_BLOCK_BYTES", block)
        assert best_ranks(x, x, indptr, indices, np.arange(23)).tolist() == want


def test_recall_counts_unanswerable_queries_as_misses():
    assert recall_at(np.array([0, 3, -1, 9]), 5) == 50.0


def test_embeddings_that_are_not_finite_are_refused():
    x = np.ones((3, 2), np.float32)
    x[1, 0] = np.nan
    with pytest.raises(CusaError, match="query embedding 1 is not finite"):
        best_ranks(x, np.ones((3, 2)), np.arange(4), np.arange(3))
