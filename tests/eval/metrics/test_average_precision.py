"""Average precision over whole rankings."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from cusa.eval.metrics.average_precision import average_precisions


def _relevance(rows):
    indptr = np.cumsum([0, *(len(row) for row in rows)])
    return indptr, np.concatenate([np.asarray(row, np.int64) for row in rows])


def test_without_ties_it_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    queries, candidates = rng.normal(size=(37, 8)), rng.normal(size=(53, 8))
    relevant = [rng.choice(53, size=rng.integers(1, 9), replace=False) for _ in range(37)]
    bounds = average_precisions(queries, candidates, *_relevance(relevant))
    for query in range(37):
        labels = np.isin(np.arange(53), relevant[query])
        expected = average_precision_score(labels, candidates @ queries[query])
        assert bounds.optimistic[query] == pytest.approx(expected)
        assert bounds.pessimistic[query] == pytest.approx(expected)


def test_ties_count_for_the_query_and_against_it():
    """Scores 3, 2, 2, 2, 1: relevant are one of the 2s, another of the 2s, and the 1."""
    candidates = np.array([[3.0], [2.0], [2.0], [2.0], [1.0]])
    bounds = average_precisions(np.ones((1, 1)), candidates, *_relevance([[1, 3, 4]]))
    assert bounds.optimistic[0] == pytest.approx((1 / 2 + 2 / 3 + 3 / 5) / 3)
    assert bounds.pessimistic[0] == pytest.approx((1 / 3 + 2 / 4 + 3 / 5) / 3)


def test_a_query_without_a_relevant_candidate_has_none():
    bounds = average_precisions(np.ones((2, 1)), np.eye(1), *_relevance([[], [0]]))
    assert bounds.pessimistic.tolist() == [0.0, 1.0]
