"""Folders of data sets on the hub: whole files, listings, retries, errors in one line."""

import os
from pathlib import Path

import pytest

from cusa.data.errors import ObjectError
from cusa.data.objects.folder import is_remote, open_folder, require_writable, split_file
from cusa.data.objects.remote import ObjectInfo
from tests.hub_stand_in import TOKEN, connected_hub

NAME = "owner/tars"
ROOT = f"hf://datasets/{NAME}"
FOLDER = f"{ROOT}/a set"
FILES = {
    "top.tar": b"top",
    "a set/set.h5": b"manifest",
    "a set/pairs/0é+.h5": b"pairs",
    "a set/pairs/deep/x.h5": b"x" * 100_000,
    "a set 2/other.h5": b"other",
}


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.fixture
def hub(monkeypatch):
    with connected_hub(monkeypatch) as hub:
        hub.add("datasets", NAME, dict(FILES))
        yield hub


def fetched(location, name, tmp_path):
    target = tmp_path / "fetched" / "file"
    open_folder(location).fetch(name, target)
    assert os.listdir(target.parent) == ["file"]
    content = target.read_bytes()
    target.unlink()
    return content


def failure(action):
    with pytest.raises(ObjectError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return caught.value


def fields(error):
    return error.location, error.name, error.status


def fetch_failure(location, name, tmp_path):
    error = failure(lambda: fetched(location, name, tmp_path))
    assert not list((tmp_path / "fetched").iterdir())
    return error


@pytest.mark.parametrize("location", [FOLDER, f"{FOLDER}/", Path(FOLDER)])
def test_files_are_fetched(hub, tmp_path, location):
    assert is_remote(location)
    assert str(open_folder(location)) == FOLDER
    for name in ("set.h5", "pairs/0é+.h5", "pairs/deep/x.h5"):
        assert fetched(location, name, tmp_path) == FILES[f"a set/{name}"]
    assert hub.asked == {"HEAD": 3, "GET": 3}


def test_files_at_the_top_of_a_repository(hub, tmp_path):
    assert split_file(f"{ROOT}/top.tar") == (ROOT, "top.tar")
    assert fetched(ROOT, "top.tar", tmp_path) == b"top"
    assert {entry.name for entry in open_folder(ROOT).list()} == set(FILES)


def test_a_revision(hub, tmp_path):
    commit = hub.repositories["datasets", NAME].sha
    location = f"{ROOT}@{commit}/a set"
    assert fetched(location, "set.h5", tmp_path) == b"manifest"
    assert len(list(open_folder(location).list())) == 3
    missing = f"{ROOT}@no-such-tag/a set"
    assert fields(fetch_failure(missing, "set.h5", tmp_path)) == (missing, "", 404)
    assert fields(failure(lambda: list(open_folder(missing).list()))) == (missing, "", 404)


@pytest.mark.parametrize("page", [1, 1000])
def test_what_is_listed(hub, page):
    hub.page = page
    expected = {
        ObjectInfo("set.h5", 8),
        ObjectInfo("pairs/0é+.h5", 5),
        ObjectInfo("pairs/deep/x.h5", 100_000),
    }
    listed = list(open_folder(FOLDER).list())
    assert len(listed) == 3
    assert set(listed) == expected
    assert list(open_folder(f"{ROOT}/nothing").list()) == []


def test_a_file_that_is_missing(hub, tmp_path):
    error = fetch_failure(FOLDER, "pairs/b.h5", tmp_path)
    assert fields(error) == (FOLDER, "pairs/b.h5", 404)
    assert error.is_missing


def test_repositories_that_cannot_be_read(hub, tmp_path, monkeypatch):
    hub.add("datasets", "owner/gated", {}, gated=True)
    statuses = {"hf://datasets/owner/none/set": 404, "hf://datasets/owner/gated/set": 403}
    for location, status in statuses.items():
        error = fetch_failure(location, "set.h5", tmp_path)
        assert fields(error) == (location, "", status)
        assert not error.is_missing
        assert fields(failure(lambda: list(open_folder(location).list()))) == fields(error)  # noqa: B023
    monkeypatch.setenv("HF_TOKEN", f"not-{TOKEN}")
    assert fields(fetch_failure(FOLDER, "set.h5", tmp_path)) == (FOLDER, "", 404)


@pytest.mark.parametrize("method", ["HEAD", "GET", "LIST"])
def test_a_hub_that_fails(hub, tmp_path, method):
    def read():
        if method == "LIST":
            return len(list(open_folder(FOLDER).list())) == 3
        return fetched(FOLDER, "set.h5", tmp_path) == b"manifest"

    hub.failures[method] = 2
    assert read()
    hub.failures[method] = 1000
    hub.asked.clear()
    error = failure(read)
    assert (error.location, error.status) == (FOLDER, 503)
    assert 3 <= hub.asked[method] <= 8


def test_downloads_that_break_off(hub, tmp_path):
    hub.cuts = 2
    assert fetched(FOLDER, "pairs/deep/x.h5", tmp_path) == FILES["a set/pairs/deep/x.h5"]
    hub.broken.add("a set/pairs/deep/x.h5")
    error = fetch_failure(FOLDER, "pairs/deep/x.h5", tmp_path)
    assert fields(error) == (FOLDER, "pairs/deep/x.h5", None)
    assert len(hub.downloaded) < 20


def test_a_hub_that_is_not_there(hub, tmp_path, monkeypatch):
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nowhere)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", f"{nowhere}/a")
    assert fields(fetch_failure(FOLDER, "set.h5", tmp_path)) == (FOLDER, "set.h5", None)
    assert fields(failure(lambda: list(open_folder(FOLDER).list()))) == (FOLDER, "", None)


def test_without_a_network(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fields(failure(lambda: open_folder(FOLDER))) == (FOLDER, "HF_HUB_OFFLINE", None)
    assert not hub.asked


@pytest.mark.parametrize(
    "location",
    [
        "hf://datasets",
        "hf://datasets/owner",
        "hf://owner/model/set",
        "hf://spaces/owner/name/set",
        "hf://buckets/owner/name/set",
        "hf://datasets/owner/name@/set",
        "hf://datasets/own er/name/set",
        "hf://datasets/owner/../set",
    ],
)
def test_locations_that_are_none(location):
    assert failure(lambda: list(open_folder(location).list())).location == location


@pytest.mark.parametrize("name", ["../a", "/a", "a\nb"])
def test_names_that_are_none(hub, tmp_path, name):
    assert fetch_failure(FOLDER, name, tmp_path).name == name


def test_nothing_is_written(hub, tmp_path):
    folder = open_folder(FOLDER)
    for action in (folder.create, folder.replace):
        assert failure(lambda: action("a.h5", tmp_path / "a.h5")).location == FOLDER  # noqa: B023
    assert failure(lambda: require_writable(Path(FOLDER))).location == FOLDER
    require_writable("s3://bucket/set")
    require_writable(tmp_path)
    assert not hub.asked


def test_a_full_disk_is_no_fault_of_the_hub(hub, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space") as caught:
        open_folder(FOLDER).fetch("set.h5", tmp_path / "target")
    assert caught.value.errno == 28
