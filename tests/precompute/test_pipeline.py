"""Batches, threads, probes: what the command line does not show."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cusa.data.errors import StoreError
from cusa.data.images import load_image
from cusa.data.records import Dataset, Record, fingerprint
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.shards import ShardHeader
from cusa.precompute import reading
from cusa.precompute.estimate import choose_draft, measure
from cusa.precompute.pipeline import PipelineOptions, encode_shards, encoded_batches
from cusa.precompute.reading import caption_batches
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.teachers import parse_teacher
from tests.helpers import (
    make_images,
    make_pairs,
    make_tiny_sentence,
    make_tiny_vit,
    run_failure,
    run_ok,
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
        return ShardHeader("words", "train", fingerprint(records), task.start, task.stop, settings)

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
    digest = reading.file_digest
    records = dataset.splits["train"]
    gone = dataset.image_root / records[1].image_path

    def digest_if_there(path):
        if path == gone:
            raise FileNotFoundError(path)
        return digest(path)

    monkeypatch.setattr(reading, "file_digest", digest_if_there)
    reader = reading.ImageReader(dataset, vit)
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
            yield ShardTask(tmp_path / "s.h5", "words", "train", start, start + 40)

    encoded = encoded_batches(words, "none", tasks(), dataset, OPTIONS)
    next(encoded)
    assert claimed in ([0], [0, 40])
    encoded.close()


def _large_jpegs(folder, n, kind):
    """Pictures of 700 x 800, either smooth (halving them changes little) or noise."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(n):
        pixels = rng.integers(0, 255, (8, 7, 3) if kind == "smooth" else (800, 700, 3)).astype(
            np.uint8
        )
        image = Image.fromarray(pixels).resize((700, 800), Image.Resampling.BICUBIC)
        image.save(folder / f"{i}.jpg", quality=95)
    records = tuple(Record(str(i), f"{i}.jpg", ("x",), (f"{i}#0",)) for i in range(n))
    return Dataset("d", folder, {"train": records})


def test_large_jpegs_are_halved_only_where_that_keeps_the_embeddings(vit, tmp_path):
    assert vit.input_size == 32
    smooth = choose_draft(vit, _large_jpegs(tmp_path / "smooth", 9, "smooth"), "cpu", "fp32")
    assert smooth.size == 96
    assert smooth.cosine > 0.999
    assert (
        choose_draft(vit, _large_jpegs(tmp_path / "few", 7, "smooth"), "cpu", "fp32").size is None
    )
    small = tmp_path / "small"
    make_images(small, 12)
    records = tuple(Record(str(i), f"{i:03d}.jpg", ("x",), (f"{i}#0",)) for i in range(12))
    assert choose_draft(vit, Dataset("d", small, {"train": records}), "cpu", "fp32").cosine is None
    far = replace(
        vit, encode=lambda pixels: pixels.flatten(1).diff(dim=1)
    )  # sees nothing but fine detail
    noise = choose_draft(far, _large_jpegs(tmp_path / "noise", 9, "noise"), "cpu", "fp32")
    assert noise.size is None
    assert noise.cosine < 0.999
    with_draft = replace(vit, draft_size=96)
    assert with_draft.settings("fp32", "float16", "none").transform["jpeg_draft"] == 96
    assert "jpeg_draft" not in vit.settings("fp32", "float16", "none").transform


def test_halving_keeps_at_least_the_size_asked_for(tmp_path):
    _large_jpegs(tmp_path / "d", 1, "smooth")
    path = tmp_path / "d" / "0.jpg"
    sizes = {175: (175, 200), 176: (350, 400), 350: (350, 400), 351: (700, 800), None: (700, 800)}
    assert {at: load_image(path, at).size for at in sizes} == sizes
    Image.new("RGB", (800, 800)).save(tmp_path / "x.png")
    assert load_image(tmp_path / "x.png", 10).size == (800, 800)


def test_what_was_halved_stays_halved_in_later_runs(tmp_path):
    vit, folder = make_tiny_vit(tmp_path / "vit"), tmp_path / "d"
    _large_jpegs(folder, 9, "smooth")
    lines = [
        f'{{"image": "{i}.jpg", "caption": "picture {i}", "split": "train"}}' for i in range(9)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    args = (
        "--dataset",
        folder / "pairs.jsonl",
        "--teacher",
        f"vit={vit}",
        "--teacher",
        "minilm",
        "--workers",
        0,
    )
    text = run_ok("precompute", *args, "--out", tmp_path / "s.h5")
    assert "vit: large JPEGs are halved while decoded (least cosine" in text
    assert EmbeddingStore(tmp_path / "s.h5").teachers["vit"].transform["jpeg_draft"] == 96
    assert "large JPEGs" not in run_ok("precompute", *args, "--out", tmp_path / "s.h5")
    error = run_failure("precompute", *args, "--out", tmp_path / "s.h5", "--jpeg-draft", "off")
    assert (type(error), error.name) == (StoreError, "vit")
    assert "transform" in str(error)


def test_measuring_writes_nothing(words, tmp_path):
    records = tuple(Record(str(i), f"{i}.jpg", (f"picture {i}",), (str(i),)) for i in range(40))
    dataset = Dataset("d", tmp_path, {"train": records})
    rates = measure(
        words, "none", [ShardTask(tmp_path / "s.h5", "w", "train", 0, 40)], dataset, OPTIONS, 0.05
    )
    assert rates.whole > 0
    assert rates.encoding > 0
    assert list(tmp_path.iterdir()) == []
