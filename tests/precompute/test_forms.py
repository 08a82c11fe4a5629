"""The same pairs in every form of data: equal rows, and all three stages run on them."""

import re
from pathlib import Path

import numpy as np
import pytest

import cusa
from cusa.data.store.reader import EmbeddingStore
from cusa.eval.report import charts
from tests.data.readers.forms import FILE_FORMS, N_CAPTIONS, N_IMAGES
from tests.helpers import make_tiny_sentence, make_tiny_vit, run_ok

VAL_FRACTION = 0.25


@pytest.fixture(autouse=True)
def _no_charts(monkeypatch):
    """Draw none of the eight of each report: no form of data changes them."""
    monkeypatch.setattr(charts, "line_chart", lambda *_, **__: "")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    vit, words = make_tiny_vit(folder / "vit"), make_tiny_sentence(folder / "words")
    return ["--teacher", f"vit={vit}", "--teacher", f"words={words}", "--workers", 0]


def _precompute(form, folder, teachers):
    path = FILE_FORMS[form](folder)
    store_path = folder / "store.h5"
    options = ["--data-root", folder / "data", "--val-fraction", VAL_FRACTION]
    run_ok("precompute", "--dataset", path, *teachers, *options, "--out", store_path)
    return store_path


def _rows(store_path):
    """The rows of both splits, those of train before those of val, sorted: forms have other ids."""
    store = EmbeddingStore(store_path)
    rows = {}
    for teacher in ("vit", "words"):
        arrays = [np.asarray(store.embeddings(teacher, split)[:]) for split in ("train", "val")]
        rows[teacher] = sorted(row.tobytes() for row in np.concatenate(arrays))
    return rows


@pytest.fixture(scope="module")
def csv_rows(tmp_path_factory, teachers):
    rows = _rows(_precompute("csv", tmp_path_factory.mktemp("csv"), teachers))
    assert len(set(rows["vit"])) == N_IMAGES
    assert len(set(rows["words"])) > N_CAPTIONS
    return rows


@pytest.mark.parametrize("form", FILE_FORMS)
def test_every_form_goes_through_all_three_stages(tmp_path, form, teachers, csv_rows):
    store_path = _precompute(form, tmp_path, teachers)
    assert _rows(store_path) == csv_rows

    encoders = ["--student", "adapter", "--image-encoder", "vit", "--text-encoder", "words"]
    run_dir = tmp_path / "run"
    options = ["--epochs", 1, "--batch-size", 8, "--workers", 0, "--run-dir", run_dir]
    run_ok("train", "--embeddings", store_path, *encoders, *options)
    run_ok("eval", "retrieval", "--run", run_dir, "--split", "val", "--bootstrap", 0)
    assert (run_dir / "eval" / "metrics.json").is_file()


def test_the_documentation_lists_the_forms_that_are_tested():
    documentation = (Path(cusa.__file__).parent.parent / "docs" / "data.md").read_text()
    listed = set()
    for line in documentation.splitlines():
        if line.endswith("| equal rows | runs | runs |"):
            listed.update(re.findall("`([^`]+)`", line))
    assert listed == set(FILE_FORMS)
