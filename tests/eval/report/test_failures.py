"""Worst failures and likely false negatives, on rows small enough to rank by hand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.records import Truth
from cusa.data.store.reader import EmbeddingStore
from cusa.eval.report import false_negative_pairs
from cusa.eval.report.failures import Teachers, likely_false_negatives, worst_failures
from tests.helpers import make_store, unit_rows


def _at(*degrees):
    """Unit vectors in the plane, float32 [n, 2]: the closer the angles, the more similar."""
    angles = np.deg2rad(np.array(degrees, float))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def _cosine(degrees):
    return pytest.approx(np.cos(np.deg2rad(degrees)), abs=1e-6)


class Rows:
    """A teacher's rows in memory."""

    def __init__(self, rows):
        self._rows = rows

    def gather(self, numbers):
        return self._rows[numbers]


def _split(n_images, n_captions, truth=None):
    return SimpleNamespace(
        image_ids=[f"i{n}" for n in range(n_images)],
        image_paths=[f"{n}.jpg" for n in range(n_images)],
        captions=[f"c{n}" for n in range(n_captions)],
        truth=truth,
    )


def _embeddings(images, texts, caption_image):
    return SplitEmbeddings(
        {"cross": images},
        {"cross": texts},
        np.arange(len(images)),
        np.arange(len(texts)),
        np.array(caption_image),
    )


@pytest.fixture
def four():
    """Four images at 0, 10, 40 and 90 degrees with a caption each, at 1, 2, 38 and 12.

    From caption to image the right one is at rank 0, 1, 0, 3; from image to caption at 0, 1, 0, 1.
    """
    return _embeddings(_at(0, 10, 40, 90), _at(1, 2, 38, 12), [0, 1, 2, 3])


def test_the_worst_failures_are_those_whose_answer_comes_last(four):
    found = worst_failures(
        four, _split(4, 4), Path("images"), {"t2i": "cross", "i2t": "cross"}, per_task=3
    )
    # Only two of each task are failures at all.
    assert [(f.task, f.query.text, f.rank) for f in found] == [
        ("t2i", "c3", 3),
        ("t2i", "c1", 1),
        ("i2t", "i1", 1),
        ("i2t", "i3", 1),
    ]
    worst = found[0]
    assert [(h.item.text, h.correct) for h in worst.hits] == [
        ("i1", False),
        ("i0", False),
        ("i2", False),
        ("i3", True),
    ]
    assert worst.answer.item.text == "i3"
    assert worst.answer.item.image_path == Path("images/3.jpg")
    assert worst.answer.similarity == _cosine(78)


def test_of_equal_failures_the_first_comes_first_and_no_more_than_asked_for():
    """Six captions of six images, each nearest to the next image but for two."""
    images = _at(0, 30, 60, 90, 120, 150)
    embeddings = _embeddings(images, images[[1, 2, 3, 4, 4, 5]], range(6))
    found = worst_failures(embeddings, _split(6, 6), Path(), {"t2i": "cross"}, per_task=3)
    assert [(f.query.text, f.rank) for f in found] == [("c0", 2), ("c1", 2), ("c2", 2)]
    assert (
        worst_failures(embeddings, _split(6, 6), Path(), {"i2i": "cross"}, per_task=3) == ()
    )  # no labels, no failure
    assert worst_failures(embeddings, _split(6, 6), Path(), {"t2i": "cross"}, per_task=0) == ()


def test_ranks_of_failures_are_those_of_an_explicit_loop(tmp_path):
    split = EmbeddingStore(make_store(tmp_path, {"test": 30}, truth=True)).split("test")
    images, texts, of = unit_rows(30, 4, 0), unit_rows(60, 4, 1), np.arange(60) // 2
    embeddings = _embeddings(images, texts, of)
    head_of = dict.fromkeys(("i2t", "t2i", "t2t", "i2i"), "cross")
    found = worst_failures(embeddings, split, Path(), head_of, per_task=5)
    groups = {"i": (images, np.arange(30), split.image_ids[:]), "t": (texts, of, split.captions[:])}
    for task in head_of:
        (queries, group, names), (candidates, others, _) = groups[task[0]], groups[task[2]]
        if task == "i2i":
            group = others = np.arange(30) // 2
        ranks = {}
        for q in range(len(queries)):
            scores = candidates @ queries[q]
            right = [
                c
                for c in range(len(candidates))
                if others[c] == group[q] and not (task[0] == task[2] and c == q)
            ]
            best = max(scores[right])
            wrong = [c for c in range(len(candidates)) if others[c] != group[q]]
            ranks[names[q]] = sum(scores[c] >= best for c in wrong)
        shown = [(f.query.text, f.rank) for f in found if f.task == task]
        assert shown == sorted(ranks.items(), key=lambda item: -item[1])[:5]


# Caption n is of image n. Caption 0 finds images 1, 0; caption 2 finds 4, 3, 2; caption 5 finds
# 4, 3, 5; the other three find their own.
MODEL = _embeddings(_at(0, 9, 60, 69, 71, 84), _at(6, 9, 70.2, 69, 71, 74), [0, 1, 2, 3, 4, 5])
PAIRS = {("c0", "i1"), ("c2", "i4"), ("c2", "i3"), ("c5", "i4"), ("c5", "i3")}


def test_only_what_stands_above_the_right_answer_is_looked_at():
    teachers = Teachers(Rows(_at(0, 9, 60, 69, 71, 84)), None)
    found = likely_false_negatives(MODEL, _split(6, 6), teachers, Path("images"), 99)
    assert {(f.caption.text, f.retrieved.text) for f in found} == PAIRS
    assert {(f.caption.text, f.own_image.text) for f in found} == {
        ("c0", "i0"),
        ("c2", "i2"),
        ("c5", "i5"),
    }
    by_pair = {(f.caption.text, f.retrieved.text): f for f in found}
    second = by_pair["c2", "i3"]
    assert (second.rank, second.own_rank) == (1, 2)
    assert (second.similarity, second.own_similarity) == (_cosine(1.2), _cosine(10.2))
    assert (second.image_cosine, second.text_cosine, second.is_true) == (_cosine(9), None, None)
    assert second.closest.text == "c3"
    assert second.retrieved.image_path == Path("images/3.jpg")
    # By the image teacher alone: 9, 9, 11, 13 and 15 degrees apart; of equal ones the more similar
    # comes first.
    assert [(f.caption.text, f.retrieved.text) for f in found] == [
        *[("c2", "i3"), ("c0", "i1"), ("c2", "i4"), ("c5", "i4"), ("c5", "i3")]
    ]


def test_both_teachers_must_agree():
    """The teachers disagree on i0-i1 and i5-i4; c2 with i4 is good for both."""
    image = Rows(
        _at(0, 1, 50, 90, 55, 100)
    )  # pairs: 1, 5 (c2 i4), 40 (c2 i3), 45 (c5 i4), 10 (c5 i3)
    text = Rows(
        _at(0, 80, 30, 70, 33, 34)
    )  # pairs: 80, 3 (c2 i4), 40 (c2 i3), 1 (c5 i4), 36 (c5 i3)
    found = likely_false_negatives(MODEL, _split(6, 6), Teachers(image, text), Path(), 99)
    # Ranks of five, 5 being the most similar. Image: 5, 4, 2, 1, 3. Text: 1, 4, 2, 5, 3. The lower:
    # 1, 4, 2, 1, 3.
    assert [(f.caption.text, f.retrieved.text) for f in found[:3]] == [
        ("c2", "i4"),
        ("c5", "i3"),
        ("c2", "i3"),
    ]
    assert {(f.caption.text, f.retrieved.text) for f in found[3:]} == {("c0", "i1"), ("c5", "i4")}
    assert found[0].text_cosine == _cosine(3)
    assert len(likely_false_negatives(MODEL, _split(6, 6), Teachers(image, text), Path(), 2)) == 2
    assert likely_false_negatives(MODEL, _split(6, 6), Teachers(None, None), Path(), 2) == ()
    assert likely_false_negatives(MODEL, _split(6, 6), Teachers(image, text), Path(), 0) == ()


def test_the_closest_caption_counts_and_two_images_are_shown_once():
    """Two images with three captions each; both of image 0's first captions find image 1."""
    model = _embeddings(_at(0, 20), _at(19, 18, 0, 20, 21, 22), [0, 0, 0, 1, 1, 1])
    text = Rows(_at(0, 40, 0, 90, 44, 36))
    found = likely_false_negatives(model, _split(2, 6), Teachers(None, text), Path(), 99)
    assert [(f.caption.text, f.retrieved.text, f.closest.text) for f in found] == [
        ("c1", "i1", "c4")
    ]
    assert found[0].text_cosine == _cosine(4)  # 4 degrees both to c4 and to c5: the first of them


def test_what_a_teacher_has_no_row_for_is_left_out():
    rows = _at(0, 9, 60, 69, 71, 84)
    rows[4] = np.nan
    found = likely_false_negatives(
        MODEL, _split(6, 6), Teachers(Rows(rows), Rows(_at(*range(6)))), Path(), 99
    )
    assert {(f.caption.text, f.retrieved.text) for f in found} == {
        ("c0", "i1"),
        ("c2", "i3"),
        ("c5", "i3"),
    }


def test_where_the_truth_is_known_it_says_so():
    """Caption 0 is true of images 0 and 1, every other of its own image only."""
    truth = Truth(
        np.zeros(6, np.int64), np.array([0, 2, 3, 4, 5, 6, 7]), np.array([0, 1, 1, 2, 3, 4, 5])
    )
    teachers = Teachers(Rows(_at(0, 9, 60, 69, 71, 84)), None)
    found = likely_false_negatives(MODEL, _split(6, 6, truth), teachers, Path(), 99)
    assert {(f.caption.text, f.retrieved.text) for f in found if f.is_true} == {("c0", "i1")}
    assert {f.is_true for f in found} == {True, False}


def test_rows_are_those_of_the_split_and_blocks_change_nothing(tmp_path, monkeypatch):
    """Image 0 and its caption have no embedding; an explicit loop asks the teachers of a store."""
    store = EmbeddingStore(make_store(tmp_path, {"test": 20}))
    split = store.split("test")
    teachers = Teachers(store.embeddings("vision", "test"), store.embeddings("words", "test"))
    images, texts, of = unit_rows(19, 3, 0), unit_rows(39, 3, 1), np.arange(1, 40) // 2 - 1
    embeddings = SplitEmbeddings(
        {"cross": images}, {"cross": texts}, np.arange(1, 20), np.arange(1, 40), of
    )
    found = likely_false_negatives(embeddings, split, teachers, Path(), 10)
    assert len(found) == 10
    vision, words = (
        t.gather(np.arange(len(t))).astype(np.float64) for t in (teachers.image, teachers.text)
    )
    vision, words = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (vision, words))
    for f in found:
        caption = split.captions[:].index(f.caption.text)
        own, retrieved = (split.image_ids[:].index(i.text) for i in (f.own_image, f.retrieved))
        assert own == caption // 2
        others = [2 * retrieved, 2 * retrieved + 1]
        assert f.image_cosine == pytest.approx(vision[own] @ vision[retrieved], abs=1e-6)
        assert f.text_cosine == pytest.approx(max(words[others] @ words[caption]), abs=1e-6)
        scores = images @ texts[caption - 1]
        assert f.rank == sum(scores > scores[retrieved - 1])
        assert f.own_rank == sum(scores > scores[own - 1])
        assert f.rank < min(f.own_rank, 5)
    monkeypatch.setattr(false_negative_pairs, "_BLOCK", 3)
    assert likely_false_negatives(embeddings, split, teachers, Path(), 10) == found
