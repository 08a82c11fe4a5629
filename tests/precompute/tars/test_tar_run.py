"""Stage one over tars: rows, resumption, damage, and runs side by side."""

import itertools
import multiprocessing
import os
import signal
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest

from cusa.data.errors import DataError, StoreError
from cusa.data.store.reader import EmbeddingStore
from cusa.data.tars.manifest import MANIFEST
from cusa.data.tars.pair_files import pairs_path
from cusa.data.tars.paths import common_folder
from cusa.data.tars.samples import TarError, read_samples
from cusa.data.tars.tar_set import TarSet
from cusa.precompute.pipeline import PipelineOptions, encode_shards
from cusa.precompute.processes import connect
from cusa.precompute.run_options import RunOptions
from cusa.precompute.tars.maker import TarPolicy
from cusa.precompute.tars.run import TarRun
from cusa.precompute.tars.workplace import open_workplace
from cusa.precompute.teachers import parse_teacher
from tests.child_processes import status_at_end
from tests.data.tars.parquet_files import write_parquet_units
from tests.data.tars.tar_files import contents, jpeg, pair, write_tar, write_tars
from tests.helpers import run, run_failure, run_ok

N_TARS = 5
N_PAIRS = 3
PIPELINE = PipelineOptions("cpu", "fp32", workers=0, encoders=1, skip_errors=False)


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.notes = []
        self.planned_tars = []

    def loading(self, teacher):
        pass

    def loaded(self):
        pass

    def planned(self, teacher, split, n_rows, n_done):
        self.planned_tars.append((n_rows, n_done))

    def advanced(self, teacher, split, n_done, file):
        pass

    def note(self, text):
        self.notes.append(text)

    fault = note


@pytest.fixture
def tars(tmp_path):
    return write_tars(tmp_path / "tars", N_TARS, N_PAIRS)


@pytest.fixture
def make(models):
    vit, words = models
    requests = [parse_teacher(f"vit={vit}"), parse_teacher(f"words={words}")]

    def make_rows(
        tars, folder, on_tar="fail", caption="txt", requests=requests, notes=None, **changes
    ):
        pipeline = replace(PIPELINE, **changes)
        options = RunOptions(folder / MANIFEST, pipeline, 2, None, None, "float16", "albef")
        policy = TarPolicy(caption, on_tar, is_share=False, image_root=common_folder(tars))
        notes = notes or Notes()
        with open_workplace(folder) as workplace:
            run = TarRun(tars, requests, options, policy, workplace, connect(), notes, lambda: None)
            return run.go()

    make_rows.requests = requests
    return make_rows


@pytest.mark.parametrize("write", [write_tars, write_parquet_units])
def test_tars_in_a_folder_of_the_set_stay(tmp_path, write, teachers):
    """Copies of an object store's tars have a folder of the same name, which is emptied."""
    units = write(tmp_path / "tars", N_TARS, N_PAIRS)
    units[1].write_bytes(units[1].read_bytes()[:1000])
    before = contents(tmp_path / "tars")
    pattern = tmp_path / "tars" / f"*{units[0].suffix}"
    command = ["--dataset", pattern, "--out", tmp_path, "--on-tar", "skip", *teachers]
    run_ok("precompute", *command)
    assert len(TarSet(tmp_path)) == N_TARS - 1
    assert contents(tmp_path / "tars") == before


def test_rows_are_those_of_a_store_of_the_same_files(tmp_path, tars, make, teachers):
    folder = tmp_path / "set"
    make(tars, folder)
    lines = ["image,caption,image_id"]
    for number in range(N_TARS * N_PAIRS):
        (tmp_path / f"{number:06d}.jpg").write_bytes(jpeg(number))
        lines.append(f"{number:06d}.jpg,picture number {number % 50},{number}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    out = tmp_path / "store.h5"
    shards = ["--shard-rows", N_PAIRS, "--batch-size", 2, "--splits", "train"]
    options = ["--image-root", tmp_path, "--val-fraction", 0, "--out", out, *shards]
    run_ok("precompute", "--dataset", tmp_path / "pairs.csv", *options, *teachers)

    store = EmbeddingStore(out)
    tar_set = TarSet(folder)
    for teacher in ("vit", "words"):
        rows = np.concatenate([tar_set.rows(teacher, name) for name in tar_set.manifest.names])
        np.testing.assert_array_equal(rows, store[teacher, "train"][:])
        assert tar_set.teachers[teacher] == store.teachers[teacher]


def test_blocks_of_tars_change_no_byte(tmp_path, tars, make, monkeypatch):
    make(tars, tmp_path / "one_block")
    monkeypatch.setattr("cusa.precompute.tars.run.BLOCK_IMAGES", 1)
    make(tars, tmp_path / "a_tar_at_a_time")
    assert contents(tmp_path / "one_block") == contents(tmp_path / "a_tar_at_a_time")


def _killed_at(n_renamings, make, tars, folder):
    """Make rows in a process that is killed before it gives a file its final name."""
    renamings = itertools.count(1)

    def kill(event, _):
        if event == "os.rename" and next(renamings) == n_renamings:
            os.kill(os.getpid(), signal.SIGKILL)

    def make_and_die():
        sys.addaudithook(kill)
        make(tars, folder)

    process = multiprocessing.get_context("fork").Process(target=make_and_die)
    process.start()
    return status_at_end(process) == -signal.SIGKILL


def test_a_run_goes_on_where_it_was_killed(tmp_path, tars, make):
    """However often, and wherever; of the killed runs, nothing is left but whole files."""
    make(tars, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    folder = tmp_path / "killed"
    # The fifth run is killed between two files of pairs, the last one before the manifest.
    for n_renamings in (1, 2, 3, 6, 5, 4, 2):
        assert _killed_at(n_renamings, make, tars, folder)
        for name, content in contents(folder).items():
            if not name.endswith(".tmp"):
                assert content == expected[name]
    make(tars, folder)
    assert contents(folder) == expected


def test_two_runs_at_once_write_the_same_bytes(tmp_path, tars, make):
    make(tars, tmp_path / "alone")
    folder = tmp_path / "together"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=make, args=(tars, folder)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [status_at_end(process) for process in processes] == [0, 0, 0]
    assert contents(folder) == contents(tmp_path / "alone")


def test_finished_tars_are_not_made_again(tmp_path, tars, make):
    folder = tmp_path / "set"
    make(tars[:3], folder)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.h5")}
    notes = Notes()
    make(tars, folder, notes=notes)
    assert notes.planned_tars == [(N_TARS, 3)]
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in times.items())
    assert len(TarSet(folder)) == N_TARS


def test_a_teacher_is_added_to_a_set(tmp_path, tars, make):
    vit, words = make.requests
    make(tars, tmp_path / "both")
    make(tars, tmp_path / "added", requests=[vit])
    make(tars, tmp_path / "added", requests=[words])
    assert contents(tmp_path / "added") == contents(tmp_path / "both")


def test_rows_of_other_settings_are_refused(tmp_path, tars, make, models):
    folder = tmp_path / "set"
    make(tars, folder)
    before = contents(folder)
    with pytest.raises(StoreError) as caught:
        make(tars, folder, requests=[parse_teacher(f"words={models[0]}")])
    assert caught.value.name == "words"
    assert contents(folder) == before


def test_captions_of_another_rule_are_refused_before_anything_is_made(tmp_path, tars, make):
    folder = tmp_path / "set"
    make(tars[:1], folder)
    before = contents(folder)
    with pytest.raises(StoreError) as caught:
        make(tars, folder, caption="json:caption")
    assert caught.value.name == "caption"
    assert contents(folder) == before


def test_a_tar_that_changed_is_refused_by_name(tmp_path, tars, make):
    folder = tmp_path / "set"
    vit, words = make.requests
    make(tars, folder, requests=[vit])
    before = contents(folder)
    write_tar(tars[0], pair(0) + pair(1) + pair(77))
    with pytest.raises(TarError) as caught:
        make(tars, folder, requests=[words])
    assert (caught.value.path, caught.value.name) == (tars[0], "00000")
    assert contents(folder).keys() >= before.keys()


def _write_other_pictures(path, first):
    """A tar with the same keys and captions as before, and other pictures."""
    members = []
    for number in range(first, first + N_PAIRS):
        members += [(f"{number:06d}.jpg", jpeg(number + 100)), *pair(number)[1:]]
    return write_tar(path, members)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_tar_that_changes_between_reading_and_encoding_is_refused(
    tmp_path, tars, make, monkeypatch, workers
):
    """Also where unreadable pictures are skipped, as its pictures are not at fault."""

    def encode(*arguments, **options):
        _write_other_pictures(tars[1], N_PAIRS)
        return encode_shards(*arguments, **options)

    monkeypatch.setattr("cusa.precompute.tars.maker.encode_shards", encode)
    folder = tmp_path / "set"
    with pytest.raises(TarError) as caught:
        make(tars, folder, skip_errors=True, workers=workers)
    assert (caught.value.path, caught.value.name) == (tars[1], "00001")
    assert not (folder / "vit" / "00001.h5").exists()


def test_rows_left_by_a_killed_run_are_not_taken_for_other_pictures(tmp_path, tars, make):
    folder = tmp_path / "set"
    make(tars, folder)
    for tar in ("00000", "00001"):
        pairs_path(folder, tar).unlink()
    times = {path: path.stat().st_mtime_ns for path in (folder / "vit").glob("*.h5")}
    _write_other_pictures(tars[1], N_PAIRS)
    make(tars, folder)
    made_again = [path.stem for path, time_ns in times.items() if path.stat().st_mtime_ns > time_ns]
    assert made_again == ["00001"]
    make(tars, tmp_path / "expected")
    assert contents(folder) == contents(tmp_path / "expected")


# --- damage


def _damage(tars):
    second_picture = read_samples(tars[1]).samples[1].members["jpg"]
    tars[1].write_bytes(tars[1].read_bytes()[: second_picture.offset + 1])
    tars[3].write_bytes(b"")


def test_a_damaged_tar_stops_the_run_by_default(tmp_path, tars, make):
    _damage(tars)
    with pytest.raises(TarError) as caught:
        make(tars, tmp_path / "set")
    assert caught.value.path == tars[1]


def test_damaged_tars_are_skipped(tmp_path, tars, make):
    whole = tmp_path / "whole"
    make(tars, whole)
    _damage(tars)
    notes = Notes()
    manifest = make(tars, tmp_path / "set", on_tar="skip", notes=notes)
    for tar in (tars[1], tars[3]):
        assert any(str(tar) in note for note in notes.notes)
    assert manifest.names == ["00000", "00002", "00004"]
    for name, content in contents(tmp_path / "set").items():
        assert name == MANIFEST or content == contents(whole)[name]


def test_the_whole_samples_of_damaged_tars_are_kept(tmp_path, tars, make):
    _damage(tars)
    folder = tmp_path / "set"
    # All samples are there, but not the end mark.
    tars[3].write_bytes(tars[0].read_bytes().rstrip(b"\0"))
    manifest = make(tars, folder, on_tar="keep")
    assert manifest.is_complete.tolist() == [True, False, True, False, True]
    assert manifest.counts["n_images"].tolist() == [3, 1, 3, 3, 3]
    assert TarSet(folder).rows("vit", "00001").shape[0] == 1


def test_pictures_that_cannot_be_read_stop_the_run_or_are_skipped(tmp_path, tars, make):
    half = jpeg(7)[:300]
    write_tar(tars[2], [*pair(6), ("000007.jpg", half), ("000007.txt", b"half"), *pair(8)])
    folder = tmp_path / "set"
    with pytest.raises(DataError):
        make(tars, folder)
    make(tars, folder, skip_errors=True)
    rows = TarSet(folder).rows("vit", "00002")
    assert np.isnan(rows).all(axis=1).tolist() == [False, True, False]
    with h5py.File(folder / "vit" / "00002.h5") as file:
        assert file["skipped"][:].tolist() == [1]
    assert TarSet(folder).manifest.teachers["vit"].n_skipped.tolist() == [0, 0, 1, 0, 0]


def test_a_tar_without_pairs_is_finished(tmp_path, tars, make):
    write_tar(tars[0], [("k.txt", b"no picture")])
    folder = tmp_path / "set"
    make(tars, folder)
    tar_set = TarSet(folder)
    assert len(tar_set.rows("vit", "00000")) == len(tar_set.rows("words", "00000")) == 0
    assert pairs_path(folder, "00000").exists()
    notes = Notes()
    make(tars, folder, notes=notes)
    assert notes.planned_tars == [(N_TARS, N_TARS)]


# --- the command line


def test_the_command_line_makes_a_set_and_its_manifest(tmp_path, tars, make, teachers):
    make(tars, tmp_path / "expected")
    pattern = f"{tmp_path}/tars/{{00000..00004}}.tar"
    options = ["--batch-size", 2, "--out", tmp_path / "set", *teachers]
    run_ok("precompute", "--dataset", pattern, *options, "--tars", "0:2")
    assert not (tmp_path / "set" / MANIFEST).exists()
    run_ok("precompute", "--dataset", pattern, *options, "--tars", "2:5")
    run_ok("store", "index", tmp_path / "set")
    assert contents(tmp_path / "set") == contents(tmp_path / "expected")
    assert run_ok("store", "verify", tmp_path / "set").startswith("16 files")


def test_a_damaged_file_of_a_set_is_set_aside_and_made_again(tmp_path, tars, make, teachers):
    folder = tmp_path / "set"
    make(tars, folder)
    expected = contents(folder)
    for name in ("vit/00001.h5", "pairs/00003.h5"):
        content = bytearray(expected[name])
        content[-1] ^= 1
        (folder / name).write_bytes(content)
    assert run("store", "verify", folder).exit_code == 1
    run_ok("store", "verify", folder, "--repair")
    for path in folder.rglob("*.damaged"):
        path.unlink()
    run_ok(
        "precompute", "--dataset", tmp_path / "tars", "--batch-size", 2, "--out", folder, *teachers
    )
    assert contents(folder) == expected


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--limit", "3"], "limit"),
        (["--caption", "xml"], "caption"),
        (["--tars", "3:9"], "tars"),
        (["--out", "set.h5"], "out"),
    ],
)
def test_options_that_do_not_apply_are_refused(tmp_path, tars, teachers, options, name):
    given = ["--dataset", tmp_path / "tars", "--out", tmp_path / "set", *teachers, *options]
    assert run_failure("precompute", *given).name == name
    assert not (tmp_path / "set").exists()


def test_a_command_without_teachers_goes_on_with_its_defaults(
    tmp_path, tars, make, models, monkeypatch
):
    """Not with no teachers, although the folder already has rows of both modalities."""
    make(tars, tmp_path / "expected")
    monkeypatch.setattr("cusa.precompute.teachers.DEFAULTS", {"image": "vit", "text": "words"})
    monkeypatch.chdir(models[0].parent)
    options = ["--dataset", tmp_path / "tars", "--out", tmp_path / "set"]
    options += ["--batch-size", 2, "--workers", 0]
    run_ok("precompute", *options, "--tars", "0:2")
    run_ok("precompute", *options)
    assert contents(tmp_path / "set") == contents(tmp_path / "expected")
    run_ok("precompute", *options, "--teacher", f"more={models[1]}")
    assert list(TarSet(tmp_path / "set").teachers) == ["more", "vit", "words"]


def test_a_teacher_may_not_have_the_name_of_the_folder_of_the_pairs(tmp_path, tars, models):
    options = ["--dataset", tmp_path / "tars", "--out", tmp_path / "set"]
    error = run_failure("precompute", *options, "--teacher", f"pairs={models[0]}")
    assert error.name == "teacher"


def test_options_of_tars_are_refused_for_other_data(tmp_path):
    error = run_failure("precompute", "--dataset", "demo", "--on-tar", "keep")
    assert error.name == "on_tar"
