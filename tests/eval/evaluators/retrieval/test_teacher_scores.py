"""The teachers' own figures, against a loop over all pairs; and when a page explains uni-modal
heads by them.
"""

import json

import numpy as np
import pytest

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.records import Dataset
from cusa.data.store.reader import EmbeddingStore
from cusa.eval.evaluators.retrieval.teacher_scores import teacher_scores, teachers_know_less
from cusa.eval.metrics.metric_options import Scoring
from cusa.eval.report.false_negative_pairs import Teachers
from tests.eval import made_up
from tests.helpers import add_teacher, make_store, records, run_ok, settings, unit_rows

N_IMAGES = 9
EYES = unit_rows(N_IMAGES, 5, 3)
EARS = np.repeat(unit_rows(N_IMAGES, 5, 4), 2, axis=0) + 0.8 * unit_rows(2 * N_IMAGES, 5, 5)


@pytest.fixture
def store(tmp_path):
    """Two captions an image, two images a label but for the last; rows that are far
    from perfect.
    """
    index = make_store(tmp_path, {"test": N_IMAGES}, truth=True)
    dataset = Dataset("made-up", tmp_path, {"test": records("test", N_IMAGES)})
    add_teacher(index, dataset, "eyes", settings("image", 5), {"test": EYES})
    add_teacher(index, dataset, "ears", settings("text", 5), {"test": EARS})
    add_teacher(index, dataset, "holes", settings("text", 5), {"test": EARS}, skipped=[3])
    return EmbeddingStore(index)


def _embeddings(image_rows, text_rows):
    """Of some items; a teacher's figures take nothing from them but which items there are."""
    position = {row: place for place, row in enumerate(image_rows)}
    nothing = {"cross": np.zeros((0, 1), np.float32)}
    of_caption = np.array([position.get(row // 2, -1) for row in text_rows])
    return SplitEmbeddings(nothing, nothing, np.array(image_rows), np.array(text_rows), of_caption)


def _unit(rows):
    return rows / np.linalg.norm(rows.astype(float), axis=1, keepdims=True)


def _recall(rows, groups, k):
    """Percent of queries with one of their group among the k most similar others, of those that
    have one.
    """
    hits = []
    for query, group in enumerate(groups):
        others = [place for place in range(len(rows)) if place != query]
        if group < 0 or not any(groups[place] == group for place in others):
            continue
        nearest = sorted(others, key=lambda place: -float(rows[query] @ rows[place]))[:k]
        hits.append(any(groups[place] == group for place in nearest))
    return 100 * np.mean(hits)


@pytest.mark.parametrize("left_out", [(), (2, 5)])
def test_teachers_are_measured_as_a_model_is(store, left_out):
    image_rows = [row for row in range(N_IMAGES) if row not in left_out]
    text_rows = [row for row in range(2 * N_IMAGES) if row not in left_out]
    embeddings = _embeddings(image_rows, text_rows)
    teachers = Teachers(store.embeddings("eyes", "test"), store.embeddings("ears", "test"))
    scores = teacher_scores(teachers, embeddings, store.split("test"), Scoring())
    expected = {
        "t2t": ("ears", _unit(EARS[text_rows].astype(np.float16)), embeddings.caption_image),
        "i2i": ("eyes", _unit(EYES[image_rows].astype(np.float16)), np.array(image_rows) // 2),
    }
    assert scores.keys() == expected.keys()
    for task, (name, rows, groups) in expected.items():
        assert scores[task]["teacher"] == name
        assert scores[task]["candidates"] == len(rows) - 1
        for k in (1, 5, 10):
            assert scores[task][f"r{k}"] == pytest.approx(_recall(rows, list(groups), k))
    assert 0 < scores["t2t"]["r1"] < 100


def test_a_task_without_its_teacher_or_with_rows_missing_is_left_out(store):
    everything = _embeddings(list(range(N_IMAGES)), list(range(2 * N_IMAGES)))
    eyes, holes = store.embeddings("eyes", "test"), store.embeddings("holes", "test")
    split = store.split("test")
    assert list(teacher_scores(Teachers(eyes, holes), everything, split, Scoring())) == ["i2i"]
    assert teacher_scores(Teachers(None, None), everything, split, Scoring()) == {}
    without_it = _embeddings(
        list(range(N_IMAGES)), [row for row in range(2 * N_IMAGES) if row != 3]
    )
    assert list(teacher_scores(Teachers(None, holes), without_it, split, Scoring())) == ["t2t"]


def _metrics(terms, teacher, uni, cross):
    found = made_up.metrics("run", terms, 10.0, 10.0, cross, truth=False)
    found["heads"]["uni"]["unimodal"]["t2t"]["r1"] = uni
    return {**found, "teachers": {"t2t": {"teacher": "minilm", "r1": teacher}}}


USA = ["contrastive", "csa", "usa"]


@pytest.mark.parametrize(
    ("terms", "teacher", "uni", "cross", "explained"),
    [
        (USA, 5.8, 6.5, 12.3, True),
        (["contrastive", "csa"], 5.8, 6.5, 12.3, False),  # nothing was learned from it
        (USA, 5.8, 13.0, 12.3, False),  # the heads are no worse
        (USA, 75.0, 6.5, 12.3, False),  # not for want of the teacher's knowledge
        (USA, None, 6.5, 12.3, False),
    ],
)
def test_uni_modal_heads_are_explained_where_the_teacher_explains_them(
    tmp_path, terms, teacher, uni, cross, explained
):
    metrics = _metrics(terms, teacher, uni, cross)
    line = teachers_know_less(metrics)
    assert bool(line) == explained
    made_up.write(tmp_path / "r.html", [made_up.report("mine", metrics)])
    page = (tmp_path / "r.html").read_text()
    first_screen = page[: page.index("<table>")]
    assert (
        "the teachers know less about this data than the pairs teach" in first_screen
    ) == explained
    if explained:
        assert "\n" not in line
        assert "5.8 for minilm itself, 6.5 for the uni-modal head" in line
        assert "12.3 for the cross-modal head" in line
    assert teachers_know_less({**metrics, "teachers": {}}) == ""


def test_results_hold_the_teachers_figures(tmp_path):
    index = make_store(tmp_path / "data", truth=True)
    args = ("--embeddings", index, "--student", "adapter", "--epochs", 1, "--batch-size", 16)
    run_ok("train", *args, "--run-dir", tmp_path / "run")
    run_ok("eval", "--run", tmp_path / "run", "--bootstrap", 0)
    scores = json.loads((tmp_path / "run" / "eval" / "metrics.json").read_text())["teachers"]
    assert {task: figures["teacher"] for task, figures in scores.items()} == {
        "t2t": "words",
        "i2i": "vision",
    }
    assert scores["t2t"]["r1"] > 90  # made up so that captions of an image are alike
