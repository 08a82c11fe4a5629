"""Lengths, ranges and types of what the public metrics take: right figures, or an error."""

import numpy as np
import pytest

from cusa.data.errors import EmbeddingsError, SettingError
from cusa.eval.evaluators.retrieval.measure import (
    cross_modal_recalls,
    cross_modal_recalls_from_scores,
    uni_modal_recalls,
)
from cusa.eval.metrics.by_class import image_retrieval
from cusa.eval.metrics.metric_options import Scoring
from cusa.eval.metrics.per_query import Rankings
from cusa.eval.metrics.ranks import RankBounds, rank_bounds

EYE = np.eye(3)
PAIRS = np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("caption_image", "location"),
    [
        ([57, 139, 285], "entry 0"),  # ids in place of positions
        ([0, 1, 3], "entry 2"),
        ([0, -2, 1], "entry 1"),
        (np.array([0, 1, 2**63], np.uint64), "entry 2"),
        ([0, 1], ""),
        ([0, 1, 2, 2], ""),
        ([[0, 1, 2]], ""),
        ([0.0, 1.0, 2.0], ""),
        (["0", "1", "2"], ""),
        ([True, False, True], ""),
        (None, ""),
    ],
)
def test_what_is_no_index_of_an_image_is_refused(caption_image, location):
    for measure in (cross_modal_recalls, cross_modal_recalls_from_scores):
        with pytest.raises(EmbeddingsError) as found:
            measure(EYE, EYE, caption_image)
        assert (found.value.name, found.value.location) == ("caption_image", location)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64, np.int64, list])
def test_indices_of_any_integer_type_are_taken(dtype):
    caption_image = PAIRS.tolist() if dtype is list else PAIRS.astype(dtype)
    assert cross_modal_recalls(EYE, EYE, caption_image)["rsum"] == 600
    assert cross_modal_recalls_from_scores(EYE, EYE, caption_image)["rsum"] == 600


def test_a_caption_without_an_image_is_a_candidate_and_a_miss():
    found = cross_modal_recalls(EYE, EYE, np.array([0, 1, -1]))
    assert found["t2i"]["r1"] == pytest.approx(200 / 3)
    assert found["i2t"]["r1"] == pytest.approx(200 / 3)  # the third image has no caption
    assert found["i2t"]["candidates"] == 3


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (3,), (3, 3, 1), (4, 3)])
def test_score_matrices_of_two_sizes_are_refused(shape):
    with pytest.raises(EmbeddingsError) as found:
        cross_modal_recalls_from_scores(EYE, np.zeros(shape), PAIRS)
    assert found.value.name == "scores_t2i"


def test_scores_may_be_integers_but_no_texts():
    scores = np.array([[3, 1, 1], [1, 3, 1], [1, 1, 3]])
    assert cross_modal_recalls_from_scores(scores, scores, PAIRS)["rsum"] == 600
    with pytest.raises(EmbeddingsError):
        cross_modal_recalls_from_scores(scores.astype(str), scores.astype(str), PAIRS)


def test_an_unknown_rule_for_ties_is_refused():
    for measure in (
        lambda: cross_modal_recalls(EYE, EYE, PAIRS, ties="pesimistic"),
        lambda: cross_modal_recalls_from_scores(EYE, EYE, PAIRS, ties="Mean"),
        lambda: uni_modal_recalls(EYE, PAIRS, ties=""),
        lambda: image_retrieval(EYE, PAIRS, ties="average"),
        lambda: Scoring("worst"),
        lambda: Rankings(RankBounds(np.zeros(1, int), np.zeros(1, int)), 1).values("worst"),
    ):
        with pytest.raises(SettingError) as found:
            measure()
        assert found.value.name == "ties"


def test_without_captions_or_images_the_scores_are_null():
    """As docs/METRICS.md says: a score without any query is null; images without captions are
    misses.
    """
    found = cross_modal_recalls(EYE, EYE[:0], [])
    assert (found["rsum"], found["mean"], found["t2i"]["r1"], found["t2i"]["queries"]) == (
        None,
        None,
        None,
        0,
    )
    assert (found["i2t"]["r1"], found["i2t"]["queries"], found["i2t"]["candidates"]) == (0, 3, 0)
    assert cross_modal_recalls(EYE[:0], EYE, [-1, -1, -1])["rsum"] is None
    empty = np.zeros((3, 0))
    assert cross_modal_recalls_from_scores(empty, empty.T, np.zeros(0, int))["rsum"] is None
    assert uni_modal_recalls(EYE[:0], [])["r1"] is None
    assert image_retrieval(EYE[:0], [])["candidates"] == 0


def test_groups_may_be_numbers_beyond_int64():
    """Such as hashes; a negative group is nobody's, and none of these is one."""
    hashes = np.array([2**63, 2**64 - 1, 2**63], np.uint64)
    found = uni_modal_recalls(EYE + 0.1, hashes)
    assert found["queries"] == 2
    assert found == uni_modal_recalls(EYE + 0.1, [0, 1, 0])


@pytest.mark.parametrize(
    "measure",
    [
        lambda: uni_modal_recalls(EYE, [1, 1]),
        lambda: uni_modal_recalls(EYE, [0.5, 1.5, 2.5]),
        lambda: image_retrieval(EYE, [0, 1]),
        lambda: image_retrieval(EYE, [[0], [1], [2]]),
        lambda: image_retrieval(EYE, [0, 1, np.nan]),
        lambda: image_retrieval(EYE, [0, 1, None]),
        lambda: image_retrieval(EYE, ["a", "b", "c"], EYE, [1, 2, 3]),
        lambda: image_retrieval(EYE, PAIRS, EYE[:, :2] + 1, PAIRS),
        lambda: image_retrieval(EYE > 0, PAIRS),
        lambda: image_retrieval(EYE[0], PAIRS),
        lambda: image_retrieval(EYE * 1j, PAIRS),
        lambda: cross_modal_recalls(EYE[0], EYE, PAIRS),
        lambda: cross_modal_recalls(1.0, EYE, PAIRS),
        lambda: cross_modal_recalls(EYE, None, PAIRS),
        lambda: uni_modal_recalls(1.0, PAIRS),
        lambda: cross_modal_recalls(EYE.astype(str), EYE, PAIRS),
    ],
)
def test_what_does_not_fit_is_refused(measure):
    with pytest.raises(EmbeddingsError):
        measure()


def _clusters(size, dtype):
    """Two images of each of two classes, in the four corners of a square, of a given length."""
    directions = np.array([[1.0, 0.05], [1.0, -0.05], [-0.05, 1.0], [0.05, 1.0]])
    return (directions * size).astype(dtype), np.array([0, 0, 1, 1])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (np.float16, 260.0),
        (np.float16, 5e4),
        (np.float32, 1e20),
        (np.float32, 1e-20),
        (np.float32, 1e-36),
        (np.float64, 1e200),
        (np.float64, 1e-200),
    ],
)
def test_the_size_of_embeddings_changes_no_figure(dtype, size, normalize):
    rows, labels = _clusters(size, dtype)
    found = image_retrieval(rows, labels, normalize=normalize)
    assert (found["r1"], found["map_at_r"], found["tied"]) == (100.0, 100.0, 0)


@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_products_that_float32_cannot_hold_are_refused(size):
    """They would be infinite, NaN or zero, and rank anyhow."""
    rows, _ = _clusters(size, np.float32)
    for measure in (
        lambda: cross_modal_recalls(rows, rows, np.arange(4)),
        lambda: rank_bounds(rows, rows, np.arange(5), np.arange(4)),
    ):
        with pytest.raises(EmbeddingsError) as found:
            measure()
        assert found.value.name.startswith("query ")
    assert (
        cross_modal_recalls(rows.astype(np.float64), rows.astype(np.float64), np.arange(4))["rsum"]
        == 600
    )
