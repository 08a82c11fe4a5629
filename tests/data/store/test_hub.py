"""Stores on the hub: pushed to and pulled from a stand-in of it."""

import shutil

import pytest

from cusa.data.errors import (
    GatedRepositoryError,
    HubError,
    HubNetworkError,
    HubRepositoryError,
    HubTokenError,
    StoreError,
)
from cusa.data.records import Dataset
from cusa.data.store.hub_pull import ArrivalError, pull
from cusa.data.store.hub_push import push
from cusa.data.store.index import read_index, write_index
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.summary import summarize
from tests.helpers import (
    Fault,
    add_teacher,
    fault_of,
    make_store,
    records,
    run_fault,
    run_ok,
    settings,
    unit_rows,
)
from tests.hub_stand_in import connected_hub

NAME = "owner/store"
SIZES = {"train": 16, "val": 5}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with connected_hub(monkeypatch) as stand_in:
        yield stand_in


@pytest.fixture
def index(tmp_path):
    return make_store(tmp_path / "s", SIZES, dim=4)  # 12 files


def _repository(hub):
    return hub.repositories["datasets", NAME]


def _files(folder):
    paths = [path for path in folder.rglob("*.h5") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _fault(call, *args, **options):
    with pytest.raises((HubError, StoreError)) as raised:
        call(*args, **options)
    assert "\n" not in str(raised.value)
    return fault_of(raised.value)


def test_a_pushed_store_is_pulled_byte_by_byte(hub, index, tmp_path):
    text = run_ok("store", "push", index, NAME)
    assert text.index("42 captions") < text.index("pushed: ")
    repository = _repository(hub)
    assert repository.private
    card = repository.files.pop("README.md").decode()
    assert repository.files == _files(index.parent)
    assert card.startswith("---\n")
    assert "captions" in card
    run_ok("store", "pull", NAME, "--out", tmp_path / "p")
    assert _files(tmp_path / "p") == _files(index.parent)
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["store", "store.h5"]
    pulled, pushed = summarize(tmp_path / "p" / "store.h5"), summarize(index)
    assert {**pulled, "image_root": ""} == {**pushed, "image_root": ""}


def test_the_card_says_what_is_in_the_store(hub, index):
    push(index, NAME)
    card = _repository(hub).files["README.md"].decode()
    for named in ("made-up", "vision", "words", "made-up-image", "0" * 64, NAME, "store.h5"):
        assert named in card
    for split in EmbeddingStore(index).splits.values():
        assert not set(split.captions) & set(card.splitlines())
    assert str(index.parent) not in card


def test_a_store_is_public_only_if_it_is_asked_for(hub, index):
    assert not push(index, NAME, is_public=True).is_private
    assert _fault(push, index, NAME) == Fault(HubError, name=NAME)
    assert not push(index, NAME, is_public=True).is_private


def test_a_second_push_adds_what_is_new_and_keeps_the_card(hub, index):
    push(index, NAME)
    repository = _repository(hub)
    n_commits = repository.n_commits
    repository.files["README.md"] = b"---\nlicense: mit\n---\n"
    push(index, NAME)
    assert repository.n_commits == n_commits
    dataset = Dataset(
        "made-up", index.parent, {name: records(name, n) for name, n in SIZES.items()}
    )
    rows = {name: unit_rows(n, 4, seed=7) for name, n in SIZES.items()}
    add_teacher(index, dataset, "other", settings("image", 4, model_id="other"), rows)
    assert not push(index, NAME).has_new_card
    assert repository.files.pop("README.md") == b"---\nlicense: mit\n---\n"
    assert repository.files == _files(index.parent)


def test_shards_that_the_store_has_no_more_are_removed(hub, index):
    push(index, NAME)
    contents = read_index(index)
    teachers = {"vision": contents.teachers["vision"]}
    write_index(
        index, type(contents)(contents.dataset, contents.image_root, contents.splits, teachers)
    )
    push(index, NAME)
    shards = {file for file in _repository(hub).files if file.startswith("store/")}
    assert shards == {file for file in _files(index.parent) if file.startswith("store/vision/")}


def test_an_interrupted_push_is_resumed_and_no_store_before(hub, index, tmp_path, monkeypatch):
    monkeypatch.setattr("cusa.data.store.hub_push._FILES_PER_COMMIT", 4)
    hub.commits_left = 2
    assert run_fault("store", "push", index, NAME) == Fault(HubNetworkError, name=NAME)
    repository = _repository(hub)
    assert len(repository.files) == 8
    assert _fault(pull, NAME, tmp_path / "p") == Fault(HubError, name=NAME)
    hub.commits_left = 2  # the last shards, and the index
    push(index, NAME)
    assert len(repository.files) == 13


def test_a_store_that_is_not_whole_is_not_pushed(hub, index):
    shard = next(index.with_suffix("").rglob("*.h5"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + b"?")
    assert run_fault("store", "push", index, NAME) == Fault(StoreError, index)
    shard.unlink()
    assert run_fault("store", "push", index, NAME) == Fault(StoreError, index)
    shard.write_bytes(content)
    contents = read_index(index)
    entry = contents.teachers["words"]
    object.__setattr__(entry, "shards", {**entry.shards, "train": entry.shards["train"][1:]})
    write_index(index, contents)  # as that of a part, with a gap
    assert run_fault("store", "push", index, NAME) == Fault(StoreError, index)
    assert hub.repositories == {}


def test_another_store_in_the_repository_stays(hub, index, tmp_path):
    hub.add("datasets", NAME, {"coco.h5": b"", "README.md": b""})
    assert _fault(push, index, NAME) == Fault(HubError, name=NAME)
    hub.add("datasets", NAME, {"coco.h5": b"", "store.h5": b""})
    assert _fault(pull, NAME, tmp_path / "p") == Fault(HubError, name=NAME)


@pytest.mark.parametrize("name", ["store", "a/b/c", "owner/x--y", "owner/store ", "../x", ""])
def test_what_is_no_repository_is_refused(hub, index, name, tmp_path):
    assert _fault(push, index, name) == Fault(HubError, name=name)
    assert _fault(pull, name, tmp_path / "p") == Fault(HubError, name=name)
    assert not (tmp_path / "p").exists()


def test_without_a_token(index, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with connected_hub(monkeypatch, token=None) as hub:
        assert run_fault("store", "push", index, NAME) == Fault(HubTokenError, name=NAME)
        hub.add("datasets", NAME, {})
        missing = Fault(HubRepositoryError, name=NAME)
        assert run_fault("store", "pull", NAME, "--out", tmp_path / "p") == missing
        monkeypatch.setenv("HF_TOKEN", "another-token")
        assert run_fault("store", "push", index, "owner/new") == Fault(
            HubTokenError, name="owner/new"
        )


def test_what_the_hub_does_not_show(hub, index, tmp_path):
    assert _fault(pull, NAME, tmp_path) == Fault(HubRepositoryError, name=NAME)
    hub.add("datasets", NAME, {}, gated=True)
    assert _fault(pull, NAME, tmp_path) == Fault(GatedRepositoryError, name=NAME)
    assert _fault(push, index, NAME) == Fault(GatedRepositoryError, name=NAME)
    hub.add("datasets", NAME, {})
    missing = Fault(HubRepositoryError, name=NAME)
    assert _fault(pull, NAME, tmp_path, revision="v1") == missing


def test_without_a_network(index, tmp_path, monkeypatch):
    with connected_hub(monkeypatch):
        pass  # it answers no more
    missing = Fault(HubNetworkError, name=NAME)
    assert _fault(push, index, NAME) == missing
    assert _fault(pull, NAME, tmp_path / "p") == missing
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert _fault(pull, NAME, tmp_path / "p") == missing


def test_a_damaged_store_is_refused_and_what_is_whole_is_kept(hub, index, tmp_path):
    push(index, NAME)
    files = _repository(hub).files
    damaged, absent = [file for file in files if file.startswith("store/words/")][:2]
    contents = files[damaged], files.pop(absent)
    files[damaged] = contents[0][:-1] + b"?"
    folder = tmp_path / "p"
    refused = Fault(ArrivalError, folder / ".store.pull", name=NAME)
    assert run_fault("store", "pull", NAME, "--out", folder) == refused
    assert list(folder.iterdir()) == [folder / ".store.pull"]
    files[damaged], files[absent] = contents
    _repository(hub).n_commits += 1
    hub.downloaded.clear()
    pull(NAME, folder)
    assert sorted(hub.downloaded) == sorted([damaged, absent])
    assert _files(folder) == _files(index.parent)


def test_a_damaged_index_is_refused_and_downloaded_again(hub, index, tmp_path):
    push(index, NAME)
    files = _repository(hub).files
    content = files["store.h5"]
    files["store.h5"] = content[:-1] + bytes([content[-1] ^ 1])
    refused = Fault(ArrivalError, tmp_path / ".store.pull", name=NAME)
    assert _fault(pull, NAME, tmp_path) == refused
    files["store.h5"] = content
    assert pull(NAME, tmp_path).n_files == 12


def test_a_torn_download_is_resumed(hub, index, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits between tries
    push(index, NAME)
    torn = next(file for file in _repository(hub).files if file.startswith("store/words/val"))
    hub.broken.add(torn)
    assert _fault(pull, NAME, tmp_path / "p") == Fault(HubNetworkError, name=NAME)
    hub.broken.clear()
    hub.downloaded.clear()
    pull(NAME, tmp_path / "p")
    assert torn in hub.downloaded
    assert "store.h5" not in hub.downloaded
    assert _files(tmp_path / "p") == _files(index.parent)


def test_what_is_in_place_is_left_alone(hub, index, tmp_path):
    push(index, NAME)
    pull(NAME, tmp_path / "p")
    hub.downloaded.clear()
    assert not pull(NAME, tmp_path / "p").is_new
    assert hub.downloaded == ["store.h5"]
    other = make_store(tmp_path / "other", {"train": 3}, dim=4)
    before = _files(other.parent)
    assert _fault(pull, NAME, other.parent) == Fault(StoreError, other)
    assert before.items() <= _files(other.parent).items()
    other.unlink()
    assert _fault(pull, NAME, other.parent) == Fault(StoreError, other.with_suffix(""))
    shutil.rmtree(tmp_path / "p" / "store" / "words")
    assert _fault(pull, NAME, tmp_path / "p") == Fault(StoreError, tmp_path / "p" / "store.h5")


def test_an_index_that_leads_out_of_its_folder(hub, index, tmp_path):
    contents = read_index(index)
    entry = contents.teachers["vision"]
    shard = entry.shards["val"][0]
    object.__setattr__(shard, "file", "../outside.h5")
    write_index(index, contents)
    hub.add("datasets", NAME, {"store.h5": index.read_bytes(), "../outside.h5": b"x"})
    refused = Fault(ArrivalError, tmp_path / "p" / ".store.pull", name=NAME)
    assert _fault(pull, NAME, tmp_path / "p") == refused
    assert not (tmp_path / "outside.h5").exists()
