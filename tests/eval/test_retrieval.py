import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cusa.data.errors import CusaError
from cusa.eval.images import image_retrieval, precision_at_r
from cusa.eval.retrieval import cross_modal_recalls, cross_modal_recalls_from_scores, uni_modal_recalls
from cusa.train.ranks import best_ranks_from_scores, cross_modal_relevance
from tests.helpers import GOLDEN, unit_rows

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
        np.testing.assert_array_equal(best_ranks_from_scores(data[f"scores_{which}"], *parts), data[f"rank_{which}"])


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
    assert found["i2t"] == {"r1": 100, "r5": 100, "r10": 100, "mean": 100, "queries": 2, "candidates": 3}
    assert found["t2i"]["r1"] == pytest.approx(200 / 3)
    assert found["t2i"]["queries"] == 3
    assert found["rsum"] == pytest.approx(300 + 200 / 3 + 200)
    t2t = uni_modal_recalls(texts, np.array([0, 0, 1]))
    assert (t2t["r1"], t2t["queries"], t2t["candidates"]) == (50.0, 2, 2)  # caption 2 is alone and does not count


def test_an_image_without_captions_is_a_miss_and_collapse_scores_nothing():
    found = cross_modal_recalls(np.eye(3), np.eye(3)[:2], np.array([0, 1]))
    assert found["i2t"]["r1"] == pytest.approx(200 / 3)
    same = np.ones((30, 4))
    collapsed = cross_modal_recalls(same, same, np.arange(30))
    assert collapsed["rsum"] == 0  # all similarities are equal, and ties count against the model


def _loop_map_at_r(scores, relevant):
    values = []
    for q, row in enumerate(scores):
        r = len(relevant[q])
        if r:
            order = sorted(range(len(row)), key=lambda c: -row[c])[:r]
            hits = [c in relevant[q] for c in order]
            values.append(sum(sum(hits[: k + 1]) / (k + 1) for k in range(r) if hits[k]) / r)
    return 100 * sum(values) / len(values) if values else None


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000))
def test_map_at_r_equals_explicit_loops(seed):
    rng = np.random.default_rng(seed)
    queries, candidates = unit_rows(6, 3, seed), unit_rows(9, 3, seed + 1)
    relevant = [sorted(rng.choice(9, rng.integers(0, 5), replace=False).tolist()) for _ in range(6)]
    indptr = np.concatenate([[0], np.cumsum([len(r) for r in relevant])])
    found = precision_at_r(queries, candidates, indptr, np.array([c for r in relevant for c in r], np.int64))
    want = _loop_map_at_r((queries @ candidates.T).tolist(), relevant)
    if want is None:
        assert found == {"r_precision": None, "map_at_r": None, "queries": 0}
    else:
        assert found["map_at_r"] == pytest.approx(want)


def test_bad_embeddings():
    with pytest.raises(CusaError, match="not finite"):
        image_retrieval(np.full((3, 2), np.nan), np.zeros(3, int))
    with pytest.raises(CusaError, match="belong together"):
        image_retrieval(np.eye(2), np.arange(2), gallery=np.eye(2))
    with pytest.raises(CusaError, match="NaN or infinity"):
        cross_modal_recalls_from_scores(np.full((2, 2), np.nan), np.eye(2), np.arange(2))
    texts = np.array(["a", "b", "a"])
    assert image_retrieval(np.eye(3), texts) == image_retrieval(np.eye(3), np.array([-1, 5, -1]))
    with pytest.raises(CusaError, match="3 embeddings have 2 labels"):
        image_retrieval(np.ones((3, 2)), np.zeros(2, int))
