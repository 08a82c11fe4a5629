"""The command line, from image files and captions to a store."""

import json
import os

import h5py
import numpy as np
import pytest
import torch

from cusa.data.images import load_image
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.schema import shard_ranges
from cusa.precompute.teachers import parse_teacher
from tests.helpers import make_images, make_pairs, make_tiny_vit, run_error, run_ok


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return make_tiny_vit(tmp_path_factory.mktemp("models") / "vit")


def _args(manifest, out, vit, *more):
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
        *more,
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


@pytest.mark.parametrize("how", ["truncated", "flipped bit", "empty"])
def test_a_rerun_makes_damaged_shards_again(tmp_path, vit, how):
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
    shard.write_bytes(spoiled[how])
    text = run_ok("precompute", *args)
    assert f"{shard} is damaged and will be made again" in text.replace("\n", "")
    assert shard.read_bytes() == content


def test_splits_limit_and_later_additions(tmp_path, vit):
    manifest, out = make_pairs(tmp_path / "d"), tmp_path / "store.h5"
    run_ok("precompute", *_args(manifest, out, vit, "--splits", "val"))
    run_ok("precompute", *_args(manifest, out, vit, "--splits", "train"))
    store = EmbeddingStore(out)
    assert {s: len(store.embeddings("vit", s)) for s in ("train", "val")} == {"train": 8, "val": 4}
    line = run_error("precompute", *_args(manifest, out, vit, "--limit", 2))
    assert "fingerprint of split 'train' differs" in line
    small = tmp_path / "small.h5"
    run_ok("precompute", *_args(manifest, small, vit, "--limit", 2))
    assert EmbeddingStore(small).split("train").image_ids[:] == ["id0", "id1"]
    assert "has no split 'test'; it has: train, val" in run_error(
        "precompute", *_args(manifest, out, vit, "--splits", "test")
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
    line = run_error("precompute", *args, "--image-root", tmp_path / "wrong")
    assert "no image could be read; check --image-root" in line
    assert "0 skipped" in run_ok("precompute", *_args(manifest, out, vit))


def test_settings_that_change_the_rows_are_not_mixed(tmp_path, vit):
    manifest, out = make_pairs(tmp_path / "d"), tmp_path / "store.h5"
    run_ok("precompute", *_args(manifest, out, vit))
    assert "precision ('bf16' / 'fp32')" in run_error(
        "precompute", *_args(manifest, out, vit, "--precision", "bf16")
    )
    line = run_error(
        "precompute",
        "--dataset",
        manifest,
        "--teacher",
        "minilm",
        "--normalizer",
        "none",
        "--out",
        out,
    )
    assert "normalizer ('none' / 'albef')" in line
    other = make_tiny_vit(tmp_path / "other")
    config = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(
        json.dumps({**config, "image_mean": [0.1, 0.1, 0.1]})
    )
    assert "transform" in run_error("precompute", *_args(manifest, out, other))
    elsewhere = make_pairs(tmp_path / "other_data")
    assert EmbeddingStore(out).dataset == "pairs"
    renamed = elsewhere.rename(elsewhere.with_name("renamed.jsonl"))
    assert "field dataset is 'pairs'" in run_error("precompute", *_args(renamed, out, vit))


def test_workers_give_the_same_bytes(tmp_path, vit):
    manifest = make_pairs(tmp_path / "d")
    one, two = tmp_path / "a" / "s.h5", tmp_path / "b" / "s.h5"
    run_ok("precompute", *_args(manifest, one, vit, "--batch-size", 2))
    run_ok("precompute", *_args(manifest, two, vit, "--batch-size", 2)[:-3], "2", "--batch-size", 2)
    for a in one.parent.rglob("vit/*.h5"):
        assert a.read_bytes() == (two.parent / a.relative_to(one.parent)).read_bytes()


def _spoil(folder, how):
    path = folder / "002.jpg"
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"truncated": content[:300], "zero bytes": b"", "not an image": b"hello"}[how]
        )


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "does not exist"),
        ("truncated", "cannot be decoded"),
        ("zero bytes", "zero bytes"),
        ("not an image", "not an image"),
    ],
)
def test_unreadable_images_stop_the_run_or_are_recorded(tmp_path, vit, how, message):
    manifest, out = make_pairs(tmp_path / "d"), tmp_path / "store.h5"
    _spoil(tmp_path / "d", how)
    line = run_error("precompute", *_args(manifest, out, vit))
    assert "002.jpg" in line
    assert message in line
    assert "--on-error skip" in line
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
    line = run_error("precompute", *_args(manifest, out, vit))
    assert "caption id id1#0" in line
    assert "empty once normalised" in line
    assert "1 skipped" in run_ok("precompute", *_args(manifest, out, vit, "--on-error", "skip"))
    assert EmbeddingStore(out).embeddings("minilm", "train").skipped.tolist() == [2]


def test_a_teacher_that_returns_nan_leaves_no_shard(tmp_path):
    manifest, out = make_pairs(tmp_path / "d"), tmp_path / "store.h5"
    poison = make_tiny_vit(tmp_path / "poison", poison=True)
    line = run_error("precompute", *_args(manifest, out, poison))
    assert "teacher 'vit', split 'train'" in line
    assert "NaN or infinity in 8 of 8 rows, the first of them row 0" in line
    assert not list(tmp_path.rglob("*.h5"))


def test_bad_command_lines(tmp_path, vit):
    manifest, out = make_pairs(tmp_path / "d"), tmp_path / "store.h5"
    assert "does not exist" in run_error(
        "precompute", "--dataset", tmp_path / "no.json", "--out", out
    )
    assert "unknown teacher" in run_error(
        "precompute", "--dataset", manifest, "--teacher", "nope", "--out", out
    )
    (tmp_path / "bad.json").write_text("{")
    assert "not valid JSON" in run_error(
        "precompute", "--dataset", tmp_path / "bad.json", "--out", out
    )
    line = run_error(
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
    assert "FP16-ViT-B-32.pt" in line
    assert "must end in .h5" in run_error("precompute", *_args(manifest, tmp_path / "store", vit))
    with h5py.File(out, "w") as file:
        file["x"] = 1
    assert "is not a cusa-embeddings file" in run_error("precompute", *_args(manifest, out, vit))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_to_write(tmp_path, vit):
    manifest = make_pairs(tmp_path / "d")
    (tmp_path / "locked").mkdir(mode=0o500)
    line = run_error("precompute", *_args(manifest, tmp_path / "locked" / "store.h5", vit))
    assert "no permission for" in line


def test_no_permission_is_one_line(tmp_path, vit, monkeypatch):
    """Also where tests run as root: the operating system's refusal, made up."""
    manifest = make_pairs(tmp_path / "d")

    def refuse(self, *_args, **_kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    line = run_error("precompute", *_args(manifest, tmp_path / "locked" / "store.h5", vit))
    assert "no permission for" in line
    assert "locked" in line


def test_shard_ranges():
    assert shard_ranges(7, 3) == ((0, 3), (3, 6), (6, 7))
    assert shard_ranges(6, 3) == ((0, 3), (3, 6))
    assert shard_ranges(0, 3) == ()
