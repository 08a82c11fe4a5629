"""Models that give a matrix of scores: the figures of embeddings, and matrices that are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from cusa.data.errors import DataError, EmbeddingsError, FileFormatError, SettingError
from cusa.data.store.reader import EmbeddingStore
from cusa.eval.evaluators.split_scores import split_scores
from cusa.eval.evaluators.splits import EvaluatedSplit
from cusa.eval.metrics import score_matrix
from cusa.eval.metrics.score_matrix import ScoreMatrix
from cusa.eval.metrics.similarities import DotProducts
from cusa.eval.models.scores import ScoreFile, ScoresProvider
from tests.helpers import Fault, make_store, run_fault, run_ok, unit_rows


def _same(first, second):
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("block_bytes", [1, 300, 2**20])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16, ">f4"])
def test_scores_rank_as_the_products_of_the_same_vectors(monkeypatch, block_bytes, dtype):
    """Of small whole numbers, which all of these types hold; many of the products tie."""
    monkeypatch.setattr(score_matrix, "_BLOCK_BYTES", block_bytes)
    rng = np.random.default_rng(0)
    images = rng.integers(-3, 4, (12, 4)).astype(np.float32)
    texts = rng.integers(-3, 4, (31, 4)).astype(np.float32)
    caption_image = rng.integers(-1, 12, 31)
    scores = (images @ texts.T).astype(dtype)
    some_images, some_captions = rng.permutation(12)[:7], rng.permutation(31)[:20]
    for order in ("C", "F"):
        matrix = ScoreMatrix(np.asarray(scores, order=order))
        products = DotProducts(images, texts)
        for ours, theirs in zip(
            matrix.rank_both_ways(caption_image),
            products.rank_both_ways(caption_image),
            strict=True,
        ):
            _same(ours, theirs)
        matrix = matrix.select(some_images, some_captions).select(captions=np.arange(19))
        products = products.select(some_images, some_captions[:19])
        for direction, n_queries, n_candidates in (("i2t", 7, 19), ("t2i", 19, 7)):
            indptr = 2 * np.arange(n_queries + 1)
            indices = (np.arange(2 * n_queries) * 5) % n_candidates
            indices[1::2] = (indices[::2] + 1) % n_candidates
            _same(
                matrix.rank_best(direction, indptr, indices),
                products.rank_best(direction, indptr, indices),
            )
            ours = matrix.rank_all(direction, indptr, indices)
            theirs = products.rank_all(direction, indptr, indices)
            assert ours.candidates == theirs.candidates == n_candidates
            _same(ours.average_precision, theirs.average_precision)
            _same(ours.r_precision, theirs.r_precision)


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_blocks_are_small_also_if_few_of_many_candidates_are_selected(monkeypatch, direction):
    n_bytes = 100 * 8 * torch.get_num_threads()
    monkeypatch.setattr(score_matrix, "_BLOCK_BYTES", n_bytes)
    read = []

    class Read(np.ndarray):
        """An array that tells how much is copied from it."""

        def take(self, positions, axis):
            copied = np.asarray(self).take(positions, axis)
            read.append(copied.nbytes)
            return copied

    scores = np.zeros((50, 50)).view(Read)
    few, queries = np.arange(2), np.arange(30)
    selected = ScoreMatrix(scores).select(queries, few)
    if direction == "t2i":
        selected = ScoreMatrix(scores).select(few, queries)
    selected.rank_best(direction, np.arange(31), np.zeros(30, int))
    assert len(read) == 15
    assert max(read) == 100 * 8


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_named_by_its_place_in_the_file(direction, value):
    scores = np.zeros((4, 6))
    scores[2, 5] = value
    matrix = ScoreMatrix(scores).select(np.array([3, 2]), np.array([1, 5, 0]))
    n_queries = 2 if direction == "i2t" else 3
    indptr, indices = np.arange(n_queries + 1), np.zeros(n_queries, int)
    with pytest.raises(EmbeddingsError) as refused:
        matrix.rank_best(direction, indptr, indices)
    assert refused.value.location == "row 2, column 5"
    # Scores that are not of the split are not looked at.
    ScoreMatrix(scores).select(np.arange(2), np.arange(3)).rank_best("i2t", *[np.arange(3)] * 2)


@pytest.fixture
def split(tmp_path):
    """A split of 8 images and 16 captions, rows of both, and a store that holds it."""
    index = make_store(tmp_path / "store", truth=True)
    view = EmbeddingStore(index).split("test")
    images = unit_rows(view.n_images, 6, seed=1)
    texts = images[np.asarray(view.caption_image)] + unit_rows(view.n_captions, 6, seed=2)
    texts = (texts / np.linalg.norm(texts, axis=1, keepdims=True)).astype(np.float32)
    return index, view, images.astype(np.float32), texts


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _measured(name, *options):
    out = run_ok("eval", "retrieval", "--bootstrap", 50, "--name", name, *options)
    return json.loads(Path("runs", "eval", name, "metrics.json").read_text()), out


def _save_ids(path, ids):
    path.write_text(json.dumps(list(ids)))
    return path


def test_scores_have_the_figures_of_the_embeddings_that_they_are_products_of(split, here):
    index, view, images, texts = split
    for name, rows, ids in (("i", images, view.image_ids), ("t", texts, view.caption_ids)):
        np.save(here / f"{name}.npy", rows)
        _save_ids(here / f"{name}.ids.json", ids)
    data = ("--embeddings", index)
    files = ("--image-embeddings", "i.npy", "--text-embeddings", "t.npy")
    embedded, _ = _measured("embedded", *data, *files)
    scores = images @ texts.T
    np.save(here / "scores.npy", scores)
    save_file({"scores": scores}, here / "scores.safetensors")
    shuffled = np.random.default_rng(0).permutation(16)
    np.save(here / "shuffled.npy", scores[::-1][:, shuffled])
    row_ids = _save_ids(here / "rows.json", list(view.image_ids)[::-1])
    column_ids = _save_ids(here / "columns.json", [view.caption_ids[row] for row in shuffled])
    by_ids = ("--image-ids", row_ids, "--text-ids", column_ids)
    for name, options in {
        "npy": ("--scores", "scores.npy"),
        "safetensors": ("--scores", "scores.safetensors"),
        "shuffled": ("--scores", "shuffled.npy", *by_ids),
    }.items():
        scored, _ = _measured(name, *data, *options)
        assert scored["retrieval"] == embedded["retrieval"]
        assert scored["heads"]["cross"]["truth"] == embedded["heads"]["cross"]["truth"]
        # Absent, not zero.
        assert scored["unimodal"] == scored["heads"]["cross"]["unimodal"] == {}
        assert scored["model"]["kind"] == "scores"
    models = ("runs/eval/embedded", "runs/eval/npy")
    run_ok("eval", "compare", *models, "--bootstrap", 20, "--out", "compared")
    comparison = json.loads((here / "compared" / "comparison.json").read_text())
    assert {row["differences"][1]["difference"] for row in comparison["rows"]} == {0.0}


def test_without_ids_five_captions_of_each_image_are_the_first_ones(split):
    index = split[0]
    no_rows = np.zeros(0, np.int64)

    class Six:
        """A split whose images have six captions each, in turn."""

        n_images, n_captions = 2, 12
        caption_image = np.arange(12) % 2
        image_ids, caption_ids = ["a", "b"], [str(number) for number in range(12)]
        name = "test"

    np.save("scores.npy", np.zeros((2, 10)))
    evaluated = EvaluatedSplit("made-up", Six(), index.parent, no_rows, no_rows)
    provider = ScoresProvider(ScoreFile(Path("scores.npy")), "x")
    scores = split_scores(provider, evaluated)
    assert scores.text_rows.tolist() == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    assert scores.caption_image.tolist() == [0] * 5 + [1] * 5
    assert scores.note


def test_skipped_items_are_left_out_of_a_matrix_of_all_or_of_the_others(split, here):
    index, view, images, texts = split
    skipped = np.array([3])
    evaluated = EvaluatedSplit("made-up", view, index.parent, skipped, np.array([0, 9]))
    np.save("all.npy", images @ texts.T)
    kept = np.delete(np.delete(images @ texts.T, 3, axis=0), [0, 9], axis=1)
    np.save("kept.npy", kept)
    ranks = []
    for name in ("all.npy", "kept.npy"):
        scores = split_scores(ScoresProvider(ScoreFile(here / name), "x"), evaluated)
        assert (len(scores.image_rows), len(scores.text_rows)) == (7, 14)
        ranks.append(scores.similarities.rank_both_ways(scores.caption_image))
    for ours, theirs in zip(*ranks, strict=True):
        _same(ours, theirs)


def test_matrices_that_are_refused(split, here):
    index, _, images, texts = split
    scores = images @ texts.T
    broken = scores.copy()
    broken[1, 2] = np.nan
    arrays = {
        "transposed": scores.T,
        "short": scores[:-1],
        "narrow": scores[:, :-1],
        "broken": broken,
        "cube": scores[None],
        "empty": scores[:0],
        "texts": scores.astype(str),
    }
    paths = {}
    for name, array in arrays.items():
        paths[name] = here / f"{name}.npy"
        np.save(paths[name], array)
    save_file({"sims": scores}, here / "other.safetensors")
    wrong_shape = {
        name: Fault(EmbeddingsError, path=paths[name], name="scores")
        for name in ("transposed", "short", "narrow")
    }
    place = "row 1, column 2"
    faults = wrong_shape | {
        "broken": Fault(EmbeddingsError, paths["broken"], place, str(paths["broken"])),
        "cube": Fault(FileFormatError, path=paths["cube"]),
        "empty": Fault(FileFormatError, path=paths["empty"]),
        "texts": Fault(FileFormatError, path=paths["texts"]),
    }
    paths |= {"other": here / "other.safetensors", "none": here / "none.npy"}
    for name in ("other", "none"):
        faults[name] = Fault(FileFormatError, path=paths[name])
    for name, fault in faults.items():
        options = ("--embeddings", index, "--scores", paths[name])
        assert run_fault("eval", "retrieval", *options) == fault, name
    assert not (here / "runs").exists()


def test_options_that_contradict_scores(split, here):
    index, view, images, texts = split
    np.save("scores.npy", images @ texts.T)
    options = ("eval", "retrieval", "--embeddings", index, "--scores", here / "scores.npy")
    rows = ("--image-embeddings", "rows.npy")
    assert run_fault(*options, *rows) == Fault(SettingError, name="scores")
    judged = ("--judgements", "people.txt")
    assert run_fault(*options, *judged) == Fault(SettingError, name="judgements")
    few = _save_ids(here / "few.json", view.image_ids[:-1])
    assert run_fault(*options, "--image-ids", few) == Fault(EmbeddingsError, path=few)
    others = _save_ids(here / "others.json", range(8))
    missing = view.image_ids[0]
    assert run_fault(*options, "--image-ids", others) == Fault(EmbeddingsError, name=missing)
    without_data = ("eval", "retrieval", "--scores", here / "scores.npy")
    assert run_fault(*without_data) == Fault(DataError, name="dataset")
