"""Commands on whole sets: arrays of jobs, ``cusa-store index`` and ``info``, plan and progress."""

import itertools
import json
import os

import h5py
import pytest

from cusa.data.errors import DataError, SettingError, StoreError
from cusa.data.tars.manifest import MANIFEST
from cusa.data.tars.origin import ORIGIN, SetOrigin, record_origin
from cusa.data.tars.pair_files import pairs_path
from cusa.data.tars.pairs import read_pairs_of_tar
from cusa.data.tars.samples import TarError
from cusa.data.tars.tar_set import TarSet
from cusa.data.tars.verify import verify_set
from cusa.precompute.processes import connect
from cusa.precompute.tars.progress import TarProgress
from cusa.stages.precompute_tars import plan_tars
from tests.data.tars.tar_files import contents, pair, write_set, write_tar, write_tars
from tests.helpers import make_tiny_clip, run_failure, run_ok

N_TARS = 5
N_PAIRS = 4


@pytest.fixture
def tars(tmp_path):
    return write_tars(tmp_path / "tars", N_TARS, N_PAIRS)


def _job(monkeypatch, number, size):
    for name, value in {"COUNT": size, "MIN": 0, "MAX": size - 1, "STEP": 1, "ID": number}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))


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
    assert contents(tmp_path / "set") == contents(tmp_path / "alone")
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


def test_the_index_refuses_tars_that_are_not_those_of_the_set(tmp_path, tars):
    folder = tmp_path / "set"
    write_set(folder, tars[:3])
    manifest = (folder / MANIFEST).read_bytes()
    other = write_tar(tmp_path / "other" / "other.tar", pair(1))
    error = run_failure("store", "index", folder, "--dataset", other)
    assert (type(error), error.name, error.path) == (SettingError, "dataset", folder)
    error = run_failure("store", "index", folder, "--dataset", f"{tmp_path}/{{00000..00002}}.tar")
    assert (type(error), error.path) == (DataError, tmp_path / "00000.tar")
    assert (folder / MANIFEST).read_bytes() == manifest
    assert not (folder / ORIGIN).exists()


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
    assert isinstance(error, StoreError)
    assert error.path == tmp_path / "set" / ORIGIN


# --- several processes


def test_processes_index_and_verify_like_threads(tmp_path, tars):
    folder = tmp_path / "set"
    write_set(folder, tars)
    expected = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).unlink()
    record_origin(folder, str(tmp_path / "tars"), {})
    run_ok("store", "index", folder, "--processes", 2)
    assert (folder / MANIFEST).read_bytes() == expected
    damaged = folder / "words" / "00003.h5"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    n_files, damages = verify_set(folder, processes=2)
    assert [damage.path for damage in damages] == [damaged]
    assert (n_files, damages) == verify_set(folder)


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


# --- plan and progress


class Lines:
    """A reporter that keeps how far the tars are."""

    def __init__(self):
        self.done = []
        self.statuses = []

    def planned(self, teacher, split, n_rows, n_done):
        pass

    def advanced(self, teacher, split, n_done, status):
        self.done.append(n_done)
        self.statuses.append(status)


def test_progress_counts_parts_of_tars_and_images(tmp_path, tars):
    pairs = [read_pairs_of_tar(tar, "txt", False) for tar in tars[:2]]
    reporter = Lines()
    seconds = itertools.chain([0.0], itertools.repeat(4.0))
    progress = TarProgress(connect(), reporter, lambda: next(seconds))
    progress.start()
    progress.begin(pairs)
    for share in (0.25, 0.7, 1.0, 1):
        progress.reach(share)
    progress.finish_tar(n_images=0)
    progress.begin(pairs[:1])
    progress.reach(1)
    assert reporter.done == [0.5, 1.4, 2, 2, 3, 4]
    images = [2, 5, 8, 8, 8, 12]
    assert reporter.statuses == [f"{number / 4:.3g} images/s" for number in images]


def test_a_plan_counts_what_is_missing_and_writes_nothing(
    tmp_path, tars, models, teachers, monkeypatch
):
    monkeypatch.setattr("cusa.stages.precompute_tars.PROBE_S", 0.05)
    write_tar(tmp_path / "tars" / "00005.tar", [*pair(1), ("k.txt", b"?")])
    options = ["--dataset", tmp_path / "tars", "--caption", "json:all", "--out", tmp_path / "set"]
    vit, words = teachers[:2], teachers[2:4]
    run_ok("precompute", *options, *vit, *words, "--workers", 0, "--tars", "0:2")
    run_ok("precompute", *options, *vit, "--workers", 0, "--tars", "2:3")
    before = contents(tmp_path)
    chosen = {"caption": "json:all", "out": tmp_path / "set", "workers": 0}
    teacher = [f"vit={models[0]}", f"words={models[1]}"]
    plan = plan_tars(tmp_path / "tars", teacher=teacher, **chosen)
    assert contents(tmp_path) == before
    estimate = plan.estimate
    assert (estimate.n_tars, estimate.n_done, estimate.n_left_out) == (6, 2, 1)
    assert sorted(estimate.images.tolist()) == [1, 4, 4, 4]
    assert sorted(estimate.captions.tolist()) == [2, 8, 8, 8]
    # 00002.tar has its images' rows already.
    images, captions = estimate.teachers
    assert (images.n_shards, images.n_rows) == (3, round(3 * 13 / 4))
    assert (captions.n_shards, captions.n_rows) == (4, 26)
    with h5py.File(tmp_path / "set" / "words" / "00000.h5") as file:
        assert captions.n_bytes == 26 * file["rows"][0].nbytes
    assert estimate.seconds > estimate.reading_s
    output = run_ok("precompute", *options, *vit, *words, "--workers", 0, "--plan")
    for phrase in ("6 tars, 2 of them done", "about 3 images (1 to 4 in 4 tars", "4 jobs: 1 tars"):
        assert phrase in output


def test_a_plan_of_a_finished_set_has_nothing_to_try(tmp_path, tars, teachers):
    options = ["--dataset", tmp_path / "tars", "--out", tmp_path / "set", *teachers]
    run_ok("precompute", *options)
    assert "5 tars, 5 of them done" in run_ok("precompute", *options, "--plan")


def test_a_plan_names_a_wrong_caption_field_and_a_damaged_tar(tmp_path, tars, teachers):
    options = ["--dataset", tmp_path / "tars", "--out", tmp_path / "set", *teachers, "--plan"]
    assert run_failure("precompute", *options, "--caption", "json:words").name == "caption"
    tars[2].write_bytes(tars[2].read_bytes()[:700])
    error = run_failure("precompute", *options)
    assert isinstance(error, TarError)
    assert error.path == tars[2]
    assert not (tmp_path / "set").exists()
