"""Students on the hub: loaded from a stand-in of it by every command that takes a student."""

import shutil

import numpy as np
import pytest

import cusa
from cusa.data.errors import (
    CusaError,
    GatedRepositoryError,
    HubNetworkError,
    HubRepositoryError,
    RunError,
    StudentError,
)
from cusa.train.saving.student_folder import load_origin
from tests.helpers import Fault, fault_of, run_fault, run_ok
from tests.hub_stand_in import connected_hub

NAME = "owner/student"


@pytest.fixture
def hub(monkeypatch, here):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "cache"))
    with connected_hub(monkeypatch) as stand_in:
        yield stand_in


def _contents(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(params=["run", "best"])
def pushed(request, hub, adapter):
    """The run, and its repository; a run as a whole, or its best student."""
    folder = adapter if request.param == "run" else adapter / "best"
    hub.add("models", NAME, _contents(folder))
    return adapter


def test_a_student_of_the_hub_embeds_as_its_run_does(pushed, hub, home):
    student = cusa.load_student(NAME, "cpu")
    picture = next((home / "images").rglob("*.jpg"))
    expected = cusa.load_student(pushed, "cpu").encode_image(picture)
    np.testing.assert_array_equal(student.encode_image(picture), expected)
    assert student.name == NAME
    np.testing.assert_array_equal(
        cusa.load_encoder(NAME, "cpu").image_rows([picture])["cross"][0], expected
    )
    assert not [file for file in hub.downloaded if file.startswith("checkpoints/")]


def test_what_is_in_the_cache_is_enough_without_a_network(pushed, hub, monkeypatch):
    online = cusa.load_student(NAME, "cpu").encode_text("a dog")
    hub.downloaded.clear()
    cusa.load_student(NAME, "cpu")
    assert hub.downloaded == []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    np.testing.assert_array_equal(cusa.load_student(NAME, "cpu").encode_text("a dog"), online)
    np.testing.assert_array_equal(
        cusa.load_encoder(NAME, "cpu").text_rows(["a dog"])["cross"][0], online
    )


def test_the_commands_that_take_a_student(hub, adapter, home, here):
    hub.add("models", NAME, _contents(adapter / "best"))
    dataset = ("--dataset", home / "images" / "tiny.json", "--split", "val", "--bootstrap", 10)
    run_ok("eval", "retrieval", "--model", NAME, "--model", adapter, *dataset)
    assert (here / "runs" / "eval" / "owner-student" / "metrics.json").is_file()
    run_ok("eval", "index", home / "images", "--run", NAME)
    hits = run_ok("eval", "search", "a dog", "-k", 2)
    assert hits.count(".jpg") == 2
    store = home / "store" / "tiny.h5"
    run_ok("train", "--embeddings", store, "--init", NAME, "--run-dir", here / "new", "--epochs", 1)
    beginning = load_origin(here / "new").provenance.beginning
    assert hub.repositories["models", NAME].sha in beginning.path


def _fault_of_loading(name):
    with pytest.raises(CusaError) as raised:
        cusa.load_student(name)
    return fault_of(raised.value)


def test_what_is_no_student(hub, here, adapter, home):
    assert _fault_of_loading(NAME) == Fault(HubRepositoryError, name=NAME)
    hub.add("models", NAME, {"config.json": b"{}"})
    assert _fault_of_loading(NAME) == Fault(StudentError, name=NAME)
    hub.add("models", NAME, {}, gated=True)
    assert _fault_of_loading(NAME) == Fault(GatedRepositoryError, name=NAME)
    weights = (adapter / "best" / "student.safetensors").read_bytes()
    hub.add("models", NAME, {"student.safetensors": weights[:-10]})
    with pytest.raises(RunError) as damaged:
        cusa.load_student(NAME)
    assert damaged.value.path.name == "student.safetensors"
    store = home / "store" / "tiny.h5"
    fault = run_fault(
        "train", "--embeddings", store, "--init", "owner/none", "--run-dir", here / "r"
    )
    assert fault == Fault(HubRepositoryError, name="owner/none")
    assert run_fault("eval", "index", home / "images", "--run", "owner/none") == fault


def test_a_name_in_a_folder_of_runs_is_a_mistyped_run(hub, here, adapter):
    shutil.copytree(adapter, here / "runs" / "one")
    hub.add("models", "runs/two", _contents(adapter / "best"))
    with pytest.raises(StudentError):
        cusa.load_student("runs/two")
    assert hub.downloaded == []


def test_without_a_network(here, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "cache"))
    with connected_hub(monkeypatch):
        pass  # it answers no more
    assert _fault_of_loading(NAME) == Fault(HubNetworkError, name=NAME)
