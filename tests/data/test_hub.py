"""Models by hub name: a made-up local cache, no network."""

import subprocess
import sys
import threading

import pytest
from huggingface_hub.errors import EntryNotFoundError

from cusa.data.errors import StudentError, TeacherError
from cusa.data.hub import is_hub_name, locate, require
from cusa.precompute.teachers import parse_teacher
from tests.helpers import Fault, fault_of, make_pairs, run, run_ok
from tests.tiny_models import VISION, save_text, save_vision

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the hub's layout; the folder of the snapshot of owner/model in it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return _snapshot(tmp_path / "hub", "owner", "model")


def _snapshot(hub, owner, name):
    repository = hub / f"models--{owner}--{name}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(SHA)
    snapshot = repository / "snapshots" / SHA
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    return snapshot


@pytest.fixture
def asked(monkeypatch):
    """The addresses that the hub is asked for; it answers with an exception in the list, if any."""
    asked = []

    def answer(url, timeout):
        assert timeout <= 5
        errors = [item for item in asked if isinstance(item, Exception)]
        asked.append(url)
        if errors:
            raise errors[-1]

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", answer)
    return asked


def test_offline_a_cached_model_is_its_snapshot_and_nothing_is_asked(cache, asked, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert locate("owner/model", TeacherError) == str(cache)
    for error_class in (TeacherError, StudentError):
        with pytest.raises(error_class) as caught:
            locate("owner/other", error_class)
        assert caught.value.name == "owner/other"
        assert "\n" not in str(caught.value)
    assert asked == []


def test_without_a_network_the_hub_is_asked_once(cache, asked):
    asked.append(OSError("[Errno -2] Name or service not known\nsecond line"))
    assert locate("owner/model", TeacherError) == str(cache)
    assert len(asked) == 2
    with pytest.raises(TeacherError) as refused:
        locate("owner/other", TeacherError)
    assert fault_of(refused.value) == Fault(TeacherError, name="owner/other")
    assert len(asked) == 3


def test_a_hub_that_does_not_answer_is_not_waited_for(cache, monkeypatch):
    """The system may take half a minute to find that a host has no address."""
    monkeypatch.setattr("cusa.data.hub._TIMEOUT_S", 0.1)
    ended = threading.Event()
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url, timeout: ended.wait(60))
    assert locate("owner/model", TeacherError) == str(cache)
    with pytest.raises(TeacherError) as refused:
        locate("owner/other", TeacherError)
    assert fault_of(refused.value) == Fault(TeacherError, name="owner/other")
    ended.set()


def test_kinds_of_models_on_the_hub(cache, asked, monkeypatch):
    files = {
        "owner/words": ["modules.json"],
        "owner/see": ["processor_config.json"],
        "owner/text": [],
    }
    monkeypatch.setattr("huggingface_hub.file_exists", lambda name, file: file in files[name])
    kinds = {name: parse_teacher(name).kind for name in files}
    assert kinds == {"owner/words": "sentence", "owner/see": "vision", "owner/text": "sentence"}


def test_what_the_hub_has_is_loaded_from_there(cache, asked, tmp_path):
    assert locate("owner/model", TeacherError) == "owner/model"
    assert asked[0].endswith("owner/model/resolve/main/config.json")
    asked.append(
        EntryNotFoundError("no config.json")
    )  # such as a repository of sentence-transformers modules
    assert locate("owner/other", TeacherError) == "owner/other"
    assert locate(str(tmp_path), TeacherError) == str(tmp_path)
    assert len(asked) == 3


def test_only_names_are_looked_up(asked, tmp_path):
    names = {
        "owner/model": True,
        "NAME=owner/model": False,
        "./owner": False,
        "a/b/c": False,
        "a": False,
        "a/": False,
    }
    assert {name: is_hub_name(name) for name in names} == names
    illegal = [
        "a b/c",
        "owner/model ",
        "owner/-x",
        "owner/x--y",
        "owner/x..y",
        "owner/x.git",
        "owner/é",
        "/a",
        "a/b\n",
    ]
    assert not any(map(is_hub_name, illegal))
    require("NAME=owner/model", TeacherError)
    require(str(tmp_path), TeacherError)
    assert asked == []


@pytest.mark.parametrize(
    "name", ["a b/c d", "owner/model ", "no/such/folder", "owner/x--y", "a\0b"]
)
def test_what_is_neither_folder_nor_name_is_refused(name, asked):
    """The hub's library has an exception of its own for each."""
    with pytest.raises(StudentError) as caught:
        locate(name, StudentError)
    assert caught.value.name == name
    assert asked == []


@pytest.mark.parametrize("text", ["a b/c d", "NAME=owner/model ", "owner/x--y"])
def test_a_teacher_of_an_illegal_name_is_unknown(text, asked):
    with pytest.raises(TeacherError):
        parse_teacher(text)
    assert asked == []


def test_teachers_of_a_local_cache(cache, asked, monkeypatch, tmp_path):
    """A vision model's repository has no modules.json, and that cannot be asked for."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    save_vision(cache, "ViTModel", "ViTConfig", **VISION)
    words = _snapshot(tmp_path / "hub", "owner", "words")
    save_text(
        words, "BertModel", "BertConfig", hidden_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    assert parse_teacher("owner/model").kind == "vision"
    assert parse_teacher("owner/words").kind == "sentence"
    manifest, out = make_pairs(tmp_path / "d"), tmp_path / "s.h5"
    teachers = ("--teacher", "owner/model", "--teacher", "owner/words")
    text = run_ok("precompute", "--dataset", manifest, *teachers, "--out", out, "--workers", 0)
    assert "model: train 8, val 4 rows x 32" in text
    assert asked == []


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("precompute", ["--dataset", "demo", "--teacher", "owner/model", "--out", "s.h5"]),
        ("precompute", ["--dataset", "demo", "--teacher", "mpnet", "--out", "s.h5"]),
        ("evaluate", ["retrieval", "--model", "owner/model"]),
    ],
)
def test_offline_an_unknown_name_fails_before_libraries_are_loaded(module, arguments, tmp_path):
    code = (
        f"import sys, cusa.cli.{module} as cli\n"
        f"try:\n    cli.main({arguments})\n"
        "except SystemExit as stopped:\n    print(stopped.code, 'torch' in sys.modules)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=True, cwd=tmp_path
    )
    assert done.stdout == "1 False\n"
    assert "is not in the local cache" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_offline_a_default_teacher_is_missed_before_another_is_loaded(cache, monkeypatch, tmp_path):
    """Nothing is named for captions, and mpnet, which stands in for it, is not in the cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    save_vision(tmp_path / "vit", "ViTModel", "ViTConfig", **VISION)
    manifest = make_pairs(tmp_path / "d")
    teacher = ("--teacher", f"v={tmp_path / 'vit'}")
    result = run("precompute", "--dataset", manifest, *teacher, "--out", tmp_path / "s.h5")
    assert result.exit_code == 1
    assert "all-mpnet-base-v2" in result.output
    assert "loading" not in result.output


@pytest.mark.parametrize(
    "text",
    [
        "a--b/c",
        "a..b/c",
        "a/c.git",
        "a\n/c",
        "-a/b",
        "a/b-",
        "a./b",
        "é/b",
        "x" * 97 + "/b",
        "a\0/b",
    ],
)
def test_what_the_hub_would_refuse_as_a_name_is_an_unknown_teacher(asked, text):
    assert not is_hub_name(text)
    with pytest.raises(TeacherError) as raised:
        parse_teacher(text)
    assert raised.value.name
    assert asked == []


def test_a_teacher_of_a_very_long_name_is_one_error():
    with pytest.raises(TeacherError):
        parse_teacher("x=" + "long/" * 1000)
