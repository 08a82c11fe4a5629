"""Commands on whole sets: arrays of jobs, ``cusa-store index`` and ``info``."""

import json
import os

import pytest

from cusa.data.errors import CusaError, StoreError
from cusa.data.tars.manifest import MANIFEST
from cusa.data.tars.origin import ORIGIN, SetOrigin, record_origin
from cusa.data.tars.pair_files import pairs_path
from cusa.data.tars.tar_set import TarSet
from tests.data.tars.tar_files import pair, write_set, write_tar, write_tars
from tests.helpers import make_tiny_clip, run_failure, run_ok

N_TARS = 5
N_PAIRS = 4


@pytest.fixture
def tars(tmp_path):
    return write_tars(tmp_path / "tars", N_TARS, N_PAIRS)


def _job(monkeypatch, number, size):
    for name, value in {"COUNT": size, "MIN": 0, "MAX": size - 1, "STEP": 1, "ID": number}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))


def _contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_an_array_of_jobs_makes_a_set_that_trains_in_place(tmp_path, tars, teachers, monkeypatch):
    pattern = f"{tmp_path}/tars/{{00000..00004}}.tar"
    command = ["precompute", "--dataset", pattern, *teachers, "--batch-size", 2, "--out"]
    run_ok(*command, tmp_path / "alone")
    with monkeypatch.context() as environment:
        for job in (1, 0):
            _job(environment, job, 2)
            run_ok(*command, tmp_path / "set")
    assert not (tmp_path / "set" / MANIFEST).exists()
    run_ok("store", "index", tmp_path / "set")
    assert _contents(tmp_path / "set") == _contents(tmp_path / "alone")
    clip = make_tiny_clip(tmp_path / "clip")
    student = ["--student", clip, "--batch-size", 4, "--steps", 1, "--workers", 0]
    student += ["--set", "optim.warmup_steps=0"]
    run_ok("train", "--embeddings", tmp_path / "set", *student, "--run-dir", tmp_path / "run")


def test_tars_of_several_folders_are_in_none(tmp_path, tars, teachers):
    """Also if each job makes the tars of one of them."""
    more = write_tar(tmp_path / "more" / "more.tar", pair(99))
    command = ["precompute", "--dataset", tars[0], "--dataset", more, *teachers, "--out"]
    for tar_range in ("0:1", "1:2"):
        run_ok(*command, tmp_path / "set", "--tars", tar_range)
    run_ok("store", "index", tmp_path / "set")
    assert TarSet(tmp_path / "set").image_root is None


def test_the_index_learns_where_tars_were_moved_and_names_those_without_rows(tmp_path, tars):
    folder = tmp_path / "set"
    write_set(folder, [tars[0], tars[3]])
    (tmp_path / "tars").rename(tmp_path / "moved")
    output = run_ok("store", "index", folder, "--dataset", tmp_path / "moved")
    assert "3 of 5 tars have no rows: --tars 1:3, --tars 4:5" in output
    assert TarSet(folder).image_root == tmp_path / "moved"
    (folder / MANIFEST).unlink()
    run_ok("store", "index", folder)
    assert TarSet(folder).image_root == tmp_path / "moved"


def test_an_origin_is_joined_with_what_was_recorded(tmp_path):
    record_origin(tmp_path, "/tars", {"vit": "/models/vit"})
    origin = record_origin(tmp_path, "", {"words": "/models/words"})
    assert origin == SetOrigin("/tars", {"vit": "/models/vit", "words": "/models/words"})
    assert SetOrigin.recorded(tmp_path) == origin
    written = (tmp_path / ORIGIN).stat()
    record_origin(tmp_path, "/tars", {})
    assert (tmp_path / ORIGIN).stat() == written


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"image_root": 1, "sources": {}}', '{"image_root": "", "sources": {"a": 1}}'],
)
def test_an_edited_origin_is_refused_by_name(tmp_path, tars, text):
    write_set(tmp_path / "set", tars)
    (tmp_path / "set" / ORIGIN).write_text(text)
    error = run_failure("store", "index", tmp_path / "set")
    assert isinstance(error, CusaError)
    assert error.path == tmp_path / "set" / ORIGIN


# --- info


def _info(folder):
    return json.loads(run_ok("store", "info", folder, "--json"))


def test_info_says_what_a_set_holds(tmp_path, tars):
    folder = tmp_path / "set"
    odd = write_tar(tmp_path / "tars" / "00009.tar", [*pair(1), ("k.txt", b"?"), *pair(2)])
    write_set(folder, [*tars, odd], skipped=(1,), caption="json:all")
    summary = _info(folder)
    n_images = N_TARS * N_PAIRS + 2
    expected = {
        "set": str(folder),
        "image_root": str(tmp_path / "tars"),
        "caption": "json:all",
        "tars": N_TARS + 1,
        "images": n_images,
        "captions": 2 * n_images,
        "left_out": 1,
        "tar_bytes": sum(os.path.getsize(tar) for tar in [*tars, odd]),
    }
    assert {name: summary[name] for name in expected} == expected
    eyes, words = (summary["teachers"][name] for name in ("eyes", "words"))
    assert (eyes["rows"], eyes["skipped"], eyes["source"]) == (
        n_images,
        N_TARS + 1,
        "made-up-image",
    )
    assert words["bytes"] == 2 * n_images * words["dim"] * 2
    lacking = ("damaged_tars", "not_indexed", "missing_files", "tars_without_rows")
    assert [summary[name] for name in lacking] == [[], [], [], []]
    output = run_ok("store", "info", folder)
    for phrase in ("6 tars in", "22 images, 44 captions, 1 samples left out", "eyes", "words"):
        assert phrase in output


def test_info_names_what_a_set_lacks(tmp_path, tars):
    folder = tmp_path / "set"
    write_set(folder, tars[:2])
    manifest = (folder / MANIFEST).read_bytes()
    write_set(folder, tars[:3])
    (folder / MANIFEST).write_bytes(manifest)
    pairs_path(folder, "00000").unlink()
    (folder / "words" / "00001.h5").unlink()
    summary = _info(folder)
    assert summary["not_indexed"] == ["00002"]
    assert summary["missing_files"] == ["pairs/00000.h5", "words/00001.h5"]
    assert summary["tars_without_rows"] == ["00003", "00004"]
    output = run_ok("store", "info", folder)
    for tars_named in ("00002", "pairs/00000.h5, words/00001.h5", "00003, 00004"):
        assert tars_named in output
    (tmp_path / "tars").rename(tmp_path / "moved")
    assert _info(folder)["tars_without_rows"] is None


def test_info_of_an_unfinished_set_says_what_to_do(tmp_path, tars):
    write_set(tmp_path / "set", tars)
    (tmp_path / "set" / MANIFEST).unlink()
    error = run_failure("store", "info", tmp_path / "set")
    assert isinstance(error, StoreError)
    assert error.path == tmp_path / "set" / MANIFEST
