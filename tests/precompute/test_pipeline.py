"""Batches, threads, probes: what the command line does not show."""

from dataclasses import replace

import numpy as np
import pytest

from cusa.data.records import Dataset, Record
from cusa.data.store.shards import ShardHeader
from cusa.precompute import image_source, reading
from cusa.precompute.estimate import measure
from cusa.precompute.pipeline import PipelineOptions, encode_shards, encoded_batches
from cusa.precompute.reading import caption_batches
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.teachers import parse_teacher
from tests.helpers import (
    make_pairs,
    make_tiny_sentence,
    make_tiny_vit,
)

OPTIONS = PipelineOptions("cpu", "fp32", workers=0, encoders=2, skip_errors=False)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return parse_teacher(f"words={make_tiny_sentence(tmp_path_factory.mktemp('words'))}").load(
        "cpu", 3
    )


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return parse_teacher(f"vit={make_tiny_vit(tmp_path_factory.mktemp('vit'))}").load("cpu", 2)


def test_captions_are_batched_by_token_length_and_identical_ones_once(words):
    texts = [
        "picture 1",
        "Picture 1.",
        "picture number 1 version 2",
        "version",
        "",
        "number 3 4",
        "picture 1",
    ]
    batches = list(caption_batches(words, [(t, f"id{i}") for i, t in enumerate(texts)], "albef"))
    assert batches[0].errors[0][0] == 4
    assert "caption id id4" in batches[0].errors[0][1]
    # Four different captions of 5, 3, 2, 1 tokens, three to a batch; rows 0, 1 and 6 say the same.
    assert [b.rows.tolist() for b in batches[1:]] == [[2, 5, 0, 1, 6], [3]]
    assert [b.source.tolist() for b in batches[1:]] == [[0, 1, 2, 2, 2], [0]]
    assert [tuple(b.inputs["input_ids"].shape) for b in batches[1:]] == [(3, 5), (1, 1)]


def test_rows_come_back_in_the_captions_order(words, tmp_path):
    captions = tuple(f"picture {'number ' * (i % 4)}{i % 5}" for i in range(23))
    records = (
        Record("a", "a.jpg", captions[:9], tuple(f"a{i}" for i in range(9))),
        Record("b", "b.jpg", captions[9:], tuple(f"b{i}" for i in range(14))),
    )
    dataset = Dataset("d", tmp_path, {"train": records})
    tasks = [ShardTask(tmp_path / "s.h5", "words", "train", a, b) for a, b in ((0, 11), (11, 23))]
    settings = words.settings("fp32", "float32", "none")

    def header(task):
        fingerprint = dataset.splits["train"].fingerprint
        return ShardHeader("words", "train", fingerprint, task.start, task.stop, settings)

    made = encode_shards(words, "none", header, iter(tasks), dataset, OPTIONS, lambda task, n: None)
    assert list(made) == tasks
    import h5py

    for task in tasks:
        with h5py.File(task.path) as file:
            rows = file["rows"][...]
        for row, caption in enumerate(captions[task.start : task.stop]):
            np.testing.assert_allclose(
                rows[row], words.rows([caption], "cpu", "fp32")[0], atol=2e-6
            )


def test_the_same_bytes_with_any_number_of_threads_and_workers(tmp_path):
    manifest, vit = make_pairs(tmp_path / "d", n=20, n_val=5), make_tiny_vit(tmp_path / "vit")
    contents = []
    for encoders, workers in ((1, 0), (3, 0), (2, 2)):
        dataset = replace(_dataset(manifest), name="d")
        teacher = parse_teacher(f"vit={vit}").load("cpu", 2)
        options = PipelineOptions("cpu", "fp32", workers, encoders, skip_errors=False)
        task = ShardTask(tmp_path / f"{encoders}{workers}.h5", "vit", "train", 0, 15)
        settings = teacher.settings("fp32", "float32", "none")
        header = ShardHeader("vit", "train", "f", 0, 15, settings)
        encode_shards(
            teacher,
            "none",
            lambda _t, h=header: h,
            iter([task]),
            dataset,
            options,
            lambda t, n: None,
        )
        contents.append(task.path.read_bytes())
    assert contents[0] == contents[1] == contents[2]


def _dataset(manifest):
    from cusa.data.datasets import load_dataset

    return load_dataset([str(manifest)])


def test_a_picture_that_goes_away_while_it_is_read_shifts_no_other(vit, tmp_path, monkeypatch):
    dataset = _dataset(make_pairs(tmp_path))
    read_image_file = image_source.read_image_file
    records = dataset.splits["train"]
    gone = dataset.image_root / records[1].image_path

    def read_if_there(path):
        if path == gone:
            path.unlink()
        return read_image_file(path)

    monkeypatch.setattr(image_source, "read_image_file", read_if_there)
    reader = reading.ImageReader(image_source.ImageFiles(dataset), vit)
    batch = reader["train", np.arange(3)]
    assert batch.rows.tolist() == [0, 2]
    assert [row for row, _ in batch.errors] == [1]
    without_gone = reader["train", np.array([0, 2])]
    np.testing.assert_array_equal(batch.inputs, without_gone.inputs)


def test_shards_are_claimed_one_at_a_time(words, tmp_path):
    """Reading ahead asks for some batches more, not for all shards, which others could make."""
    captions = [f"picture {i % 50} number {i // 50}" for i in range(400)]
    records = tuple(Record(str(i), f"{i}.jpg", (c,), (str(i),)) for i, c in enumerate(captions))
    dataset = Dataset("d", tmp_path, {"train": records})
    claimed = []

    def tasks():
        for start in range(0, 400, 40):
            claimed.append(start)
            task = ShardTask(tmp_path / "s.h5", "words", "train", start, start + 40)
            yield task, task.rows

    encoded = encoded_batches(words, "none", tasks(), dataset, OPTIONS)
    next(encoded)
    assert claimed in ([0], [0, 40])
    encoded.close()


def test_measuring_writes_nothing(words, tmp_path):
    records = tuple(Record(str(i), f"{i}.jpg", (f"picture {i}",), (str(i),)) for i in range(40))
    dataset = Dataset("d", tmp_path, {"train": records})
    rates = measure(
        words, "none", [ShardTask(tmp_path / "s.h5", "w", "train", 0, 40)], dataset, OPTIONS, 0.05
    )
    assert rates.whole > 0
    assert rates.encoding > 0
    assert list(tmp_path.iterdir()) == []
