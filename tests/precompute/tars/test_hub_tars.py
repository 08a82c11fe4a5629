"""Tars and sets on the hub: stage one over them, training, the commands that read a set."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

import cusa
from cusa.data.errors import DataError, ObjectError
from cusa.data.tars.samples import TarError
from cusa.train.saving.run_dir import load_run
from tests.data.tars.tar_files import files_of_tars, write_set, write_tars
from tests.helpers import ADAPTER, make_tiny_clip, run, run_failure, run_ok
from tests.hub_stand_in import connected_hub
from tests.train.same_runs import assert_same_run

N_TARS = 3
N_PAIRS = 4
REPOSITORY = "owner/cc"
TARS = f"hf://datasets/{REPOSITORY}/cc"
SET = f"hf://datasets/{REPOSITORY}/a set"
PATTERN = f"{TARS}/{{00000..{N_TARS - 1:05d}}}.tar"
STEPS = ("--batch-size", 4, "--epochs", 2, "--set", "train.log_every=1", "--set", "data.window=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    write_set(folder / "set", write_tars(folder / "tars", N_TARS, N_PAIRS))
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path, folder):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    files = {f"cc/{path.name}": path.read_bytes() for path in folder.glob("tars/*")}
    for path in folder.glob("set/**/*.h5"):
        files[f"a set/{path.relative_to(folder / 'set')}"] = path.read_bytes()
    with connected_hub(monkeypatch) as hub:
        hub.add("datasets", REPOSITORY, files)
        yield hub
    assert not list(scratch.glob("cusa-*"))


def _files(hub):
    return hub.repositories["datasets", REPOSITORY].files


def test_rows_are_those_of_a_local_set(hub, folder, tmp_path, teachers):
    local = tmp_path / "local"
    run_ok("precompute", "--dataset", folder / "tars", "--out", local, *teachers)
    commit = hub.repositories["datasets", REPOSITORY].sha
    at_commit = f"hf://datasets/{REPOSITORY}@{commit}/cc"
    datasets = [PATTERN, f"{TARS}/", f"{TARS}/0*.tar", f"{at_commit}/*.tar"]
    for number, dataset in enumerate(datasets):
        out = tmp_path / str(number)
        hub.asked.clear()
        run_ok("precompute", "--dataset", dataset, "--out", out, *teachers)
        assert files_of_tars(out) == files_of_tars(local)
        assert hub.asked["GET"] == N_TARS
        assert hub.asked["LIST"] == (number > 0)
    assert cusa.TarSet(tmp_path / "0").manifest.image_root == TARS
    assert cusa.TarSet(tmp_path / "3").manifest.image_root == at_commit


def test_a_set_on_the_hub_is_read(hub, folder):
    assert "files are whole" in run_ok("store", "verify", SET)
    assert f"{SET}: {N_TARS} tars" in run_ok("store", "info", SET)
    remote, local = cusa.TarSet(SET), cusa.TarSet(folder / "set")
    assert remote.fingerprint("train") == local.fingerprint("train")
    assert remote.pairs("00001").keys == local.pairs("00001").keys
    for teacher in local.manifest.teachers:
        np.testing.assert_array_equal(remote.rows(teacher, "00001"), local.rows(teacher, "00001"))
    damaged = next(name for name in _files(hub) if name.startswith("a set/pairs/"))
    _files(hub)[damaged] = _files(hub)[damaged][:-1] + b"x"
    result = run("store", "verify", SET)
    assert result.exit_code != 0
    assert result.output.startswith(f"hf://datasets/{REPOSITORY}/{damaged}: ")


@pytest.mark.parametrize("student", ["adapter", "clip"])
def test_a_run_is_that_on_the_files_of_this_machine(hub, folder, tmp_path, student):
    options = (*STEPS, *ADAPTER)
    image_root = ()
    if student == "clip":
        options = (*STEPS, "--student", make_tiny_clip(tmp_path / "clip"), "--workers", 2)
        image_root = ("--image-root", TARS)
    local, remote = tmp_path / "local", tmp_path / "remote"
    run_ok("train", "--embeddings", folder / "set", *options, "--run-dir", local)
    cache = ("--set", f"data.cache={tmp_path / 'cache'}")
    run_ok("train", "--embeddings", SET, *options, *image_root, *cache, "--run-dir", remote)
    assert_same_run(local, remote)
    assert load_run(remote)[0].data.embeddings == SET
    # Pairs and the rows of two teachers, and a tar for the student that reads pictures; each comes
    # once, as it is kept.
    names = [name for name in hub.downloaded if name != "a set/set.h5"]
    assert len(names) == len(set(names)) == N_TARS * (3 + (student == "clip"))
    assert "LIST" not in hub.asked


@pytest.mark.parametrize(
    ("dataset", "kind"),
    [
        (f"{TARS}/1*.tar", DataError),
        (f"hf://datasets/{REPOSITORY}/nothing/", DataError),
        ("hf://datasets/owner/none/*.tar", ObjectError),
        ("hf://datasets/owner/none/0.tar", ObjectError),
        (f"hf://datasets/{REPOSITORY}@v9/cc/00000.tar", ObjectError),
        (f"{TARS}/99999.tar", TarError),
        (f"hf://{REPOSITORY}/cc/00000.tar", ObjectError),
        ("hf://", ObjectError),
    ],
)
def test_tars_that_cannot_be_read(hub, tmp_path, teachers, dataset, kind):
    out = tmp_path / "set"
    error = run_failure("precompute", "--dataset", dataset, "--out", out, *teachers)
    assert type(error) is kind
    assert not list(out.glob("*/*.h5"))


def test_a_hub_that_fails_is_no_missing_tar(hub, tmp_path, teachers, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    command = ("precompute", "--dataset", PATTERN, "--out", tmp_path / "set", *teachers)
    hub.broken.add("cc/00002.tar")
    error = run_failure(*command, "--on-tar", "skip")
    assert isinstance(error, ObjectError)
    assert (error.location, error.name) == (TARS, "00002.tar")
    hub.broken.clear()
    run_ok(*command)
    assert len(cusa.TarSet(tmp_path / "set").manifest.names) == N_TARS


def test_nothing_is_written_to_the_hub(hub, folder, teachers, tmp_path):
    before = dict(_files(hub))
    precompute = ("precompute", "--dataset", folder / "tars", "--out", SET, *teachers)
    for command in (precompute, ("store", "index", SET)):
        error = run_failure(*command)
        assert isinstance(error, ObjectError)
        assert error.location == SET
    assert not hub.asked
    assert _files(hub) == before
    assert not Path("hf:").exists()
