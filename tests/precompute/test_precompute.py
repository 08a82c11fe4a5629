"""The command line, from image files and captions to a store."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cusa.data.errors import DataError, FileFormatError, SettingError, StoreError, TeacherError
from cusa.data.images import load_image
from cusa.data.store import checksum
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.schema import shard_ranges
from cusa.precompute import shard_plan
from cusa.precompute.teachers import parse_teacher
from tests.helpers import (
    Fault,
    make_images,
    make_pairs,
    make_tiny_vit,
    run_error,
    run_failure,
    run_fault,
    run_ok,
)


@pytest.fixture(scope="module")
def vit(models):
    return models[0]


def _args(manifest, out, vit, *options):
    return (
        "--dataset",
        manifest,
        "--teacher",
        f"vit={vit}",
        "--teacher",
        "minilm",
        "--out",
        out,
        "--workers",
        0,
        *options,
    )


def test_rows_are_the_teachers_embeddings_of_their_images_and_captions(tmp_path, vit):
    manifest = make_pairs(tmp_path / "d")
    out = tmp_path / "new" / "store.h5"
    text = run_ok("precompute", *_args(manifest, out, vit, "--shard-rows", 5, "--batch-size", 2))
    assert "vit: train 8, val 4 rows x 32, 0 skipped" in text
    store = EmbeddingStore(out)
    split = store.split("val")
    teacher = parse_teacher(f"vit={vit}").load("cpu")
    for row, path in enumerate(split.image_paths):
        pixels = torch.from_numpy(teacher.preprocess(load_image(store.image_root / path)))[None]
        got = store.embeddings("vit", "val").gather([row])
        np.testing.assert_allclose(got, teacher.rows(pixels, "cpu", "fp32"), atol=1e-3)
    minilm = parse_teacher("minilm").load("cpu")
    want = minilm.rows(
        ["picture number 9 version 1"], "cpu", "fp32"
    )  # normalised: the comma is gone
    row = split.captions[:].index("picture number 9, version 1")
    np.testing.assert_allclose(store.embeddings("minilm", "val").gather([row]), want, atol=1e-3)
    assert store.teachers["minilm"].normalizer == "albef"
    assert store.versions["vit"]["torch"] == torch.__version__
    assert store.embeddings("minilm", "train").n_shards == 4


def test_a_rerun_makes_only_what_is_missing_byte_for_byte(tmp_path, vit):
    manifest, out = make_pairs(tmp_path / "d"), tmp_path / "store.h5"
    args = _args(manifest, out, vit, "--shard-rows", 3)
    run_ok("precompute", *args)
    files = sorted(tmp_path.rglob("*.h5"))
    before = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in files}
    lost = next(f for f in files if f.name.startswith("train-000000003") and f.parent.name == "vit")
    lost.unlink()
    out.unlink()
    run_ok("precompute", *args)
    assert {f: f.read_bytes() for f in sorted(tmp_path.rglob("*.h5"))} == {
        f: b for f, (b, _) in before.items()
    }
    again = {f for f, (_, time) in before.items() if f.stat().st_mtime_ns != time}
    assert again == {lost, out}


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "empty"])
def test_a_rerun_makes_damaged_shards_again(tmp_path, vit, damage):
    manifest, out = make_pairs(tmp_path / "d"), tmp_path / "store.h5"
    args = _args(manifest, out, vit, "--shard-rows", 3)
    run_ok("precompute", *args)
    shard = sorted(tmp_path.rglob("vit/train-*.h5"))[1]
    content = shard.read_bytes()
    position = content.index(EmbeddingStore(out).embeddings("vit", "train").gather([4]).tobytes())
    spoiled = {
        "truncated": content[:-20],
        "flipped bit": content[:position]
        + bytes([content[position] ^ 1])
        + content[position + 1 :],
        "empty": b"",
    }
    shard.write_bytes(spoiled[damage])
    text = run_ok("precompute", *args)
    assert f"{shard} is damaged and will be made again" in text.replace("\n", "")
    assert shard.read_bytes() == content


def test_a_verified_shard_is_hashed_again_only_if_the_file_was_replaced(tmp_path, vit, monkeypatch):
    manifest, out = make_pairs(tmp_path / "d"), tmp_path / "store.h5"
    run_ok("precompute", *_args(manifest, out, vit, "--shard-rows", 3))
    tasks = shard_plan.plan_teacher(out, "vit", {"train": 8}, None)
    verified = shard_plan.intact_shards(tasks)
    assert list(verified) == tasks
    headers = {task: header for task, (header, _) in verified.items()}
    hashed = []

    def seal_holds(path, file_format):
        if path.exists():
            hashed.append(path)
        return checksum.seal_holds(path, file_format)

    monkeypatch.setattr(shard_plan, "seal_holds", seal_holds)
    finished, damaged = shard_plan.finished_shards(tasks, headers.get, True, verified)
    assert finished == {task: info for task, (_, info) in verified.items()}
    assert (damaged, hashed) == ([], [])

    tasks[0].path.unlink()
    tasks[1].path.write_bytes(tasks[2].path.read_bytes())
    with pytest.raises(StoreError) as other_rows:
        shard_plan.finished_shards(tasks, headers.get, True, verified)
    assert other_rows.value.path == tasks[1].path
    tasks[1].path.write_bytes(b"")
    finished, damaged = shard_plan.finished_shards(tasks, headers.get, True, verified)
    assert (list(finished), damaged) == ([tasks[2]], [tasks[1].path])
    assert hashed == [tasks[1].path, tasks[1].path]


def test_splits_limit_and_later_additions(tmp_path, vit):
    manifest, out = make_pairs(tmp_path / "d"), tmp_path / "store.h5"
    run_ok("precompute", *_args(manifest, out, vit, "--splits", "val"))
    run_ok("precompute", *_args(manifest, out, vit, "--splits", "train"))
    store = EmbeddingStore(out)
    assert {s: len(store.embeddings("vit", s)) for s in ("train", "val")} == {"train": 8, "val": 4}
    error = run_failure("precompute", *_args(manifest, out, vit, "--limit", 2))
    assert (type(error), error.name) == (StoreError, "fingerprint")
    small = tmp_path / "small.h5"
    run_ok("precompute", *_args(manifest, small, vit, "--limit", 2))
    assert EmbeddingStore(small).split("train").image_ids[:] == ["id0", "id1"]
    assert run_fault("precompute", *_args(manifest, out, vit, "--splits", "test")) == Fault(
        DataError, name="test"
    )


def test_a_store_keeps_its_image_root_and_any_name(tmp_path, vit):
    manifest, out = make_pairs(tmp_path / "photos"), tmp_path / "50%b.h5"
    moved = manifest.rename(tmp_path / "pairs.jsonl")
    root = ("--image-root", tmp_path / "photos")
    run_ok(
        "precompute",
        "--dataset",
        moved,
        "--teacher",
        f"vit={vit}",
        "--teacher",
        "minilm",
        "--out",
        out,
        *root,
    )
    run_ok(
        "precompute", "--dataset", moved, "--teacher", f"again={vit}", "--out", out
    )  # reads images there, too
    assert EmbeddingStore(out).image_root == tmp_path / "photos"
    with h5py.File(out) as file:
        assert np.isfinite(file["teachers/again/train/rows"][...]).all()


def test_skipping_everything_is_an_error(tmp_path, vit):
    manifest, out = make_pairs(tmp_path / "d"), tmp_path / "store.h5"
    (tmp_path / "wrong").mkdir()
    args = _args(manifest, out, vit, "--on-error", "skip")
    error = run_failure("precompute", *args, "--image-root", tmp_path / "wrong")
    assert (type(error), error.path) == (DataError, manifest)
    assert "0 skipped" in run_ok("precompute", *_args(manifest, out, vit))


def test_settings_that_change_the_rows_are_not_mixed(tmp_path, vit):
    manifest, out = make_pairs(tmp_path / "d"), tmp_path / "store.h5"
    run_ok("precompute", *_args(manifest, out, vit))
    assert run_fault("precompute", *_args(manifest, out, vit, "--precision", "bf16")) == Fault(
        StoreError, location="precision ('bf16' / 'fp32')", name="vit"
    )
    assert run_fault(
        "precompute",
        "--dataset",
        manifest,
        "--teacher",
        "minilm",
        "--normalizer",
        "none",
        "--out",
        out,
    ) == Fault(StoreError, location="normalizer ('none' / 'albef')", name="minilm")
    other_vit = make_tiny_vit(tmp_path / "other")
    config = json.loads((other_vit / "preprocessor_config.json").read_text())
    (other_vit / "preprocessor_config.json").write_text(
        json.dumps({**config, "image_mean": [0.1, 0.1, 0.1]})
    )
    assert run_fault("precompute", *_args(manifest, out, other_vit)) == Fault(
        StoreError, location="model_id ('other' / 'vit'); transform", name="vit"
    )
    elsewhere = make_pairs(tmp_path / "other_data")
    assert EmbeddingStore(out).dataset == "pairs"
    renamed = elsewhere.rename(elsewhere.with_name("renamed.jsonl"))
    assert run_fault("precompute", *_args(renamed, out, vit)) == Fault(StoreError, name="dataset")


def test_workers_give_the_same_bytes(tmp_path, vit):
    manifest = make_pairs(tmp_path / "d")
    first_out, second_out = tmp_path / "a" / "s.h5", tmp_path / "b" / "s.h5"
    run_ok("precompute", *_args(manifest, first_out, vit, "--batch-size", 2))
    run_ok(
        "precompute",
        *_args(manifest, second_out, vit, "--batch-size", 2)[:-3],
        "2",
        "--batch-size",
        2,
    )
    for a in first_out.parent.rglob("vit/*.h5"):
        assert a.read_bytes() == (second_out.parent / a.relative_to(first_out.parent)).read_bytes()


def _spoil(folder, damage):
    path = folder / "002.jpg"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"truncated": content[:300], "zero bytes": b"", "not an image": b"hello"}[damage]
        )


@pytest.mark.parametrize("damage", ["missing", "truncated", "zero bytes", "not an image"])
def test_unreadable_images_stop_the_run_or_are_recorded(tmp_path, vit, damage):
    manifest, out = make_pairs(tmp_path / "d"), tmp_path / "store.h5"
    _spoil(tmp_path / "d", damage)
    error = run_failure("precompute", *_args(manifest, out, vit))
    assert isinstance(error, DataError)
    assert str(tmp_path / "d" / "002.jpg") in str(error)
    assert not out.exists()
    text = run_ok("precompute", *_args(manifest, out, vit, "--on-error", "skip"))
    assert "vit: train 8, val 4 rows x 32, 1 skipped" in text
    rows = EmbeddingStore(out).embeddings("vit", "train")
    assert rows.skipped.tolist() == [2]
    assert np.isnan(rows.gather([2])).all()
    assert np.isfinite(rows.gather([0, 1, 3])).all()
    make_images(tmp_path / "d", 12)  # repaired
    assert "0 skipped" in run_ok("precompute", *_args(manifest, out, vit))
    assert np.isfinite(EmbeddingStore(out).embeddings("vit", "train").gather([2])).all()


def test_empty_captions_stop_the_run_or_are_recorded(tmp_path, vit):
    manifest, out = make_pairs(tmp_path / "d"), tmp_path / "store.h5"
    manifest.write_text(manifest.read_text().replace("picture number 1, version 0", "..."))
    error = run_failure("precompute", *_args(manifest, out, vit))
    assert (type(error), error.path, error.name) == (DataError, manifest, "id1#0")
    assert "1 skipped" in run_ok("precompute", *_args(manifest, out, vit, "--on-error", "skip"))
    assert EmbeddingStore(out).embeddings("minilm", "train").skipped.tolist() == [2]


def test_a_teacher_that_returns_nan_leaves_no_shard(tmp_path):
    manifest, out = make_pairs(tmp_path / "d"), tmp_path / "store.h5"
    poison = make_tiny_vit(tmp_path / "poison", poison=True)
    error = run_failure("precompute", *_args(manifest, out, poison))
    assert (error.name, error.location) == ("vit", "split train")
    assert not list(tmp_path.rglob("*.h5"))


def test_bad_command_lines(tmp_path, vit):
    manifest, out = make_pairs(tmp_path / "d"), tmp_path / "store.h5"
    error = run_failure("precompute", "--dataset", tmp_path / "no.json", "--out", out)
    assert error.path == tmp_path / "no.json"
    error = run_failure("precompute", "--dataset", manifest, "--teacher", "nope", "--out", out)
    assert (type(error), error.name) == (TeacherError, "nope")
    (tmp_path / "bad.json").write_text("{")
    error = run_failure("precompute", "--dataset", tmp_path / "bad.json", "--out", out)
    assert (type(error), error.path) == (FileFormatError, tmp_path / "bad.json")
    error = run_failure(
        "precompute",
        "--dataset",
        manifest,
        "--teacher",
        "unicom=/no/w.pt",
        "--teacher",
        "minilm",
        "--out",
        out,
    )
    assert (type(error), error.path) == (TeacherError, Path("/no/w.pt"))
    error = run_failure("precompute", *_args(manifest, tmp_path / "store", vit))
    assert isinstance(error, SettingError)
    with h5py.File(out, "w") as file:
        file["x"] = 1
    error = run_failure("precompute", *_args(manifest, out, vit))
    assert (type(error), error.path) == (StoreError, out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_to_write(tmp_path, vit):
    manifest = make_pairs(tmp_path / "d")
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "locked" in run_error(
        "precompute", *_args(manifest, tmp_path / "locked" / "store.h5", vit)
    )


def test_no_permission_is_one_line(tmp_path, vit, monkeypatch):
    """Also where tests run as root: the operating system's refusal, made up."""
    manifest = make_pairs(tmp_path / "d")

    def refuse(self, *_args, **_kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    line = run_error("precompute", *_args(manifest, tmp_path / "locked" / "store.h5", vit))
    assert "locked" in line


def test_shard_ranges():
    assert shard_ranges(7, 3) == ((0, 3), (3, 6), (6, 7))
    assert shard_ranges(6, 3) == ((0, 3), (3, 6))
    assert shard_ranges(0, 3) == ()
