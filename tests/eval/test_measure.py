"""How an evaluation goes: data found once, one model at a time, mistyped runs answered here."""

import gc
import shutil
import weakref
from pathlib import Path

import pytest
from transformers import CLIPModel

from cusa.data.errors import RunError
from cusa.eval.evaluators import splits
from cusa.eval.evaluators.retrieval.coco import CocoTruths
from cusa.eval.evaluators.sts import evaluator as sts_evaluator
from cusa.eval.models import evaluated_models
from cusa.eval.models.evaluated_models import ComputeOptions, EvaluatedModel
from tests.eval.tiny import make_classes, make_cxc, make_sts, strict
from tests.helpers import Fault, run_fault, run_ok


@pytest.fixture
def loads(monkeypatch):
    """Models that are loaded, and how many earlier ones were there when each was."""
    plain, encoders, alive = evaluated_models.load_encoder, [], []

    def load(*args):
        gc.collect()
        earlier = sum(encoder() is not None for encoder in encoders)
        towers = sum(type(thing) is CLIPModel for thing in gc.get_objects())
        alive.append((earlier, towers))
        encoder = plain(*args)
        encoders.append(weakref.ref(encoder))
        return encoder

    monkeypatch.setattr(evaluated_models, "load_encoder", load)
    return alive


def _counted(monkeypatch, module, name):
    """Calls of a function by the name that a module has for it."""
    plain, calls = getattr(module, name), []

    def call(*args, **kwargs):
        calls.append(args)
        return plain(*args, **kwargs)

    monkeypatch.setattr(module, name, call)
    return calls


def test_each_model_is_released_before_the_next_is_loaded_and_data_are_read_once(
    home, here, loads, monkeypatch
):
    names = [shutil.copytree(home / "clip", here / name) for name in ("one", "two", "three")]
    make_sts(here / "data/sts")
    make_cxc(here / "data/sts/cxc")
    make_classes(here / "data/cub-like")
    datasets = _counted(monkeypatch, splits, "load_dataset")
    judged = _counted(monkeypatch, sts_evaluator, "find_cxc")
    tasks = _counted(monkeypatch, sts_evaluator, "find_sts_tasks")
    models = [argument for name in names for argument in ("--model", name)]
    tiny = home / "images" / "tiny.json"
    run_ok(
        "eval",
        "all",
        *models,
        "--dataset",
        tiny,
        "--bootstrap",
        0,
        "--allow-partial",
        "--gallery",
        1,
    )
    assert loads == [(0, 0), (0, 0), (0, 0)]
    assert [len(calls) for calls in (datasets, judged, tasks)] == [1, 1, 1]
    results = [
        (here / "runs/eval" / name / "metrics.json").read_text() for name in ("one", "two", "three")
    ]
    assert (
        len(
            {
                result.replace('"two"', '"one"').replace('"three"', '"one"').count('"r1"')
                for result in results
            }
        )
        == 1
    )


def test_a_store_is_opened_once_for_a_run_and_its_baseline(home, adapter, here, loads, monkeypatch):
    shutil.copytree(adapter, here / "runs/adapter")
    opened = _counted(monkeypatch, splits, "EmbeddingStore")
    run_ok(
        "eval", "--run", "runs/adapter", "--model", home / "clip", "--bootstrap", 0, "--gallery", 0
    )
    assert len(opened) == 1
    assert loads == [(0, 0), (0, 0)]


def test_a_name_is_known_before_the_model_is_loaded(home, adapter, tmp_path):
    shutil.copytree(adapter / "best", tmp_path / "moved" / "best")
    compute = ComputeOptions("cpu", "best", 8, None, 1)
    specs = [
        home / "clip",
        home / "vit",
        adapter,
        adapter / "best",
        tmp_path / "moved" / "best",
        f"mine={home / 'vit'}",
    ]
    names = []
    for spec in map(str, specs):
        model = EvaluatedModel(spec, compute, lambda *progress: None)
        names.append(model.name)
        assert model.provider.name == model.name
        model.release()
    assert names == [
        "clip",
        "vit",
        "adapter",
        "adapter",
        "moved",
        "mine",
    ]


def test_ground_truths_are_read_once(tmp_path):
    truths = CocoTruths()
    assert truths.files is truths.files
    assert truths.test_ids is truths.test_ids


@pytest.fixture
def no_models(monkeypatch):
    """Nothing may be loaded: a hub would be asked."""

    def refuse(*args):
        raise AssertionError(f"{args} would be looked up")

    monkeypatch.setattr(evaluated_models, "load_encoder", refuse)


@pytest.mark.usefixtures("no_models")
def test_a_mistyped_run_is_answered_here(home, here):
    for name in ("coco", "contrastive"):
        (here / "runs" / name).mkdir(parents=True)
        (here / "runs" / name / "config.yaml").touch()
    for option in ("--run", "--model"):
        assert run_fault("eval", option, "runs/cocco") == Fault(
            RunError, path=Path("runs/cocco"), name="runs/cocco"
        )
    assert run_fault("eval", "--run", "runs/x") == Fault(
        RunError, path=Path("runs/x"), name="runs/x"
    )
    assert run_fault("eval", "--run", "owner/model") == Fault(
        RunError, path=Path("owner/model"), name="owner/model"
    )
    assert run_fault("eval", "sts", "--run", "mpnet") == Fault(
        RunError, path=Path("mpnet"), name="mpnet"
    )
    (here / "texts.txt").write_text("a\n")
    assert run_fault("eval", "index", "texts.txt", "--run", "runs/cocco") == Fault(
        RunError, path=Path("runs/cocco"), name="runs/cocco"
    )


def test_models_stand_in_the_order_of_the_command_line(home, adapter, here):
    shutil.copytree(adapter, here / "runs/adapter")
    tiny = ("--dataset", home / "images" / "tiny.json", "--bootstrap", 0, "--gallery", 0)
    for first, second in (("--run", "--model"), ("--model", "--run")):
        given = {"--run": "runs/adapter", "--model": str(home / "clip")}
        output = run_ok("eval", first, given[first], second, given[second], *tiny, "--out", "o")
        names = {"--run": "adapter", "--model": "clip"}
        assert output.index(f"│ {names[first]}") < output.index(f"│ {names[second]}")


def test_a_partial_split_is_noted_in_the_results_and_on_the_report(home, here):
    coco = ("--dataset", home / "images" / "coco.json", "--bootstrap", 0)
    run_ok("eval", "--model", home / "clip", *coco, "--allow-partial")
    problem = "coco test has 6 images instead of 5,000"
    note = f"{problem}, so figures are not comparable with published ones"
    assert strict(here / "runs/eval/clip/metrics.json")["notes"] == [note]
    assert note in (here / "runs/eval/clip/report.html").read_text().replace("&#39;", "'")
    run_ok(
        "eval",
        "--model",
        home / "clip",
        "--dataset",
        home / "images" / "tiny.json",
        "--bootstrap",
        0,
    )
    assert strict(here / "runs/eval/clip/metrics.json")["notes"] == []
    assert "not comparable" not in (here / "runs/eval/clip/report.html").read_text()


def test_damaged_lines_of_the_log_are_noted(home, adapter, here):
    run = shutil.copytree(adapter, here / "runs/adapter")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "val", "step": 9, "epo\n[]\n')
    output = run_ok("eval", "--run", run, "--bootstrap", 0, "--gallery", 0)
    assert "metrics.jsonl: line" in output
    assert "and 1 more cannot be read and is left out" in output
