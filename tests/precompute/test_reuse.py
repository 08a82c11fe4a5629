"""Rows of an earlier store are taken over: those of the same pictures, captions and settings."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cusa.data.errors import SettingError, StoreError
from cusa.data.files import file_digest
from cusa.data.store.index import read_index, write_index
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.shards import read_picture_digests, read_shard, write_shard
from cusa.precompute.teachers.base import Teacher
from tests.helpers import (
    make_images,
    run_failure,
    run_ok,
    run_ranks,
)


@pytest.fixture
def photos(tmp_path):
    make_images(tmp_path / "photos", 16)
    return tmp_path / "photos"


def _manifest(
    path,
    photos,
    numbers,
    prefix="id",
    versions=2,
    split=lambda number: "val" if number % 4 == 3 else "train",
):
    """A data set of some of the photos, two captions each."""
    lines = []
    for number in numbers:
        for version in range(versions):
            row = {
                "image": str(photos / f"{number:03d}.jpg"),
                "image_id": f"{prefix}{number}",
                "split": split(number),
            }
            lines.append(json.dumps({**row, "caption": f"picture {number} version {version}"}))
    path.write_text("\n".join(lines))
    return path


def _args(models, manifest, out, *options, batch_size=1):
    vit, words = models
    teachers = ["--teacher", f"vit={vit}", "--teacher", f"words={words}"]
    options = [
        "--workers",
        0,
        "--batch-size",
        batch_size,
        "--shard-rows",
        5,
        "--out",
        out,
        *options,
    ]
    return ["--dataset", str(manifest), *teachers, *(str(option) for option in options)]


@pytest.fixture
def count_encoded(monkeypatch):
    """Counts the inputs that teachers encode: images and captions."""
    encoded = []  # several threads encode; appending is one step
    plain = Teacher.rows

    def rows(self, inputs, *args):
        n_inputs = len(inputs if self.modality == "image" else inputs["input_ids"])
        encoded.extend([self.modality] * n_inputs)
        return plain(self, inputs, *args)

    monkeypatch.setattr(Teacher, "rows", rows)
    # The check of the first batch encodes it twice.
    monkeypatch.setattr(
        "cusa.precompute.encoding.FirstBatchCheck", lambda *args: lambda *batch: None
    )

    def count():
        counts = encoded.count("image"), encoded.count("text")
        encoded.clear()
        return counts

    return count


def _shards(out):
    folder = out.with_suffix("")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.h5")}


def _note(text, teacher):
    lines = [line for line in text.splitlines() if f"note: {teacher}: " in line]
    return next(line for line in lines if "taken over" in line)


@pytest.fixture
def old(tmp_path, models, photos):
    """A store of the first twelve photos."""
    out = tmp_path / "old.h5"
    run_ok(
        "precompute", *_args(models, _manifest(tmp_path / "pairs.jsonl", photos, range(12)), out)
    )
    return out


def test_shards_say_which_pictures_their_rows_are_of(old, photos):
    store = EmbeddingStore(old)
    rows, split = store["vit", "train"], store.split("train")
    want = [file_digest(store.image_root / path) for path in split.image_paths]
    assert [digest.tobytes() for digest in rows.picture_digests()] == want
    for shard in old.with_suffix("").glob("words/*.h5"):
        info = read_shard(shard.parent, shard.name)[1]
        assert read_picture_digests(shard, info.sha256) is None


def test_the_same_data_are_taken_over_whole(tmp_path, old, models, photos, count_encoded):
    out, content = tmp_path / "new.h5", read_index(old)
    entry = replace(content.teachers["vit"], versions={"cusa": "made earlier"})
    write_index(old, replace(content, teachers={**content.teachers, "vit": entry}))
    text = run_ok("precompute", *_args(models, tmp_path / "pairs.jsonl", out, "--reuse", old))
    assert count_encoded() == (0, 0)
    assert _shards(out) == _shards(old)
    assert ": 12 of 12 rows were taken over from " in _note(text, "vit")
    assert ": 24 of 24 rows were taken over from " in _note(text, "words")
    assert "files are whole" in run_ok("store", "verify", out)
    run_ok("store", "audit", out)
    assert EmbeddingStore(out).versions["vit"] == {"cusa": "made earlier"}


def test_grown_data_are_made_where_they_grew(tmp_path, old, models, photos, count_encoded):
    """Of batches of one item, the bytes are those of a store made without the old one."""
    grown = _manifest(tmp_path / "grown.jsonl", photos, range(16))
    plain, out = tmp_path / "plain.h5", tmp_path / "new.h5"
    run_ok("precompute", *_args(models, grown, plain))
    assert count_encoded() == (16, 32)
    text = run_ok("precompute", *_args(models, grown, out, "--reuse", old))
    assert count_encoded() == (4, 8)
    assert _shards(out) == _shards(plain)
    assert "vit: 12 of 16 rows were taken over" in text
    run_ok("precompute", *_args(models, grown, out, "--reuse", old))  # nothing is left to do
    assert count_encoded() == (0, 0)


def test_renamed_and_split_anew(tmp_path, old, models, photos, count_encoded):
    """Other ids, other file names, another order, other splits, another name of the teacher."""
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number in range(12):
        shutil.copy(photos / f"{number:03d}.jpg", renamed / f"{number + 100:03d}.jpg")
    lines = []
    for number in reversed(range(12)):
        row = {"image": f"{number + 100:03d}.jpg", "split": ("train", "val", "test")[number % 3]}
        lines += [
            json.dumps({**row, "caption": f"Picture {number}, version {version}!"})
            for version in range(2)
        ]
    (renamed / "anew.jsonl").write_text("\n".join(lines))
    vit, words = models
    out = tmp_path / "new.h5"
    teachers = ["--teacher", f"seer={vit}", "--teacher", f"reader={words}"]
    options = ["--workers", 0, "--batch-size", 1, "--out", out, "--reuse", old]
    run_ok("precompute", "--dataset", renamed / "anew.jsonl", *teachers, *options)
    assert count_encoded() == (0, 0)
    before, after = EmbeddingStore(old), EmbeddingStore(out)
    rows_before = {}
    for split in before.splits.values():
        for row, image_id in enumerate(split.image_ids):
            rows_before[int(image_id.removeprefix("id"))] = before["vit", split.name][row]
    for split in after.splits.values():
        for row, path in enumerate(split.image_paths):
            np.testing.assert_array_equal(
                after["seer", split.name][row], rows_before[int(Path(path).stem) - 100]
            )
    run_ok("store", "audit", out)


def test_a_limited_run(tmp_path, old, models, photos, count_encoded):
    out = tmp_path / "new.h5"
    run_ok(
        "precompute", *_args(models, tmp_path / "pairs.jsonl", out, "--limit", 2, "--reuse", old)
    )
    assert count_encoded() == (0, 0)
    assert EmbeddingStore(out)["vit", "val"].shape == (2, 32)


def test_what_changed_is_made_anew(tmp_path, old, models, photos, count_encoded):
    """A picture of the same name and length, a caption of the same id."""
    bitmap, other = photos / "b.bmp", np.zeros((32, 32, 3), np.uint8)
    Image.fromarray(other).save(bitmap)
    manifest = tmp_path / "pairs.jsonl"
    extra = json.dumps(
        {"image": str(bitmap), "image_id": "b", "caption": "picture 49", "split": "train"}
    )
    manifest.write_text(manifest.read_text() + "\n" + extra)
    first, second = tmp_path / "first.h5", tmp_path / "second.h5"
    run_ok("precompute", *_args(models, manifest, first, "--reuse", old))
    assert count_encoded() == (1, 1)
    size = bitmap.stat().st_size
    other[:, 16:] = 255
    Image.fromarray(other).save(bitmap)
    assert bitmap.stat().st_size == size
    manifest.write_text(manifest.read_text().replace("picture 49", "picture 48"))
    run_ok("precompute", *_args(models, manifest, second, "--reuse", first))
    assert count_encoded() == (1, 1)
    row = EmbeddingStore(first).split("train").image_ids[:].index("b")
    assert (
        EmbeddingStore(first)["vit", "train"][row] != EmbeddingStore(second)["vit", "train"][row]
    ).any()


def test_skipped_rows_are_not_taken_over(tmp_path, models, photos, count_encoded):
    manifest = _manifest(tmp_path / "pairs.jsonl", photos, range(8))
    content = (photos / "002.jpg").read_bytes()
    (photos / "002.jpg").write_bytes(content[:300])
    first, second = tmp_path / "first.h5", tmp_path / "second.h5"
    run_ok("precompute", *_args(models, manifest, first, "--on-error", "skip"))
    count_encoded()
    text = run_ok(
        "precompute", *_args(models, manifest, second, "--on-error", "skip", "--reuse", first)
    )
    assert "vit: 7 of 8 rows were taken over" in text
    assert EmbeddingStore(second)["vit", "train"].skipped.tolist() == [2]
    (photos / "002.jpg").write_bytes(content)
    run_ok("precompute", *_args(models, manifest, second, "--reuse", first))
    assert count_encoded() == (1, 0)
    assert len(EmbeddingStore(second)["vit", "train"].skipped) == 0


@pytest.mark.parametrize(("option", "value"), [("--precision", "bf16"), ("--dtype", "float32")])
def test_rows_of_other_settings_are_not_taken_over(
    tmp_path, old, models, count_encoded, option, value
):
    out = tmp_path / "new.h5"
    text = run_ok(
        "precompute", *_args(models, tmp_path / "pairs.jsonl", out, option, value, "--reuse", old)
    )
    assert count_encoded() == (12, 24)
    for teacher in ("vit", "words"):
        assert ": 0 of " in _note(text, teacher)
        assert f"its settings differ: {option[2:]} (" in _note(text, teacher)


def _forget_pictures(index):
    """The store as it was before pictures were recorded."""
    content = read_index(index)
    entry, shards = content.teachers["vit"], {}
    for split, infos in entry.shards.items():
        rows = EmbeddingStore(index)["vit", split]
        remade = []
        for info in infos:
            header, _ = read_shard(index.parent, info.file)
            remade.append((info, header, rows[info.start : info.stop]))
        shards[split] = tuple(
            write_shard(index.parent, i.file, header, block, i.skipped)
            for i, header, block in remade
        )
    write_index(
        index, replace(content, teachers={**content.teachers, "vit": replace(entry, shards=shards)})
    )


def test_of_a_store_without_a_record_of_its_pictures_captions_are_taken(
    tmp_path, old, models, count_encoded
):
    _forget_pictures(old)
    out = tmp_path / "new.h5"
    text = run_ok("precompute", *_args(models, tmp_path / "pairs.jsonl", out, "--reuse", old))
    assert count_encoded() == (12, 0)
    assert "it was made before stores recorded which pictures their rows are of" in _note(
        text, "vit"
    )
    assert ": 24 of 24 rows" in _note(text, "words")


def test_other_data_are_said_to_be(tmp_path, old, models, photos):
    other = _manifest(tmp_path / "other.jsonl", photos, range(12, 16))
    text = run_ok("precompute", *_args(models, other, tmp_path / "new.h5", "--reuse", old))
    assert "none of its pictures are the same" in _note(text, "vit")
    assert "none of its captions are the same" in _note(text, "words")


def test_a_damaged_or_wrong_store_is_refused(tmp_path, old, models):
    out, args = tmp_path / "new.h5", (models, tmp_path / "pairs.jsonl")
    error = run_failure("precompute", *_args(*args, old, "--reuse", old))
    assert (type(error), error.path, error.name) == (SettingError, old, "reuse")
    error = run_failure("precompute", *_args(*args, out, "--reuse", tmp_path / "nope.h5"))
    assert error.path == tmp_path / "nope.h5"
    shard = sorted(old.with_suffix("").glob("vit/*.h5"))[1]
    content = bytearray(shard.read_bytes())
    content[3000] ^= 1
    shard.write_bytes(content)
    error = run_failure("precompute", *_args(*args, out, "--reuse", old))
    assert isinstance(error, StoreError)
    assert error.path == shard
    assert not out.exists()


def test_batches_of_several_take_over_whole_rows(tmp_path, models, photos, count_encoded):
    """Rows made in other batches differ in their last bits at most; those taken over not at all."""
    small = _manifest(tmp_path / "small.jsonl", photos, range(12))
    grown = _manifest(tmp_path / "grown.jsonl", photos, range(16))
    old, plain, out = (tmp_path / f"{name}.h5" for name in ("old", "plain", "new"))
    run_ok("precompute", *_args(models, small, old, batch_size=4))
    run_ok("precompute", *_args(models, grown, plain, batch_size=4))
    run_ok("precompute", *_args(models, grown, out, "--reuse", old, batch_size=4))
    for teacher in ("vit", "words"):
        for split in ("train", "val"):
            before, made = (EmbeddingStore(path)[teacher, split] for path in (old, out))
            np.testing.assert_array_equal(made[: len(before)], before[:])
            fresh = EmbeddingStore(plain)[teacher, split]
            np.testing.assert_allclose(
                made[:].astype(np.float32), fresh[:].astype(np.float32), atol=1e-3
            )


def test_two_processes_take_over_the_same_bytes(tmp_path, old, models, photos):
    grown = _manifest(tmp_path / "grown.jsonl", photos, range(16))
    plain, out = tmp_path / "plain.h5", tmp_path / "new.h5"
    run_ok("precompute", *_args(models, grown, plain))
    completed = run_ranks(2, "precompute", *_args(models, grown, out, "--reuse", old))
    assert completed.returncode == 0, completed.stderr
    assert "vit: 12 of 16 rows were taken over" in completed.stdout
    assert _shards(out) == _shards(plain)
