import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cusa.data.errors import EmbeddingsError
from cusa.eval.metrics import pair_scores, similarity_blocks
from cusa.eval.metrics.caption_images import cross_modal_relevance
from cusa.eval.metrics.ranks import (
    rank_bounds,
    two_way_rank_bounds,
)
from cusa.eval.metrics.recalls import recall_at
from cusa.eval.metrics.score_matrix import ScoreMatrix


def _loop(scores, relevant, exclude=None, ties_count=True):
    """The rule, spelled out: irrelevant candidates at least as similar as the best relevant one."""
    ranks = []
    for q, row in enumerate(scores):
        if not relevant[q]:
            ranks.append(-1)
            continue
        best = max(row[c] for c in relevant[q])
        irrelevant = [
            c for c in range(len(row)) if c not in relevant[q] and not (exclude and c == exclude[q])
        ]
        ranks.append(sum(row[c] >= best if ties_count else row[c] > best for c in irrelevant))
    return ranks


@settings(max_examples=100)
@given(st.data())
def test_ranks_equal_the_rule_spelled_out_ties_included(data):
    n, m = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 7))
    values = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=m, max_size=m)
    scores = data.draw(st.lists(values, min_size=n, max_size=n))
    relevant = [sorted(data.draw(st.sets(st.integers(0, m - 1)))) for _ in range(n)]
    indptr = np.concatenate([[0], np.cumsum([len(r) for r in relevant])])
    indices = np.array([c for r in relevant for c in r], np.int64)
    bounds = ScoreMatrix(np.array(scores)).rank_best("i2t", indptr, indices)
    assert bounds.pessimistic.tolist() == _loop(scores, relevant)
    assert bounds.optimistic.tolist() == _loop(scores, relevant, ties_count=False)


def test_a_hand_made_case():
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.2, 0.2], [0.3, 0.8, 0.9]])
    indptr, indices = np.array([0, 1, 2, 2]), np.array([2, 0])
    bounds = ScoreMatrix(scores).rank_best("i2t", indptr, indices)
    assert bounds.pessimistic.tolist() == [1, 2, -1]  # behind one; tied with two; none
    assert bounds.optimistic.tolist() == [1, 0, -1]


def test_blocks_and_exclusion(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(23, 5)).astype(np.float32)
    groups = np.arange(23) // 3
    relevant = [[j for j in range(23) if groups[j] == groups[i] and j != i] for i in range(23)]
    indptr = np.concatenate([[0], np.cumsum([len(r) for r in relevant])])
    indices = np.array([c for r in relevant for c in r])
    want = _loop((x @ x.T).tolist(), relevant, list(range(23)))
    for block in (1, 7 * 23 * 4, 2**20):
        monkeypatch.setattr(similarity_blocks, "_BLOCK_BYTES", block)
        assert rank_bounds(x, x, indptr, indices, np.arange(23)).pessimistic.tolist() == want


def test_recall_counts_unanswerable_queries_as_misses():
    assert recall_at(np.array([0, 3, -1, 9]), 5) == 50.0


def test_embeddings_that_are_not_finite_are_refused():
    x = np.ones((3, 2), np.float32)
    x[1, 0] = np.nan
    with pytest.raises(EmbeddingsError) as refused:
        rank_bounds(x, np.ones((3, 2)), np.arange(4), np.arange(3))
    assert refused.value.name == "query 1"
    with pytest.raises(EmbeddingsError) as refused:
        rank_bounds(np.ones((3, 2)), np.ones((3, 4)), np.arange(4), np.arange(3))
    assert refused.value.name == "candidates"


@settings(max_examples=60)
@given(st.data())
def test_both_ways_in_one_pass_are_each_way_by_itself(data):
    """Few different embeddings, so that ties abound; captions in any order, some with no image."""
    n, m = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 20))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    images, texts = (rng.integers(-1, 2, (size, 2)).astype(np.float32) for size in (n, m))
    caption_image = rng.integers(-1, n, m)
    i2t, t2i = cross_modal_relevance(caption_image, n)
    expected = (*rank_bounds(images, texts, *i2t), *rank_bounds(texts, images, *t2i))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity_blocks, "_BLOCK_BYTES", data.draw(st.sampled_from([1, 2**20])))
        patch.setattr(pair_scores, "_PAIRS_AT_ONCE", data.draw(st.sampled_from([1, 3, 64])))
        both_bounds = two_way_rank_bounds(images, texts, caption_image)
    for ours, theirs in zip((*both_bounds[0], *both_bounds[1]), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("n", "m"), [(3, 5000), (700, 41), (300, 2041)])
def test_counts_that_no_byte_holds(n, m):
    """More than 255 rows or words: all candidates tie, and must all be counted."""
    caption_image = np.arange(m) % n
    i2t, t2i = two_way_rank_bounds(np.ones((n, 2)), np.ones((m, 2)), caption_image)
    n_captions = np.bincount(caption_image, minlength=n)
    np.testing.assert_array_equal(i2t.pessimistic, np.where(n_captions > 0, m - n_captions, -1))
    np.testing.assert_array_equal(i2t.optimistic, np.where(n_captions > 0, 0, -1))
    assert set(t2i.pessimistic) == {n - 1}
    assert set(t2i.optimistic) == {0}


def test_equal_embeddings_tie_wherever_they_stand(monkeypatch):
    """Copies of a caption all over the gallery: their products are the same to the bit."""
    rng = np.random.default_rng(0)
    images, texts = (
        rng.normal(size=(70, 33)).astype(np.float32),
        rng.normal(size=(1001, 33)).astype(np.float32),
    )
    copies = rng.choice(np.arange(1, 1001), 200, replace=False)
    texts[copies] = texts[0]
    caption_image = np.full(1001, -1)
    caption_image[0] = 69
    i2t, t2i = two_way_rank_bounds(images, texts, caption_image)
    assert i2t.pessimistic[69] - i2t.optimistic[69] == 200
    for block in (1, 3000 * 70, 2**20):
        monkeypatch.setattr(similarity_blocks, "_BLOCK_BYTES", block)
        _, t2i = two_way_rank_bounds(np.concatenate([images, images[5:]]), texts, caption_image)
        assert t2i.pessimistic[0] - t2i.optimistic[0] == 1


def test_read_only_and_half_precision_arrays():
    x = np.eye(4, dtype=np.float16)
    x.flags.writeable = False
    assert rank_bounds(x, x, np.arange(5), np.arange(4)).pessimistic.tolist() == [0, 0, 0, 0]
    assert rank_bounds(x[:0], x, np.zeros(1, int), np.zeros(0, int)).pessimistic.tolist() == []
