"""A store and a run written before modules were moved are read, evaluated and continued."""

import json
import shutil
from pathlib import Path

import pytest

from cusa.data.store.reader import EmbeddingStore
from tests.helpers import run_ok

WRITTEN = Path(__file__).parent / "before_the_move"


@pytest.fixture
def store_path(tmp_path):
    shutil.copytree(WRITTEN / "store", tmp_path / "store")
    return Path(shutil.copy(WRITTEN / "store.h5", tmp_path / "store.h5"))


@pytest.fixture
def run_dir(tmp_path, store_path):
    folder = tmp_path / "run"
    shutil.copytree(WRITTEN / "run", folder)
    config_path = folder / "config.yaml"
    config = config_path.read_text(encoding="utf-8")
    config_path.write_text(config.replace("STORE", str(store_path)), encoding="utf-8")
    return folder


def _log(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_store_is_whole(store_path):
    run_ok("store", "verify", store_path)
    store = EmbeddingStore(store_path)
    assert store.embeddings("vision", "train").gather(range(12)).shape == (12, 16)
    assert store.split("val").n_captions == 12


def test_the_run_scores_what_its_log_says(run_dir):
    run_ok("eval", "--run", run_dir, "--split", "val", "--bootstrap", 0)
    metrics = json.loads((run_dir / "eval/metrics.json").read_text(encoding="utf-8"))
    cross_modal = metrics["heads"]["cross"]["retrieval"]
    validation = _log(run_dir)[-1]
    assert cross_modal["rsum"] == pytest.approx(validation["rsum"])
    assert cross_modal["i2t"]["r1"] == pytest.approx(validation["i2t_r1"])


def test_the_run_goes_on(run_dir):
    run_ok("train", "--resume", "--run-dir", run_dir, "--epochs", 2)
    epochs = [line["epoch"] for line in _log(run_dir) if line["kind"] == "val"]
    assert epochs == [1, 2]
