"""The three stages as functions: what they take, what they return, and what they keep quiet."""

import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import click
import pytest

import cusa
from cusa.cli import evaluate as evaluate_line
from cusa.cli.precompute import main as precompute_line
from cusa.cli.train import main as train_line
from cusa.data.errors import (
    CusaError,
    DataError,
    Interrupted,
    RunError,
    SettingError,
    Stopped,
    StoreError,
    TeacherError,
)
from cusa.stages import signals
from cusa.stages.options import EvaluateOptions, PrecomputeOptions, TarOptions, TrainOptions
from cusa.train.saving.run_dir import load_run, read_metrics
from cusa.train.trainer import Trainer
from tests.helpers import (
    ADAPTER,
    kill_at,
    make_images,
    make_pairs,
    make_store,
    make_tiny_clip,
    make_tiny_sentence,
    make_tiny_vit,
    run_failure,
    run_ok,
)

SMALL = {"hidden_dim": 16, "embed_dim": 8}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    vit, words = make_tiny_vit(folder / "vit"), make_tiny_sentence(folder / "words")
    return [f"vit={vit}", f"words={words}"]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"))


def _train(index, run_dir, **options):
    options = {"epochs": 1, "batch_size": 16, "settings": {"student": SMALL}} | options
    return cusa.train(index, student="adapter", run_dir=run_dir, **options)


def test_packages_are_functions():
    for name in ("precompute", "train"):
        package = getattr(cusa, name)
        assert package is importlib.import_module(f"cusa.{name}")
        assert package.__wrapped__.__name__ == name
        assert "progress" in inspect.signature(package).parameters


def test_a_package_stays_one_whatever_is_imported_first():
    code = (
        "import sys\n"
        "import cusa\n"
        "assert callable(cusa.train) and 'torch' not in sys.modules\n"
        "import cusa.train.loss.config\n"
        "import cusa.precompute.run_record\n"
        "from cusa import precompute\n"
        "assert callable(cusa.train) and callable(precompute)\n"
        "assert cusa.train.loss.config.LossConfig is cusa.LossConfig\n"
        "assert precompute.run_record is sys.modules['cusa.precompute.run_record']\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("lines", "form", "only_lines", "only_function"),
    [
        (
            [precompute_line],
            PrecomputeOptions,
            {"dataset", "only_plan", "version", *TarOptions.__annotations__}
            - set(PrecomputeOptions.__annotations__),
            set(),
        ),
        ([train_line], TrainOptions, {"embeddings", "sweep", "axes", "version"}, set()),
        (
            [evaluate_line.main, evaluate_line.images, evaluate_line.sts],
            EvaluateOptions,
            {"model", "run", "version"},
            {"suite"},
        ),
    ],
)
def test_keywords_are_the_flags(lines, form, only_lines, only_function):
    flags = {option.name for line in lines for option in line.params} - only_lines
    assert flags == set(form.__annotations__) - only_function
    for line in lines:
        for option in line.params:
            if isinstance(option, click.Option) and option.name in form.__annotations__:
                names = {flag.lstrip("-").replace("-", "_") for flag in option.opts}
                # Python has a function of that name.
                assert option.name in names or (option.name, names) == ("settings", {"set"})


def test_from_pairs_to_a_report_in_silence(tmp_path, teachers, capfd):
    manifest = make_pairs(tmp_path / "pairs")
    store = cusa.precompute(manifest, teacher=teachers, out=tmp_path / "store.h5", workers=0)
    assert isinstance(store, cusa.PrecomputedStore)
    assert store.path == tmp_path / "store.h5"
    assert store.teachers["words"].rows == {"train": 16, "val": 8}
    assert store.teachers["vit"].skipped == {"train": 0, "val": 0}
    assert cusa.EmbeddingStore(store).dataset == store.dataset

    run = _train(store, tmp_path / "run", settings={"student.hidden_dim": 16, "train.workers": 0})
    assert isinstance(run, cusa.TrainedRun)
    assert run.epoch == 1
    assert run.val["rsum"] == read_metrics(run.run_dir)[-1]["rsum"]

    evaluation = cusa.evaluate(run, split="val", bootstrap=0, out=tmp_path / "report")
    assert evaluation.report == tmp_path / "report" / "report.html"
    assert evaluation.report.is_file()
    measured = evaluation.metrics["run"]["retrieval"]
    assert measured == json.loads((run.run_dir / "eval" / "metrics.json").read_text())
    assert str(evaluation.report) in repr(evaluation)
    assert capfd.readouterr() == ("", "")


def test_progress_is_shown_on_request(index, tmp_path, capfd):
    _train(index, tmp_path / "run", progress=True)
    shown, _ = capfd.readouterr()
    assert "best epoch 1" in shown


def test_a_function_computes_what_its_command_line_does(index, tmp_path):
    options = ("--epochs", 1, "--batch-size", 16, "--seed", 3, "--loss", "csa")
    run_dir = tmp_path / "line"
    run_ok("train", "--embeddings", index, "--run-dir", run_dir, *ADAPTER, *options)
    run = _train(index, tmp_path / "function", seed=3, loss="csa")
    assert load_run(run.run_dir) == load_run(run_dir)
    scores = [read_metrics(path)[-1] for path in (run_dir, run.run_dir)]
    assert scores[0] == scores[1]


def test_every_kind_of_data_is_taken(tmp_path, monkeypatch, teachers):
    import datasets
    import pandas

    monkeypatch.chdir(tmp_path)
    manifest = make_pairs(tmp_path / "pairs", n=6, n_val=2)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    read_already = cusa.load_dataset(manifest)
    kinds = {
        "path": str(manifest),
        "read": read_already,
        "rows": rows,
        "frame": pandas.DataFrame(rows),
        "datasets": datasets.Dataset.from_list(rows),
    }
    written = {}
    for kind, data in kinds.items():
        store = cusa.precompute(
            data,
            teacher=teachers,
            image_root=manifest.parent,
            workers=0,
            out=tmp_path / kind / "store.h5",
            reuse=None if kind == "path" else tmp_path / "path" / "store.h5",
        )
        written[kind] = cusa.EmbeddingStore(store)["words", "train"][:].tobytes()
    assert len(set(written.values())) == 1
    evaluation = cusa.evaluate(
        make_tiny_clip(tmp_path / "clip"),
        dataset=kinds["frame"],
        image_root=manifest.parent,
        split="val",
        bootstrap=0,
        gallery=0,
    )
    (measured,) = evaluation.metrics.values()
    assert measured["retrieval"]["n_captions"] == 4


@pytest.mark.parametrize(
    ("options", "kind", "name"),
    [
        ({"limit": 0}, SettingError, "limit"),
        ({"limit": "3"}, SettingError, "limit"),
        ({"lmit": 3}, SettingError, "lmit"),
        ({"out": 5}, SettingError, "out"),
        ({"out": "a\0b"}, SettingError, "out"),
        ({"data_root": "s3://bucket/data"}, SettingError, "data_root"),
        ({"teacher": 7}, SettingError, "teacher"),
        ({"teacher": "nope"}, TeacherError, "nope"),
        ({"dtype": "int8"}, SettingError, "dtype"),
        ({"val_fraction": 1.0}, SettingError, "val_fraction"),
        ({"shard_range": (0, 1, 2)}, SettingError, "shard_range"),
        ({"check_pictures": "yes"}, SettingError, "check_pictures"),
        ({"splits": []}, SettingError, "splits"),
        ({"pooling": "cls", "teacher": "minilm"}, SettingError, "pooling"),
    ],
)
def test_wrong_options_of_precompute(tmp_path, options, kind, name):
    with pytest.raises(kind) as caught:
        rows = [{"image": "a.jpg", "caption": "a"}]
        cusa.precompute(rows, **{"data_root": tmp_path} | options)
    assert caught.value.name == name
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "data", [5, None, [], object(), b"x", {"image": "a.jpg"}, "set/{0..1}.tar"]
)
def test_what_is_no_data(tmp_path, data):
    with pytest.raises(DataError):
        cusa.precompute(data, teacher="minilm", out=tmp_path / "store.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [None, 5, [5], [], b"a.tar", "a\0.tar", "no/*.tar"])
def test_what_is_no_set_of_tars(tmp_path, data):
    with pytest.raises(DataError):
        cusa.precompute_tars(data, out=tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_all_faults_of_the_data_are_told(tmp_path, teachers):
    rows = [{"image": name, "caption": "!"} for name in make_images(tmp_path, 3)]
    out = tmp_path / "store.h5"
    with pytest.raises(DataError) as caught:
        cusa.precompute(rows, teacher=teachers, image_root=tmp_path, out=out)
    assert len(caught.value.__notes__) == 3


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"run_dir": "hf://datasets/owner/runs"}, "run_dir"),
        ({"run_dir": "http://host/run"}, "run_dir"),
        ({"epochs": 0}, "train.epochs"),
        ({"epochs": 2.5}, "epochs"),
        ({"epoch": 1}, "epoch"),
        ({"loss": "nope"}, "loss"),
        ({"settings": "loss.alpha=1"}, "settings"),
        ({"settings": {"loss": "nope"}}, "loss"),
        ({"settings": {5: 1}}, "5"),
        ({"settings": {"loss.alpa": 1}}, "loss.alpa"),
        ({"settings": {"loss.alpha": object()}}, "loss.alpha"),
        ({"settings": {"loss": {"alpha": 1}, "loss.alpha.beta": 2}}, "loss.alpha"),
        ({"settings": {"a" + ".b" * 5000: 1}}, "a" + ".b" * 5000),
        ({"settings": ["loss.alpha"]}, "loss.alpha"),
        ({"preset": "nope"}, "preset"),
        ({"resume": True, "run_dir": None}, "run_dir"),
    ],
)
def test_wrong_options_of_train(index, tmp_path, options, name):
    with pytest.raises(SettingError) as caught:
        _train(index, **{"run_dir": tmp_path / "run"} | options)
    assert caught.value.name == name
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", ["", "nowhere.h5", 5])
def test_what_is_no_store(tmp_path, wrong):
    with pytest.raises(CusaError) as caught:
        _train(wrong, tmp_path / "run")
    assert isinstance(caught.value, SettingError | StoreError)


def test_settings_by_any_name(index, tmp_path):
    named = {"epochs": 2, "loss": "csa", "loss.alpha": 0.3, "optim": {"lr": 0.01}, "patience": 1}
    run = _train(index, tmp_path / "run", epochs=None, settings={"student": SMALL} | named)
    config, _ = load_run(run.run_dir)
    assert (config.train.epochs, config.train.patience) == (2, 1)
    assert (config.loss.terms, config.loss.alpha) == (("contrastive", "csa"), 0.3)
    assert config.optim.lr == 0.01


@pytest.mark.parametrize(
    ("models", "options", "kind"),
    [
        (5, {}, SettingError),
        ([None], {}, SettingError),
        (Path("runs/nowhere"), {}, RunError),
        ("nowhere", {}, RunError),
        ("minilm", {"suite": "nope"}, SettingError),
        ("minilm", {"ties": "nope"}, SettingError),
        ("minilm", {"bootstrap": -1}, SettingError),
        ("minilm", {"data": "folder"}, SettingError),
        ("minilm", {"data": ["a", "b"], "suite": "sts"}, SettingError),
        ("minilm", {"image_ids": "ids.txt"}, SettingError),
        ("minilm", {"out": "s3://bucket/eval"}, SettingError),
        ("minilm", {"dataset": []}, DataError),
        ("minilm", {}, DataError),
        ((), {}, RunError),
    ],
)
def test_wrong_options_of_evaluate(tmp_path, monkeypatch, models, options, kind):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind):
        cusa.evaluate(models, **options)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_keeps_a_run_which_goes_on(index, tmp_path, monkeypatch):
    whole = _train(index, tmp_path / "whole", epochs=2)
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_on", Trainer._train_on)
        kill_at(Trainer, "_train_on", 3, signal.SIGINT)()
        with pytest.raises(KeyboardInterrupt) as caught:
            _train(index, tmp_path / "run", epochs=2)
    assert isinstance(caught.value, Stopped)
    assert signal.getsignal(signal.SIGINT) is handler
    run = cusa.train(run_dir=tmp_path / "run", resume=True)
    assert (run.step, run.val) == (whole.step, whole.val)


def test_a_stage_runs_in_a_thread(index, tmp_path):
    """Where no signal handler can be set."""
    runs = []
    thread = threading.Thread(target=lambda: runs.append(_train(index, tmp_path / "run")))
    thread.start()
    thread.join()
    assert runs[0].epoch == 1


def test_signals_before_the_work_are_raised_at_once():
    for number, kind in ((signal.SIGINT, Interrupted), (signal.SIGTERM, Stopped)):
        with pytest.raises(Stopped) as caught, signals.stop_signals():
            os.kill(os.getpid(), number)
        assert type(caught.value) is kind
        assert caught.value.signal == number


def test_problems_that_training_survives_are_warnings(index, tmp_path, monkeypatch):
    def full(*_args, **_more):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("cusa.train.saving.run_dir.MetricsLog.append", full)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _train(index, tmp_path / "run")
    assert caught


def test_the_report_of_a_run_is_that_of_cusa_eval(tmp_path):
    """On the split that the printed command would name: without a test split, val."""
    index = make_store(tmp_path / "store", sizes={"train": 40, "val": 10})
    options = (*ADAPTER, "--epochs", 1, "--batch-size", 16, "--run-dir", tmp_path / "run")
    out = run_ok("train", "--embeddings", index, *options, "--report")
    metrics = tmp_path / "run" / "eval" / "metrics.json"
    assert f"report: {tmp_path / 'run' / 'eval' / 'report.html'}" in out
    assert "next: " not in out
    with_flag = metrics.read_text()
    metrics.unlink()
    run_ok("eval", "--run", tmp_path / "run", "--split", "val")
    assert metrics.read_text() == with_flag
    # A run that is finished needs no more than the report.
    run = cusa.train(run_dir=tmp_path / "run", resume=True, report=True)
    assert run.evaluation is not None
    assert run.evaluation.metrics["run"]["retrieval"] == json.loads(with_flag)


def test_the_report_of_a_sweep_is_of_all_its_runs(index, tmp_path):
    options = (*ADAPTER, "--epochs", 1, "--batch-size", 16, "--run-dir", tmp_path / "sweep")
    run_ok("train", "--embeddings", index, *options, "--sweep", "seed=0,1", "--report")
    page = (tmp_path / "sweep" / "eval" / "report.html").read_text()
    assert "seed-0" in page
    assert "seed-1" in page


def test_an_error_of_the_report_leaves_the_run(index, tmp_path, monkeypatch):
    def refuse(*_args, **_more):
        raise RunError("no room")

    monkeypatch.setattr("cusa.eval.evaluate.write_pages", refuse)
    error = run_failure(
        "train", "--embeddings", index, *ADAPTER, "--epochs", 1, "--batch-size", 16,
        "--run-dir", tmp_path / "run", "--report",
    )  # fmt: skip
    assert isinstance(error, RunError)
    assert cusa.load_student(tmp_path / "run", device="cpu") is not None
