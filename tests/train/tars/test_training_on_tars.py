"""Students trained on tar sets: from rows and from pictures, stopped anywhere, and refusals."""

import os
import signal

import pytest

from cusa.data.errors import DataError, SettingError, StoreError
from cusa.data.store.checksum import ChecksumError
from cusa.data.tars.samples import TarError
from cusa.data.tars.tar_set import TarSet
from cusa.train.saving.run_dir import load_run
from cusa.train.saving.student_folder import load_saved
from cusa.train.trainer import Trainer
from tests.data.tars.tar_files import write_set, write_tars
from tests.helpers import (
    ADAPTER,
    Fault,
    ForkedCommand,
    kill_at,
    make_tiny_clip,
    run_failure,
    run_fault,
    run_ok,
)
from tests.train.same_runs import assert_same_run

N_TARS = 5
N_PAIRS = 4
STEPS = ("--batch-size", 4, "--epochs", 2, "--checkpoint-steps", 2, "--set", "train.log_every=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    write_set(folder / "set", write_tars(folder / "tars", N_TARS, N_PAIRS))
    make_tiny_clip(folder / "clip")
    return folder


def _options(folder, student):
    if student == "adapter":
        return ("--embeddings", folder / "set", *ADAPTER, *STEPS)
    return ("--embeddings", folder / "set", "--student", folder / "clip", *STEPS)


@pytest.fixture(scope="module", params=["adapter", "clip"])
def whole(request, folder, tmp_path_factory):
    """A student, and its run that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("runs") / request.param
    run_ok("train", *_options(folder, request.param), "--workers", 0, "--run-dir", run_dir)
    return request.param, run_dir


@pytest.mark.parametrize(("step", "workers"), [(1, 0), (4, 1), (7, 0), (9, 2)])
def test_killed_at_a_step_a_resumed_run_equals_an_undisturbed_one(
    folder, whole, tmp_path, step, workers
):
    student, undisturbed = whole
    run_dir = tmp_path / "run"
    arguments = (*_options(folder, student), "--workers", workers, "--run-dir", run_dir)
    patch = kill_at(Trainer, "_train_on", step, signal.SIGKILL, 1)
    killed = ForkedCommand("train", *arguments, patch=patch).wait()
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run_ok("train", "--resume", "--run-dir", run_dir)
    assert_same_run(undisturbed, run_dir)


@pytest.mark.parametrize(
    ("image", "text"), [("hf:{clip}", "stored:words"), ("stored:eyes", "hf:{clip}")]
)
def test_a_half_stored_student_resumes(folder, tmp_path, image, text):
    """Pictures are read of tars, and captions of the set, where a tower needs them."""
    towers = ("--set", f"student.image={image}", "--set", f"student.text={text}")
    options = [option.format(clip=folder / "clip") for option in towers]
    sizes = ("--set", "student.hidden_dim=16", "--set", "student.embed_dim=8", "--warmup", 0)
    arguments = ("--embeddings", folder / "set", *options, *sizes, *STEPS)
    run_ok("train", *arguments, "--workers", 0, "--run-dir", tmp_path / "whole")
    arguments = (*arguments, "--workers", 1, "--run-dir", tmp_path / "run")
    patch = kill_at(Trainer, "_train_on", 5, signal.SIGKILL, 1)
    killed = ForkedCommand("train", *arguments, patch=patch).wait()
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run_ok("train", "--resume", "--run-dir", tmp_path / "run")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_run_says_what_it_was_trained_on(folder, whole):
    _, run_dir = whole
    config, provenance = load_run(run_dir)
    assert config.data.embeddings == str(folder / "set")
    assert config.data.val_split is None
    assert provenance.dataset == "tars"
    assert provenance.splits == {"train": TarSet(folder / "set").fingerprint("train")}
    assert provenance.teachers.image[0].name == "eyes"
    assert load_saved(run_dir).origin.step == 2 * N_TARS


def _make_set(tmp_path):
    tars = write_tars(tmp_path / "tars", N_TARS, N_PAIRS)
    write_set(tmp_path / "set", tars)
    return tars


def test_a_set_with_other_pairs_is_not_resumed_from(folder, tmp_path):
    tars = _make_set(tmp_path)
    arguments = (*_options(tmp_path, "adapter"), "--run-dir", tmp_path / "run")
    run_ok("train", *arguments)
    for path in (tmp_path / "set").rglob("*.h5"):
        path.unlink()
    write_set(tmp_path / "set", tars[:-1])
    again = ("train", "--resume", "--run-dir", tmp_path / "run", "--epochs", 3)
    assert isinstance(run_failure(*again), StoreError)


def test_tars_that_moved_are_found_by_their_folder(folder, tmp_path):
    _make_set(tmp_path)
    make_tiny_clip(tmp_path / "clip")
    (tmp_path / "tars").rename(tmp_path / "moved")
    arguments = (*_options(tmp_path, "clip"), "--workers", 0, "--run-dir", tmp_path / "run")
    failure = run_failure("train", *arguments)
    assert isinstance(failure, DataError)
    assert failure.path == tmp_path / "tars"
    run_ok("train", *arguments, "--image-root", tmp_path / "moved")


@pytest.mark.parametrize("change", ["longer", "missing", "a pipe", "other bytes"])
def test_a_changed_tar_stops_a_run_which_goes_on_when_the_tar_is_back(folder, tmp_path, change):
    tars = _make_set(tmp_path)
    make_tiny_clip(tmp_path / "clip")
    content = tars[3].read_bytes()
    if change == "longer":
        tars[3].write_bytes(content + bytes(512))
    elif change == "missing":
        tars[3].unlink()
    elif change == "a pipe":
        tars[3].unlink()
        os.mkfifo(tars[3])
    else:
        tars[3].write_bytes(content.replace(b"picture number", b"another number"))
    arguments = (*_options(tmp_path, "clip"), "--workers", 1, "--run-dir", tmp_path / "run")
    assert run_fault("train", *arguments) == Fault(TarError, tars[3], name="00003")
    tars[3].unlink(missing_ok=True)
    tars[3].write_bytes(content)
    run_ok("train", "--resume", "--run-dir", tmp_path / "run")


@pytest.mark.parametrize("file", ["pairs/00002.h5", "eyes/00002.h5"])
@pytest.mark.parametrize("change", ["missing", "damaged", "a link to itself"])
def test_a_file_of_the_set_that_stops_a_run_is_named(tmp_path, file, change):
    """By the class and the path that the file has without a run around it."""
    _make_set(tmp_path)
    path = tmp_path / "set" / file
    if change == "damaged":
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    else:
        path.unlink()
    if change == "a link to itself":
        path.symlink_to(path)
    arguments = (*_options(tmp_path, "adapter"), "--workers", 0, "--run-dir", tmp_path / "run")
    expected = {
        "missing": Fault(StoreError, path),
        "damaged": Fault(ChecksumError, path),
        "a link to itself": Fault(StoreError, path, name="00002"),
    }
    assert run_fault("train", *arguments) == expected[change]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--report",), SettingError),
        (("--patience", 1), SettingError),
        (("--set", "data.train_split=test"), StoreError),
        (("--set", "data.val_split=test"), StoreError),
        (("--image-teacher", "words"), StoreError),
        (("--image-encoder", "nobody"), StoreError),
        (("--batch-size", 1), SettingError),
    ],
)
def test_what_a_set_lacks_is_refused_in_one_line(folder, tmp_path, options, error):
    arguments = (*_options(folder, "adapter"), "--run-dir", tmp_path / "run", *options)
    assert isinstance(run_failure("train", *arguments), error)


def test_an_evaluation_needs_a_store_of_its_own(folder, whole):
    _, run_dir = whole
    failure = run_failure("eval", "--run", run_dir)
    assert isinstance(failure, StoreError)
    assert failure.path == folder / "set"
