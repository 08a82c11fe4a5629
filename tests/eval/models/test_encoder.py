"""A trained student on new images and texts: the embeddings that evaluation has, from anywhere."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cusa
from cusa.data.errors import (
    DataError,
    ImageError,
    RunError,
    SettingError,
    StudentError,
    TeacherError,
    WorkerError,
)
from cusa.data.store.reader import EmbeddingStore
from cusa.train.encode_split import encode_split
from cusa.train.saving.run_dir import load_trained
from cusa.train.sources import student_sources
from tests.helpers import (
    make_pairs,
    make_tiny_clip,
    make_tiny_sentence,
    make_tiny_vit,
    run_failure,
    run_ok,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An adapter and a CLIP student, trained on the same image files."""
    folder = tmp_path_factory.mktemp("encoder")
    manifest, clip = make_pairs(folder / "data", n=16), make_tiny_clip(folder / "clip")
    vit, words = make_tiny_vit(folder / "vit"), make_tiny_sentence(folder / "words")
    store = folder / "store.h5"
    teachers = ("--teacher", f"vit={vit}", "--teacher", f"words={words}", "--batch-size", 1)
    run_ok("precompute", "--dataset", manifest, *teachers, "--out", store)
    small = ("--batch-size", 8, "--epochs", 2, "--set", "student.embed_dim=8")
    for student in ("adapter", clip):
        run_dir = folder / ("adapter" if student == "adapter" else "dual")
        run_ok("train", "--embeddings", store, "--student", student, "--run-dir", run_dir, *small)
    return folder


@pytest.mark.parametrize("kind", ["adapter", "dual"])
def test_new_images_and_texts_get_the_embeddings_that_evaluation_has(runs, kind):
    student = cusa.load_student(runs / kind, device="cpu")
    store = EmbeddingStore(runs / "store.h5")
    saved = load_trained(runs / kind)
    names = {"image": "vit", "text": "words"} if kind == "adapter" else {}
    sources = student_sources(store, "val", saved.origin.config, names, saved.processors)
    expected = encode_split(saved.student, sources, "cpu")
    split = store.split("val")
    paths = [store.image_root / p for p in split.image_paths]
    for head in ("cross", "uni"):
        images, texts = (
            student.encode_image(paths, head, batch_size=3),
            student.encode_text(list(split.captions), head),
        )
        assert images.dtype == texts.dtype == np.float32
        np.testing.assert_allclose(images, expected.image[head], atol=2e-5)
        np.testing.assert_allclose(texts, expected.text[head], atol=2e-5)
    assert student.uni_head == "uni"


@pytest.mark.parametrize("kind", ["adapter", "dual"])
def test_one_or_many_paths_or_pictures(runs, tmp_path, kind):
    student = cusa.load_student(runs / kind / "best", device="cpu")
    path = runs / "data" / "003.jpg"
    rows = student.encode_image([path, str(path), Image.open(path)])
    assert rows.shape == (3, 8)
    np.testing.assert_allclose(student.encode_image(str(path)), rows[1], atol=1e-6)
    np.testing.assert_allclose(rows[2], rows[0], atol=1e-6)
    assert student.encode_text("a picture").shape == (8,)
    Image.fromarray(np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)).save(
        tmp_path / "deep.png"
    )
    deep = student.encode_image([tmp_path / "deep.png", Image.open(tmp_path / "deep.png")])
    np.testing.assert_allclose(deep[1], deep[0], atol=1e-6)
    with pytest.raises(ValueError, match="batch_size"):
        student.encode_text(["a"], batch_size=0)
    assert student.encode_text([]).shape == student.encode_image([]).shape == (0, 8)
    with pytest.raises(ValueError, match="head"):
        student.encode_text("a", head="both")
    with pytest.raises(ImageError) as refused:
        student.encode_image("none.jpg")
    assert refused.value.path == Path("none.jpg")


@pytest.fixture(scope="module")
def student(runs):
    return cusa.load_student(runs / "dual", device="cpu")


def assert_same(rows, expected):
    """But for rounding, which depends on the size of batches; other pictures' rows are far away."""
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def _pixels(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _as_tensor(pixels):
    return torch.from_numpy(pixels).movedim(-1, -3)


def test_arrays_and_tensors_are_pictures(student):
    """Of every number of channels, alone or in a stack; as Pillow's image of the same pixels."""
    for channels in (1, 3, 4):
        stack = _pixels(channels, 3, 40, 50, channels)
        pictures = [Image.fromarray(pixels.squeeze()) for pixels in stack]
        assert {picture.mode for picture in pictures} == {{1: "L", 3: "RGB", 4: "RGBA"}[channels]}
        expected = student.encode_image(pictures)
        for given in (
            stack,
            _as_tensor(stack),
            list(stack),
            (_as_tensor(pixels) for pixels in stack),
        ):
            assert_same(student.encode_image(given, batch_size=2), expected)
        for given in (stack[1], _as_tensor(stack[1]), pictures[1]):
            assert_same(student.encode_image(given), expected[1])
    grey = _pixels(0, 40, 50)
    expected = student.encode_image(Image.fromarray(grey))
    assert expected.shape == (8,)
    for given in (grey, torch.from_numpy(grey), grey[:, :, None], np.asfortranarray(grey)):
        assert_same(student.encode_image(given), expected)
    assert student.encode_image(stack[:0]).shape == (0, 8)


def test_a_sequence_is_any_iterable_and_may_hold_anything(student, runs):
    path, pixels = runs / "data" / "003.jpg", _pixels(1, 40, 50, 3)
    expected = student.encode_image([path, pixels])
    given = (path, str(path), Image.open(path), pixels, _as_tensor(pixels))
    rows = student.encode_image((item for item in given), "cross", 2)
    assert_same(rows, expected[[0, 0, 0, 1, 1]])
    assert_same(student.encode_image(np.array([str(path)])), expected[:1])
    assert_same(student.encode_image(np.array(str(path))), expected[0])
    texts = ["picture 1", "number 2", "picture 3"]
    expected = student.encode_text(texts)
    for given in (iter(texts), tuple(texts), np.array(texts), dict.fromkeys(texts)):
        assert_same(student.encode_text(given, batch_size=2), expected)
    taken = []

    def pictures():
        for number in range(5):
            taken.append(number)
            yield pixels if number < 4 else None

    with pytest.raises(ImageError) as refused:
        student.encode_image(pictures(), batch_size=2)
    assert refused.value.location == "image 4"


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((3, 40, 50), np.uint8),
        torch.zeros((40, 50, 3), dtype=torch.uint8),
        np.zeros((2, 40, 50, 2), np.uint8),
        np.zeros((0, 50, 3), np.uint8),
        np.zeros(7, np.uint8),
        np.zeros((40, 50, 3)),
        torch.zeros((3, 40, 50)),
        np.zeros((40, 50), bool),
    ],
)
def test_other_arrays_are_refused_in_one_line(student, image):
    for given, location in ((image, "image 0"), ([_pixels(0, 40, 50), image], "image 1")):
        with pytest.raises(ImageError) as refused:
            student.encode_image(given)
        assert refused.value.location == location
        assert "\n" not in str(refused.value)


def test_what_is_neither_image_nor_text_is_refused(student):
    for given in (None, 3, b"\xff\xd8"):
        with pytest.raises(ImageError) as refused:
            student.encode_image(given)
        assert refused.value.name == "images"
        with pytest.raises(DataError) as refused:
            student.encode_text(given)
        assert refused.value.name == "texts"
    with pytest.raises(DataError) as refused:
        student.encode_text(b"picture")
    assert refused.value.name == "texts"
    with pytest.raises(DataError) as refused:
        student.encode_text(["picture", 3])
    assert refused.value.location == "text 1"
    with pytest.raises(DataError) as refused:
        student.encode_text(["picture", "half a \ud83d"])
    assert refused.value.location == "text 1"
    for batch_size in (0, 1.5, "8"):
        with pytest.raises(ValueError, match="batch_size"):
            student.encode_image(_pixels(0, 40, 50), batch_size=batch_size)


def test_pictures_whose_pixels_cannot_be_had_are_named(student, runs, tmp_path):
    closed = Image.open(runs / "data" / "003.jpg")
    closed.close()
    raw = (runs / "data" / "003.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(raw[:-100])
    sparse = torch.zeros((3, 40, 50), dtype=torch.uint8).to_sparse()
    nowhere = torch.zeros((3, 40, 50), dtype=torch.uint8, device="meta")
    with Image.open(tmp_path / "cut.jpg") as cut:
        for given in (closed, cut, sparse, nowhere):
            with pytest.raises(ImageError) as refused:
                student.encode_image([_pixels(0, 40, 50), given])
            assert refused.value.location == "image 1"


def test_a_student_says_what_it_is(runs):
    student = cusa.load_student(runs / "adapter")
    assert (
        repr(student)
        == f"StudentEncoder({str(runs / 'adapter')!r}, student='adapter', dim=8, device='cpu')"
    )
    named = cusa.load_encoder(f"mine={runs / 'vit'}")
    assert repr(named) == "ModelEncoder('mine', kind='teacher', dim=32, device='cpu')"


def test_the_device_is_a_gpu_if_there_is_one(runs):
    picture = _pixels(0, 40, 50, 3)
    expected = cusa.load_student(runs / "dual", "cpu").encode_image(picture)
    for load in (cusa.load_student, cusa.load_encoder):  # the tests see no GPU
        assert_same(load(runs / "dual").encode_image(picture), expected)
        for device in ("gpu", "meta", "xla", 1.5, "cuda:3"):
            with pytest.raises(SettingError) as refused:
                load(runs / "dual", device)
            assert refused.value.name == "device"


def test_an_unknown_checkpoint_is_refused(runs):
    with pytest.raises(SettingError) as refused:
        cusa.load_encoder(runs / "dual", checkpoint="newest")
    assert refused.value.name == "checkpoint"


def test_a_moved_student_and_moved_encoders(runs, tmp_path):
    from shutil import copytree

    best = copytree(runs / "adapter" / "best", tmp_path / "student")
    vit = copytree(runs / "vit", tmp_path / "vit")
    expected = cusa.load_student(runs / "adapter", device="cpu").encode_image(
        runs / "data" / "001.jpg"
    )
    moved = cusa.load_student(best, device="cpu", encoders={"image": f"vit={vit}"})
    np.testing.assert_array_equal(moved.encode_image(runs / "data" / "001.jpg"), expected)
    other_weights = make_tiny_vit(tmp_path / "other", poison=True)
    student = cusa.load_student(best, device="cpu", encoders={"image": f"vit={other_weights}"})
    with pytest.raises(TeacherError) as refused:
        student.encode_image(runs / "data" / "001.jpg")
    assert refused.value.name == "vit"


@pytest.mark.parametrize(("run", "tower"), [("dual", "image"), ("adapter", "audio")])
def test_encoders_of_towers_that_are_not_stored_are_refused(runs, run, tower):
    with pytest.raises(StudentError) as refused:
        cusa.load_student(runs / run, encoders={tower: "vit"})
    assert refused.value.name == tower


def test_what_is_no_student(runs, tmp_path):
    from shutil import copytree

    with pytest.raises(StudentError) as refused:
        cusa.load_student(tmp_path)
    assert refused.value.path == tmp_path
    run = copytree(runs / "dual", tmp_path / "run")
    weights = run / "best" / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(RunError) as refused:
        cusa.load_student(run)
    assert refused.value.path == weights
    weights.unlink()
    with pytest.raises(RunError) as refused:
        cusa.load_student(run)
    assert refused.value.path == run


def test_the_commands_that_use_a_student(runs, tmp_path):
    """index, search and export, as a user has them."""
    out = run_ok(
        "eval", "index", runs / "data", "--run", runs / "adapter", "--out", tmp_path / "index"
    )
    assert "16 images" in out
    picture = runs / "data" / "002.jpg"
    sheet = tmp_path / "sheet.html"
    out = run_ok("eval", "search", picture, "--index", tmp_path / "index", "-k", 3, "--out", sheet)
    hits = [line.strip() for line in out.splitlines() if ".jpg" in line]
    assert len(hits) == 3
    assert "1  1.000  " in hits[0]
    assert hits[0].endswith("002.jpg  (the query itself)")
    out = run_ok("eval", "search", "picture number 3", "--index", tmp_path / "index")
    assert len([line for line in out.splitlines() if ".jpg" in line]) == 10
    assert sheet.read_text().count("data:image/") >= 3
    out = run_ok("train", "export", "--run", runs / "dual", "--to", "hf", "--out", tmp_path / "hf")
    assert f"exported: {tmp_path / 'hf'}" in out
    first_rows, second_rows = (
        cusa.load_student(f, device="cpu").encode_image(picture, "uni")
        for f in (runs / "dual", tmp_path / "hf")
    )
    np.testing.assert_allclose(second_rows, first_rows, atol=1e-5)
    assert "usage" in run_ok("train", "export", "--help").lower()
    for command, other in (("train", "export"), ("eval", "search")):
        assert f" {other} " in run_ok(command, "--help")


def test_a_killed_worker_stops_an_evaluation(runs, monkeypatch):
    def read(*_arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("cusa.train.encode_split._ByRows.__getitem__", read)
    error = run_failure("eval", "--run", runs / "dual", "--split", "val", "--workers", 2)
    assert isinstance(error, WorkerError)
