"""The command line on trained runs."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.errors import RunError, StoreError, StudentError
from cusa.data.records import Truth
from cusa.data.store.reader import EmbeddingStore
from cusa.eval.metrics.relevance import same_group, true_relevance
from cusa.train.encode_split import encode_split
from cusa.train.saving.student_folder import load_saved
from tests.helpers import Fault, make_store, run_fault, run_ok


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A store with known truth, and two runs on it."""
    folder = tmp_path_factory.mktemp("eval")
    index = make_store(folder / "store", truth=True)
    for name in ("contrastive", "cusa"):
        args = (
            "--embeddings",
            index,
            "--student",
            "adapter",
            "--run-dir",
            folder / "runs" / name,
            "--loss",
            name,
        )
        run_ok("train", *args, "--batch-size", 16, "--epochs", 6, "--set", "student.embed_dim=8")
    return folder


def _metrics(run):
    return json.loads((run / "eval" / "metrics.json").read_text())


def test_the_latest_run_and_the_test_split_are_the_default(runs, monkeypatch):
    monkeypatch.chdir(runs)
    best = runs / "runs" / "contrastive" / "best" / "student.safetensors"
    os.utime(best, (2e9, 2e9))
    out = run_ok("eval")
    assert "made-up, split test: 8 images, 16 captions" in out
    metrics = _metrics(runs / "runs" / "contrastive")
    assert (metrics["format"], metrics["format_version"]) == ("cusa-metrics", [1, 4])
    assert metrics["split"] == "test"
    assert metrics["retrieval"] == metrics["heads"]["cross"]["retrieval"]
    assert (
        metrics["unimodal"] == metrics["heads"]["cross"]["unimodal"]
    )  # its uni-modal heads were never trained
    assert metrics["unimodal_head"] == "cross"
    assert (metrics["retrieval"]["i2t"]["queries"], metrics["retrieval"]["i2t"]["candidates"]) == (
        8,
        16,
    )
    assert (metrics["unimodal"]["t2t"]["queries"], metrics["unimodal"]["t2t"]["candidates"]) == (
        16,
        15,
    )
    assert metrics["unimodal"]["i2i"]["queries"] == 8
    html = (runs / "runs" / "contrastive" / "eval" / "report.html").read_text()
    assert "RSUM" in html


def test_numbers_are_those_of_a_brute_force_ranking(runs):
    run = runs / "runs" / "cusa"
    run_ok("eval", "--run", run, "--split", "val")
    metrics = _metrics(run)["heads"]
    assert _metrics(run)["unimodal"] == metrics["uni"]["unimodal"]
    store = EmbeddingStore(runs / "store" / "store.h5")
    student = load_saved(run).student
    import torch

    with torch.no_grad():
        image = student.encode_image(
            torch.from_numpy(store.embeddings("vision", "val").gather(range(10))).float()
        )
        text = student.encode_text(
            torch.from_numpy(store.embeddings("words", "val").gather(range(20))).float()
        )
    for head in ("cross", "uni"):
        i, t = (
            torch.nn.functional.normalize(getattr(f, head), dim=-1).numpy() for f in (image, text)
        )
        scores = t @ i.T
        hits = sum(scores[c].argmax() == c // 2 for c in range(20))
        assert metrics[head]["retrieval"]["t2i"]["r1"] == pytest.approx(100 * hits / 20)
        hits = sum(scores[:, n].argmax() // 2 == n for n in range(10))
        assert metrics[head]["retrieval"]["i2t"]["r1"] == pytest.approx(100 * hits / 10)
        alike = t @ t.T - 10 * np.eye(20)
        hits = sum(alike[c].argmax() // 2 == c // 2 for c in range(20))
        assert metrics[head]["unimodal"]["t2t"]["r1"] == pytest.approx(100 * hits / 20)
        alike = i @ i.T - 10 * np.eye(10)
        hits = sum(alike[n].argmax() // 2 == n // 2 for n in range(10))
        assert metrics[head]["unimodal"]["i2i"]["r1"] == pytest.approx(100 * hits / 10)


def test_the_best_checkpoint_scores_what_training_logged_for_it(runs):
    run = runs / "runs" / "cusa"
    run_ok("eval", "--run", run, "--split", "val")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max((m for m in lines if m["kind"] == "val"), key=lambda m: m["rsum"])
    metrics = _metrics(run)
    assert metrics["epoch"] == best["epoch"]
    assert metrics["retrieval"]["rsum"] == pytest.approx(best["rsum"])


def test_several_runs_are_compared_in_one_report(runs):
    names = [runs / "runs" / n for n in ("contrastive", "cusa")]
    out = run_ok("eval", "--run", names[0], "--run", names[1])
    assert "uni (untrained)" in out
    base, content = (_metrics(name) for name in names)
    assert "differences" not in base
    assert content["differences"]["base"] == "contrastive"
    weights_sha256 = base["model"]["weights_sha256"]
    assert content["differences"]["base_weights_sha256"] == weights_sha256
    run_ok("eval", "compare", *names)
    comparison = json.loads((runs / "runs" / "eval" / "comparison.json").read_text())
    compared = {(row["set"], row["metric"]): row["differences"][1] for row in comparison["rows"]}
    assert len(compared) == len(content["differences"]["figures"]) > 10
    for figure in content["differences"]["figures"]:
        paired = compared[figure["set"], figure["metric"]]
        assert {key: figure[key] for key in paired} == paired
    html = (runs / "runs" / "eval" / "report.html").read_text()
    assert "contrastive" in html
    assert "cusa" in html
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_runs_measured_on_different_data_are_not_compared(runs, tmp_path):
    index = make_store(tmp_path / "s", sizes={"train": 40, "val": 10, "test": 9})
    other = tmp_path / "run"
    args = (
        "--embeddings",
        index,
        "--student",
        "adapter",
        "--run-dir",
        other,
        "--batch-size",
        16,
        "--epochs",
        1,
    )
    run_ok("train", *args, "--set", "student.embed_dim=8")
    assert run_fault("eval", "--run", runs / "runs" / "cusa", "--run", other) == Fault(
        RunError, name="run"
    )


def test_true_relevance_counts_every_image_that_a_caption_is_true_of():
    class Known:
        n_images, n_captions = 3, 2
        truth = Truth(np.array([0, 0, 1]), np.array([0, 2, 3]), np.array([0, 2, 1]))

    everything = SplitEmbeddings({}, {}, np.arange(3), np.arange(2), np.array([0, 1]))
    t2i = true_relevance("t2i", everything, Known)
    assert (t2i.indptr.tolist(), t2i.indices.tolist()) == ([0, 2, 3], [0, 2, 1])
    i2t = true_relevance("i2t", everything, Known)
    assert (i2t.indptr.tolist(), i2t.indices.tolist()) == ([0, 1, 2, 3], [0, 1, 0])
    without_image_0 = SplitEmbeddings({}, {}, np.array([1, 2]), np.arange(2), np.array([-1, 0]))
    t2i = true_relevance("t2i", without_image_0, Known)
    assert (t2i.indptr.tolist(), t2i.indices.tolist()) == ([0, 1, 2], [1, 0])


def test_same_group_leaves_out_the_item_itself():
    indptr, indices = same_group(np.array([5, 7, 5, -1, 5, -1]))
    rows = [indices[a:b].tolist() for a, b in itertools.pairwise(indptr)]
    assert rows == [[2, 4], [], [0, 4], [], [0, 2], []]


def test_encoding_does_not_depend_on_the_batch_size(runs):
    run = runs / "runs" / "cusa"
    from cusa.train.config import Config
    from cusa.train.sources import student_sources
    from cusa.train.towers.processors import Processors

    store = EmbeddingStore(runs / "store" / "store.h5")
    encoders = {"image": "vision", "text": "words"}
    sources = student_sources(store, "train", Config(), encoders, Processors())
    student = load_saved(run).student
    one, two = (encode_split(student, sources, "cpu", batch_size=b) for b in (7, 256))
    np.testing.assert_allclose(one.image["cross"], two.image["cross"], atol=1e-6)
    np.testing.assert_allclose(one.text["uni"], two.text["uni"], atol=1e-6)


def test_bad_command_lines(runs, tmp_path, monkeypatch):
    run = runs / "runs" / "cusa"
    monkeypatch.chdir(tmp_path)
    assert run_fault("eval") == Fault(RunError, path=Path("runs"))
    assert run_fault("eval", "--run", tmp_path) == Fault(StudentError, path=tmp_path)
    assert run_fault("eval", "--run", run, "--split", "nope") == Fault(
        StoreError, path=runs / "store/store.h5", name="nope"
    )
    other = make_store(tmp_path / "other", dim=8)
    assert run_fault("eval", "--run", run, "--embeddings", other) == Fault(StoreError, path=other)
    (run / "checkpoints").rename(run / "aside")
    try:
        assert run_fault("eval", "--run", run, "--checkpoint", "last") == Fault(RunError, path=run)
    finally:
        (run / "aside").rename(run / "checkpoints")
    assert "RSUM" in run_ok("eval", "--run", run, "--checkpoint", "last")
    similar = make_store(tmp_path / "similar", sizes={"train": 12, "val": 9})
    assert "made-up, split val: 9 images" in run_ok(
        "eval", "--run", run, "--embeddings", similar, "--split", "val"
    )


def test_a_store_that_changed_under_its_run_is_refused(tmp_path):
    index = make_store(tmp_path / "s")
    args = (
        "--embeddings",
        index,
        "--student",
        "adapter",
        "--run-dir",
        tmp_path / "run",
        "--batch-size",
        16,
    )
    run_ok("train", *args, "--epochs", 1, "--set", "student.embed_dim=8")
    for f in index.parent.rglob("*.h5"):
        f.unlink()
    make_store(index.parent, sizes={"train": 40, "val": 12, "test": 8})
    assert run_fault("eval", "--run", tmp_path / "run") == Fault(StoreError, path=index)


def test_one_caption_per_image_leaves_text_to_text_unknown_but_works(tmp_path):
    """A user's own pairs often are so: no caption has another one to find."""
    from cusa.data.records import Dataset
    from tests.helpers import add_teacher, records, settings, unit_rows

    sizes = {"train": 20, "test": 6}
    dataset = Dataset("single", tmp_path, {s: records(s, n, captions=1) for s, n in sizes.items()})
    rows = {s: unit_rows(n, 8, n) for s, n in sizes.items()}
    index = tmp_path / "s.h5"
    add_teacher(index, dataset, "vision", settings("image", 8), rows)
    add_teacher(index, dataset, "words", settings("text", 8), rows)
    args = (
        "--embeddings",
        index,
        "--student",
        "adapter",
        "--run-dir",
        tmp_path / "run",
        "--batch-size",
        10,
    )
    run_ok("train", *args, "--epochs", 1, "--set", "data.val_split=test")
    run_ok("eval", "--run", tmp_path / "run")
    t2t = _metrics(tmp_path / "run")["unimodal"]["t2t"]
    nothing = dict.fromkeys(("r1", "r5", "r10", "mean", "median_rank", "mean_rank"))
    assert t2t == {**nothing, "queries": 0, "candidates": 5, "tied": 0}
