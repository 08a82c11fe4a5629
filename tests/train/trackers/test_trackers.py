"""Runs that are shown in trackers: what these are told, resuming, and faults that cost no run."""

import json
import sys

import pytest

from cusa.data.errors import CusaError, SettingError, Stopped
from cusa.train.config_building import build_config, load_config_file
from cusa.train.reporter import report_end
from cusa.train.saving.run_dir import read_metrics
from cusa.train.saving.student_folder import WEIGHTS_FILE
from cusa.train.trackers.mlflow import MlflowTracker
from cusa.train.trackers.protocol import TrackedRun
from cusa.train.trainer import Trainer
from tests.helpers import ADAPTER, Fault, run_error, run_fault, run_ok
from tests.train.trackers.stand_ins import STAND_INS, install


def _options(index, run_dir, *trackers):
    reported = [argument for name in trackers for argument in ("--report-to", name)]
    size = ("--batch-size", 16, "--epochs", 2, "--set", "train.log_every=2")
    return ("--embeddings", index, "--run-dir", run_dir, *ADAPTER, *size, *reported)


def _logged(run_dir, kind, name):
    return [(line["step"], line[name]) for line in read_metrics(run_dir) if line["kind"] == kind]


def _the_run(tracker):
    (seen,) = tracker.seen.values()
    return seen


@pytest.fixture(params=sorted(STAND_INS))
def name(request):
    return request.param


@pytest.fixture
def tracker(monkeypatch, name):
    return install(monkeypatch, name)


def test_a_tracker_shows_the_log_the_settings_and_the_outcome(index, tmp_path, name, tracker):
    run_dir = tmp_path / "mine"
    run_ok("train", *_options(index, run_dir, name), "--set", "train.project=pictures")
    seen = _the_run(tracker)
    assert seen.project == "pictures"
    assert seen.name.startswith("mine")
    for kind, figure in (("train", "loss"), ("train", "tau"), ("train", "lr"), ("val", "rsum")):
        assert seen.of(f"{kind}/{figure}") == _logged(run_dir, kind, figure)
        assert seen.of(f"{kind}/{figure}")
    assert str(seen.config["optim.lr"]) == "0.001"
    assert seen.config["teacher.image"] == "vision"
    assert seen.config["version.torch"]
    best = max(rsum for _, rsum in _logged(run_dir, "val", "rsum"))
    assert seen.summary["best_rsum"] == best
    assert seen.status == "finished"


def test_a_resumed_run_goes_on_in_the_same_tracked_run(index, tmp_path, name, tracker):
    run_dir = tmp_path / "run"
    run_ok("train", *_options(index, run_dir, name))
    out = run_ok("train", "--resume", "--run-dir", run_dir, "--epochs", 3)
    assert "Warning" not in out
    seen = _the_run(tracker)
    assert seen.of("train/loss") == _logged(run_dir, "train", "loss")
    assert [step for step, _ in seen.of("val/rsum")] == [5, 10, 15]
    assert seen.summary["epochs"] == 3
    assert seen.status == "finished"


def test_two_runs_of_one_name_are_two_tracked_runs(index, tmp_path, name, tracker):
    for folder in ("a", "b"):
        run_ok("train", *_options(index, tmp_path / folder / "run", name))
    assert len(tracker.seen) == 2


METHODS = {
    "begin": ("begin", 0),
    "first figures": ("log", 0),
    "later figures": ("log", 4),
    "end": ("end", 0),
}


@pytest.mark.parametrize("where", METHODS)
def test_a_fault_of_a_tracker_costs_one_warning(index, tmp_path, monkeypatch, where):
    """The other tracker, and the weights, are as without it."""
    install(monkeypatch, "wandb")
    trackio = install(monkeypatch, "trackio")
    method, n_good = METHODS[where]
    calls = []

    def failing(*args):
        calls.append(args)
        if len(calls) > n_good:
            raise ConnectionError("no route\nto the host")
        return "id"

    monkeypatch.setattr(f"cusa.train.trackers.wandb.WandbTracker.{method}", failing)
    run_ok("train", *_options(index, tmp_path / "plain"))
    out = run_ok("train", *_options(index, tmp_path / "run", "wandb", "trackio"))
    assert out.count("Warning: ") == 1
    assert "no route" in out
    assert len(calls) == n_good + 1
    assert _the_run(trackio).of("val/rsum") == _logged(tmp_path / "plain", "val", "rsum")
    states = [tmp_path / folder / "best" / WEIGHTS_FILE for folder in ("plain", "run")]
    assert len({_tensors(path) for path in states}) == 1


def _tensors(path):
    """The bytes of all tensors, which follow the header."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def test_the_end_of_a_run_is_told(index, tmp_path, monkeypatch):
    wandb = install(monkeypatch, "wandb")

    def broken(self, batch):
        raise CusaError("broken")

    monkeypatch.setattr(Trainer, "_train_on", broken)
    run_error("train", *_options(index, tmp_path / "run", "wandb"))
    assert _the_run(wandb).status == "failed"


@pytest.mark.parametrize(("error", "outcome"), [(Stopped(15), "stopped"), (OSError(), "failed")])
def test_a_stop_differs_from_a_fault(error, outcome):
    outcomes = []

    class Ended:
        def ended(self, outcome):
            outcomes.append(outcome)

    with pytest.raises(type(error)), report_end([Ended()]):
        raise error
    with report_end([Ended()]):
        pass
    assert outcomes == [outcome, "finished"]


@pytest.mark.parametrize("missing", [*STAND_INS, "tensorboard"])
def test_a_missing_package_is_refused_before_anything_is_written(
    index, tmp_path, monkeypatch, missing
):
    package = "torch.utils.tensorboard" if missing == "tensorboard" else missing
    monkeypatch.setitem(sys.modules, package, None)
    options = _options(index, tmp_path / "run", missing)
    assert run_fault("train", *options) == Fault(SettingError, name="train.report_to")
    assert not (tmp_path / "run").exists()


def test_wandb_without_an_account_is_refused(index, tmp_path, monkeypatch):
    wandb = install(monkeypatch, "wandb")

    def without_key():
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "login", without_key)
    options = _options(index, tmp_path / "run", "wandb")
    assert run_fault("train", *options) == Fault(SettingError, name="train.report_to")


def test_wandb_without_a_network_is_tried(index, tmp_path, monkeypatch):
    wandb = install(monkeypatch, "wandb")

    def unreachable():
        raise wandb.errors.CommError("no route")

    monkeypatch.setattr(wandb, "login", unreachable)
    run_ok("train", *_options(index, tmp_path / "run", "wandb"))
    assert _the_run(wandb).status == "finished"


def test_without_a_project_the_trackers_own_variable_names_it(index, tmp_path, monkeypatch):
    trackers = {}
    for name in STAND_INS:
        trackers[name] = install(monkeypatch, name)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    run_ok("train", *_options(index, tmp_path / "run", *STAND_INS))
    projects = {name: _the_run(tracker).project for name, tracker in trackers.items()}
    assert projects == {"wandb": "cusa", "trackio": "cusa", "mlflow": "theirs"}


def test_mlflow_takes_any_number_of_settings(tmp_path, monkeypatch):
    mlflow = install(monkeypatch, "mlflow")
    settings = {f"section.name{number}": number for number in range(250)}
    tracked_run = TrackedRun(tmp_path, None, settings, facts={}, steps_done=0)
    MlflowTracker().begin(tracked_run)
    assert len(_the_run(mlflow).config) == 250


@pytest.mark.parametrize("content", ["{", "[]", '{"wandb": 3}', "\xff"])
def test_damaged_ids_of_tracked_runs_begin_them_anew(index, tmp_path, monkeypatch, content):
    wandb = install(monkeypatch, "wandb")
    run_dir = tmp_path / "run"
    run_ok("train", *_options(index, run_dir, "wandb"))
    (run_dir / "trackers.json").write_text(content, encoding="latin-1")
    out = run_ok("train", "--resume", "--run-dir", run_dir, "--epochs", 3)
    assert out.count("Warning: ") == 1
    assert len(wandb.seen) == 2
    assert json.loads((run_dir / "trackers.json").read_text()) == {"wandb": "wandb1"}


def test_a_run_can_be_resumed_without_its_trackers(index, tmp_path, monkeypatch):
    wandb = install(monkeypatch, "wandb")
    run_dir = tmp_path / "run"
    run_ok("train", *_options(index, run_dir, "wandb"))
    off = ("--set", "train.report_to=[]")
    run_ok("train", "--resume", "--run-dir", run_dir, "--epochs", 3, *off)
    assert [step for step, _ in _the_run(wandb).of("val/rsum")] == [5, 10]


def test_settings_name_trackers(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("train: {report_to: [wandb, tensorboard]}\n")
    assert build_config(load_config_file(file)).train.report_to == ("wandb", "tensorboard")
    for illegal in (["neptune"], ["wandb", "wandb"], "wandb", 3):
        with pytest.raises(SettingError) as refused:
            build_config({"train": {"report_to": illegal}})
        assert refused.value.name == "train.report_to"


def test_the_setting_of_earlier_runs_is_read():
    for value, expected in ((True, ("tensorboard",)), (False, ())):
        assert build_config({"train": {"tensorboard": value}}).train.report_to == expected


@pytest.mark.parametrize("value", [True, False])
def test_trackers_that_are_named_replace_the_setting_of_earlier_runs(value):
    for names in (["tensorboard"], ["wandb"], []):
        settings = {"train": {"tensorboard": value, "report_to": names}}
        assert build_config(settings).train.report_to == tuple(names)
    for illegal in (None, 5, "wandb"):
        with pytest.raises(SettingError) as refused:
            build_config({"train": {"tensorboard": value, "report_to": illegal}})
        assert refused.value.name == "train.report_to"
