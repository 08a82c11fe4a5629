"""Data sets of the hub by name, when the hub does not show them or does not answer."""

import json
import time

import pytest

from cusa.data.datasets import load_dataset
from cusa.data.errors import (
    DataError,
    GatedRepositoryError,
    HubError,
    HubNetworkError,
    HubRepositoryError,
)
from tests.helpers import Fault, fault_of
from tests.hub_stand_in import connected_hub

NAME = "owner/pairs"


def _fault(name):
    with pytest.raises((DataError, HubError)) as refused:
        load_dataset(f"hf:{name}")
    return fault_of(refused.value)


def _refuse_to_wait(_seconds):
    raise AssertionError("the hub was asked again")


@pytest.fixture
def without_network(monkeypatch):
    with connected_hub(monkeypatch):
        pass  # it answers no more
    monkeypatch.setattr(time, "sleep", _refuse_to_wait)


def test_what_the_hub_does_not_show(monkeypatch):
    with connected_hub(monkeypatch) as hub:
        assert _fault(NAME) == Fault(HubRepositoryError, name=NAME)
        hub.add("datasets", NAME, {}, gated=True)
        assert _fault(f"{NAME}:train") == Fault(GatedRepositoryError, name=NAME)


@pytest.mark.parametrize("name", ["pairs", "a b/c", "owner/pairs/more", "../pairs", ":train"])
def test_what_is_no_name(name):
    assert _fault(name) == Fault(DataError, name=name.partition(":")[0])


def test_a_hub_that_does_not_answer_is_asked_once(without_network):
    assert _fault(NAME) == Fault(HubNetworkError, name=NAME)


def test_what_is_in_the_cache_is_read_without_a_network(without_network, monkeypatch, tmp_path):
    import datasets

    _cache(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    dataset = load_dataset(f"hf:{NAME}")
    assert dataset.name == "pairs"
    assert [record.captions for record in dataset.splits["train"]] == [("A dog.",)]
    assert not datasets.config.HF_HUB_OFFLINE  # as before


def _cache(folder):
    """Write a data set into a cache of the library's layout, as if it came from the hub."""
    import datasets

    source = folder / "pairs.jsonl"
    source.write_text(json.dumps({"image": "a.jpg", "caption": "A dog."}) + "\n")
    datasets.load_dataset("json", data_files=str(source), cache_dir=str(folder))
    arrow_path = next((folder / "json").rglob("json-train.arrow"))
    version = arrow_path.parent
    info = json.loads((version / "dataset_info.json").read_text())
    info["dataset_name"] = info["splits"]["train"]["dataset_name"] = "pairs"
    cached = folder / "owner___pairs" / "default" / version.parent.name / version.name
    cached.mkdir(parents=True)
    (cached / "dataset_info.json").write_text(json.dumps(info))
    arrow_path.rename(cached / "pairs-train.arrow")
