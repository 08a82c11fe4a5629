import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cusa.data.errors import CusaError, EmbeddingsError
from cusa.eval.evaluators.retrieval.measure import (
    cross_modal_recalls,
    cross_modal_recalls_from_scores,
    uni_modal_recalls,
)
from cusa.eval.metrics.by_class import image_retrieval
from cusa.eval.metrics.caption_images import cross_modal_relevance
from cusa.eval.metrics.full_ranking import rank_all
from cusa.eval.metrics.score_matrix import ScoreMatrix
from tests.helpers import GOLDEN, Fault, fault_of

ITM = json.loads((GOLDEN / "itm.json").read_text())
IMAGES = json.loads((GOLDEN / "imgret.json").read_text())


@pytest.mark.parametrize("name", ITM)
def test_golden_cross_modal(name):
    case = ITM[name]
    data = np.load(GOLDEN / case["file"], allow_pickle=False)
    found = cross_modal_recalls_from_scores(data["scores_i2t"], data["scores_t2i"], data["txt2img"])
    got = {"r_mean": found["mean"]}
    for ours, theirs in (("i2t", "txt"), ("t2i", "img")):
        got |= {f"{theirs}_r{k}": found[ours][f"r{k}"] for k in (1, 5, 10)}
        got[f"{theirs}_r_mean"] = found[ours]["mean"]
    assert got == pytest.approx(case["unrounded"], rel=1e-12)
    assert found["rsum"] == pytest.approx(6 * case["unrounded"]["r_mean"])
    i2t, t2i = cross_modal_relevance(data["txt2img"], case["n_images"])
    for which, parts in (("i2t", i2t), ("t2i", t2i)):
        for side in ScoreMatrix(data[f"scores_{which}"]).rank_best("i2t", *parts):
            np.testing.assert_array_equal(side, data[f"rank_{which}"])


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("norm", ["l2norm", "raw"])
def test_golden_image_retrieval(name, norm):
    case = IMAGES[name]
    data = np.load(GOLDEN / case["file"], allow_pickle=False)
    if case["kind"] == "single_set":
        args = (data["embeddings"], data["labels"])
    else:
        args = (data["query"], data["query_labels"], data["gallery"], data["gallery_labels"])
    found = image_retrieval(*args, normalize=norm == "l2norm")
    assert found["r1"] == pytest.approx(case["reference_r1_percent"][norm], rel=1e-9)
    want = case["pml"][norm]
    assert found["precision_at_1"] == pytest.approx(100 * want["precision_at_1"], rel=1e-9)
    assert found["r_precision"] == pytest.approx(100 * want["r_precision"], rel=1e-9)
    assert found["map_at_r"] == pytest.approx(100 * want["mean_average_precision_at_r"], rel=1e-9)
    assert found["queries_with_positive"] == case["brute_float64"][norm]["n_queries_with_positive"]


def test_a_hand_made_split():
    """Two images, three captions; caption 1 is nearer to the wrong image."""
    images = np.array([[1.0, 0.0], [0.0, 1.0]])
    texts = np.array([[0.9, 0.1], [0.4, 0.6], [0.1, 0.8]])
    found = cross_modal_recalls(images, texts, np.array([0, 0, 1]))
    assert found["i2t"] == {
        **{"r1": 100, "r5": 100, "r10": 100, "mean": 100, "median_rank": 1, "mean_rank": 1},
        **{
            "queries": 2,
            "candidates": 3,
            "tied": 0,
            "curve": {"k": [1, 2, 3], "recall": [100, 100, 100]},
        },
    }
    assert found["t2i"]["r1"] == pytest.approx(200 / 3)
    assert (found["t2i"]["median_rank"], found["t2i"]["mean_rank"]) == (1, pytest.approx(4 / 3))
    assert found["t2i"]["curve"] == {"k": [1, 2], "recall": [pytest.approx(200 / 3), 100]}
    assert found["t2i"]["queries"] == 3
    assert found["rsum"] == pytest.approx(300 + 200 / 3 + 200)
    t2t = uni_modal_recalls(texts, np.array([0, 0, 1]))
    assert (t2t["r1"], t2t["queries"], t2t["candidates"]) == (
        50.0,
        2,
        2,
    )  # caption 2 is alone and does not count


def test_an_image_without_captions_is_a_miss_and_collapse_scores_nothing():
    found = cross_modal_recalls(np.eye(3), np.eye(3)[:2], np.array([0, 1]))
    assert found["i2t"]["r1"] == pytest.approx(200 / 3)
    same = np.ones((30, 4))
    collapsed = cross_modal_recalls(same, same, np.arange(30))
    assert collapsed["rsum"] == 0  # all similarities are equal, and ties count against the model
    assert collapsed["i2t"]["tied"] == 30
    assert cross_modal_recalls(same, same, np.arange(30), ties="optimistic")["rsum"] == 600
    between = cross_modal_recalls(same, same, np.arange(30), ties="mean")
    assert (between["rsum"], between["i2t"]["mean_rank"]) == (300, 15.5)


def _loop_precisions(scores, relevant, n_relevant, ties_first):
    """R-Precision and average precision of one query; of equal scores, relevant ones come first or
    last.
    """
    order = sorted(range(len(scores)), key=lambda c: (-scores[c], (c in relevant) != ties_first))[
        :n_relevant
    ]
    hits = [c in relevant for c in order]
    precisions = [sum(hits[: k + 1]) / (k + 1) for k in range(len(hits)) if hits[k]]
    return (sum(hits) / n_relevant, sum(precisions) / n_relevant) if n_relevant else (0, 0)


@settings(max_examples=100)
@given(st.data())
def test_precisions_equal_explicit_loops_ties_included(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    m = data.draw(st.sampled_from([1, 9, 40, 700]))
    coarse = data.draw(st.booleans())
    queries, candidates = (
        rng.integers(-2, 3, (n, 2)) if coarse else rng.normal(size=(n, 3)) for n in (6, m)
    )
    relevant = [
        sorted(rng.choice(m, rng.integers(0, min(m, 12) + 1), replace=False).tolist())
        for _ in range(6)
    ]
    missing = rng.integers(0, 3, 6) * data.draw(st.booleans())
    sizes = np.array([len(r) for r in relevant]) + missing
    indptr = np.concatenate([[0], np.cumsum([len(r) for r in relevant])])
    indices = np.array([c for r in relevant for c in r], np.int64)
    found = rank_all(
        queries, candidates, indptr, indices, n_relevant=sizes if missing.any() else None
    )
    scores = (queries @ candidates.T).tolist()
    for side, ties_first in enumerate((True, False)):
        want = [
            _loop_precisions(s, set(r), n, ties_first)
            for s, r, n in zip(scores, relevant, sizes, strict=True)
        ]
        np.testing.assert_allclose(found.r_precision[side], [w[0] for w in want], rtol=1e-12)
        np.testing.assert_allclose(found.average_precision[side], [w[1] for w in want], rtol=1e-12)


def test_image_retrieval_by_hand():
    """On a line: the items at 0, 1, 3 and 7, of the classes a, b, a, a; no class of one."""
    found = image_retrieval(
        np.array([[0.0], [1.0], [3.0], [7.0]]), np.array(list("abaa")), normalize=False
    )
    # Of 0: b, a, a. Of 3: b, a at 0 before a at 7. Of 7: a at 3, b at 1. b is alone.
    assert found["r1"] == 25  # the query without a positive is a miss
    assert found["precision_at_1"] == pytest.approx(100 / 3)
    assert found["r_precision"] == pytest.approx(100 * (1 / 2 + 1 / 2 + 1 / 2) / 3)
    assert found["map_at_r"] == pytest.approx(100 * (1 / 4 + 1 / 4 + 1 / 2) / 3)
    assert (found["queries"], found["queries_with_positive"], found["candidates"]) == (4, 3, 3)


def test_a_copy_of_the_query_is_a_candidate_the_query_is_not():
    """Self is left out by number, not as the first of the ranking: a copy with another label counts
    against it.
    """
    embeddings = np.array([[1.0, 0], [1.0, 0], [0.9, 0.1], [0, 1]])
    found = image_retrieval(embeddings, np.array([0, 1, 0, 1]))
    assert found["r1"] == 0
    assert image_retrieval(embeddings, np.array([0, 0, 1, 1]))["r1"] == 75


def test_bad_embeddings():
    with pytest.raises(CusaError) as refused:
        image_retrieval(np.full((3, 2), np.nan), np.zeros(3, int))
    assert fault_of(refused.value) == Fault(EmbeddingsError, name="query 0")
    holed = np.eye(3)
    holed[1] = 0
    with pytest.raises(CusaError) as refused:
        cross_modal_recalls(np.eye(3), holed, np.arange(3))
    assert fault_of(refused.value) == Fault(EmbeddingsError, name="text 1")
    with pytest.raises(CusaError) as refused:
        uni_modal_recalls(holed, np.zeros(3, int))
    assert fault_of(refused.value) == Fault(EmbeddingsError, name="query 1")
    with pytest.raises(CusaError) as refused:
        image_retrieval(holed, np.zeros(3, int))
    assert fault_of(refused.value) == Fault(EmbeddingsError, name="query 1")
    assert (
        image_retrieval(holed, np.zeros(3, int), normalize=False)["r1"] == 100
    )  # a point like any other
    with pytest.raises(CusaError) as refused:
        image_retrieval(np.eye(2), np.arange(2), gallery=np.eye(2))
    assert fault_of(refused.value) == Fault(EmbeddingsError, name="gallery_labels")
    with pytest.raises(CusaError) as refused:
        cross_modal_recalls_from_scores(np.full((2, 2), np.nan), np.eye(2), np.arange(2))
    place = "row 0, column 0"
    assert fault_of(refused.value) == Fault(EmbeddingsError, name="scores", location=place)
    texts = np.array(["a", "b", "a"])
    assert image_retrieval(np.eye(3), texts) == image_retrieval(np.eye(3), np.array([-1, 5, -1]))
    with pytest.raises(CusaError) as refused:
        image_retrieval(np.ones((3, 2)), np.zeros(2, int))
    assert fault_of(refused.value) == Fault(EmbeddingsError, name="labels")
