"""Trained students as a cross-modal teacher: ``cusa-store import-runs``."""

import shutil

import numpy as np
import pytest

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.errors import CusaError, RunError, SettingError, StoreError
from cusa.data.store.reader import EmbeddingStore
from cusa.eval.students_as_teacher import last_tau, side_by_side
from cusa.train.encode_split import encode_split
from cusa.train.saving.run_dir import load_run, load_trained, read_history
from cusa.train.sources import student_sources
from tests.helpers import make_store, run, run_failure, run_ok

ENCODERS = ("--image-encoder", "vision", "--text-encoder", "words")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store, and two students that were trained on it."""
    folder = tmp_path_factory.mktemp("trained")
    make_store(folder / "store")
    for seed in (0, 1):
        run_ok(
            *("train", "--embeddings", folder / "store" / "store.h5", "--student", "adapter"),
            *("--epochs", 1, "--batch-size", 8, "--seed", seed, *ENCODERS),
            *("--run-dir", folder / f"run{seed}"),
        )
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of them."""
    return shutil.copytree(trained, tmp_path / "copy")


def embeddings_of(run_dir, store, split_name):
    config, provenance = load_run(run_dir)
    sources = student_sources(store, split_name, config, provenance.encoder_names)
    return encode_split(load_trained(run_dir).student, sources, "cpu")


def test_cosines_are_the_means_of_the_students(folder):
    path = folder / "store" / "store.h5"
    run_dirs = folder / "run0", folder / "run1"
    arguments = ("store", "import-runs", path, *run_dirs, "--cross-teacher", "two")
    run_ok(*arguments)
    store = EmbeddingStore(path)
    for split_name in store.splits:
        split = store.split(split_name)
        image = store.embeddings("two-image", split_name).gather(np.arange(split.n_images))
        text = store.embeddings("two-text", split_name).gather(np.arange(split.n_captions))
        cosines = []
        for run_dir in run_dirs:
            embeddings = embeddings_of(run_dir, store, split_name)
            cosines.append(embeddings.text["cross"] @ embeddings.image["cross"].T)
        mean = np.mean(cosines, axis=0)
        # The rows are float16.
        np.testing.assert_allclose(text.astype(float) @ image.T.astype(float), mean, atol=2e-3)
    taus = []
    for run_dir in run_dirs:
        lines = read_history(run_dir).lines
        taus.append([line["tau"] for line in lines if "tau" in line][-1])
    expected_scale = np.mean(1 / np.array(taus))
    for name in ("two-image", "two-text"):
        recorded = store.teachers[name].transform["logit_scale"]
        assert recorded == pytest.approx(expected_scale)
    assert store.teachers["two-text"].normalizer == store.teachers["words"].normalizer

    before = path.read_bytes()
    run_ok(*arguments)
    assert path.read_bytes() == before


def test_a_student_learns_from_them(folder):
    path = folder / "store" / "store.h5"
    run_ok("store", "import-runs", path, folder / "run0", "--cross-teacher", "one")
    run_ok(
        *("train", "--embeddings", path, "--student", "adapter", "--loss", "rule"),
        *("--set", "loss.rule=dr", "--set", "loss.cross_teacher_taus=[0.1]", *ENCODERS),
        *("--epochs", 1, "--batch-size", 8, "--run-dir", folder / "born"),
    )
    _, provenance = load_run(folder / "born")
    assert provenance.teachers.by_kind()["cross"][0].name.startswith("one")


def test_what_was_interrupted_goes_on(folder, monkeypatch):
    path = folder / "store" / "store.h5"
    uninterrupted = shutil.copytree(folder, folder.parent / "uninterrupted")
    arguments = (folder / "run0", "--cross-teacher", "one")
    run_ok("store", "import-runs", uninterrupted / "store" / "store.h5", *arguments)

    from cusa.eval import students_as_teacher

    import_rows = students_as_teacher.import_rows
    calls = []

    def fail_at_the_third(*given, **options):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return import_rows(*given, **options)

    monkeypatch.setattr(students_as_teacher, "import_rows", fail_at_the_third)
    assert run("store", "import-runs", path, *arguments).exit_code != 0
    monkeypatch.undo()
    assert set(EmbeddingStore(path).teachers) == {"vision", "words", "one-image", "one-text"}
    run_ok("store", "import-runs", path, *arguments)
    whole = uninterrupted / "store" / "store.h5"
    assert EmbeddingStore(path).teachers == EmbeddingStore(whole).teachers
    run_ok("store", "verify", path)


def test_other_students_by_the_name_are_refused(folder):
    path = folder / "store" / "store.h5"
    run_ok("store", "import-runs", path, folder / "run0", "--cross-teacher", "one")
    before = path.read_bytes()
    error = run_failure("store", "import-runs", path, folder / "run1", "--cross-teacher", "one")
    assert isinstance(error, StoreError)
    assert error.name == "one-image"
    assert path.read_bytes() == before


def test_what_is_no_run_is_refused(folder):
    path = folder / "store" / "store.h5"
    before = path.read_bytes()
    given = {
        folder / "run0" / "best": RunError,
        folder / "nowhere": CusaError,
        folder / "store": CusaError,
    }
    for run_dir, error_class in given.items():
        error = run_failure("store", "import-runs", path, run_dir, "--cross-teacher", "one")
        assert isinstance(error, error_class)
    error = run_failure("store", "import-runs", path, folder / "run0", "--cross-teacher", "a/b")
    assert isinstance(error, SettingError)
    assert path.read_bytes() == before


def test_side_by_side_has_the_rows_that_all_students_embed():
    first, second = np.arange(6.0).reshape(3, 2), np.arange(6.0, 12).reshape(3, 2)
    members = []
    for rows, numbers in ((first, [0, 2, 3]), (second, [1, 2, 3])):
        embeddings = {"cross": rows.astype(np.float32)}
        row_numbers = np.array(numbers)
        members.append(
            SplitEmbeddings(embeddings, embeddings, row_numbers, row_numbers, np.arange(3))
        )
    common, rows = side_by_side(members, "image")
    assert common.tolist() == [2, 3]
    assert rows.tolist() == [[2, 3, 8, 9], [4, 5, 10, 11]]


def test_a_run_without_a_logged_temperature_is_refused(tmp_path):
    with pytest.raises(RunError) as raised:
        last_tau(tmp_path)
    assert raised.value.path == tmp_path
