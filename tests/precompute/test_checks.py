"""The first batch: made-up teachers whose rows are wrong, each in one way."""

from dataclasses import replace
from threading import Event, Thread

import numpy as np
import pytest
import torch
from PIL import Image

from cusa.data.errors import DataError, TeacherError
from cusa.data.records import Dataset, Record
from cusa.data.store.shards import ShardHeader
from cusa.precompute import first_batch as checks
from cusa.precompute.encoding import ROW_COUNT
from cusa.precompute.first_batch import (
    ROW_DIM,
    SECOND_PASS,
    EqualRowsError,
    FirstBatchCheck,
    count_different,
    input_digests,
)
from cusa.precompute.pipeline import PipelineOptions, encode_shards, encoded_batches
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.teachers.base import SizeGroups, Teacher, stacked
from tests.helpers import Fault, fault_of, unit_rows

OPTIONS = PipelineOptions("cpu", "fp32", workers=0, encoders=2, skip_errors=False)
WEIGHTS = torch.from_numpy(np.random.default_rng(0).normal(size=(3 * 8 * 8, 5))).float()


def _project(pixels):
    return pixels.flatten(1) @ WEIGHTS


def _image_teacher(encode=_project, batch_size=3):
    return Teacher(
        modality="image",
        model_id="made-up",
        weights_sha256="0" * 64,
        dim=5,
        transform={},
        source="nowhere",
        encode=encode,
        batch_size=batch_size,
        preprocess=lambda image: np.asarray(image, np.float32).transpose(2, 0, 1) / 255,
    )


def _text_teacher(encode, batch_size=4):
    """Tokens are the letters' numbers; encode maps int64 [n, length] to [n, 5]."""

    def tokenize(captions):
        length = max(map(len, captions))
        return {
            "input_ids": torch.tensor(
                [[ord(c) for c in caption.ljust(length)] for caption in captions]
            )
        }

    return Teacher(
        modality="text",
        model_id="made-up",
        weights_sha256="0" * 64,
        dim=5,
        transform={},
        source="nowhere",
        encode=lambda inputs: encode(inputs["input_ids"]),
        batch_size=batch_size,
        tokenize=tokenize,
        token_counts=lambda captions: np.array([len(c) for c in captions]),
    )


def _picture(number):
    return np.random.default_rng(number).integers(0, 255, (8, 8, 3)).astype(np.uint8)


def _picture_data(folder, numbers):
    records = []
    for position, number in enumerate(numbers):
        Image.fromarray(_picture(number)).save(folder / f"{position}.png")
        records.append(Record(f"i{position}", f"{position}.png", ("x",), (f"i{position}#0",)))
    return Dataset("d", folder, {"train": tuple(records)})


def _caption_data(folder, captions):
    records = [Record(f"i{n}", f"{n}.jpg", (c,), (f"i{n}#0",)) for n, c in enumerate(captions)]
    return Dataset("d", folder, {"train": tuple(records)})


def _rows(teacher, dataset, options=OPTIONS):
    """Rows by number, and the messages of those without."""
    task = ShardTask(dataset.image_root / "s.h5", "t", "train", 0, len(dataset.splits["train"]))
    rows, messages = {}, {}
    shards = iter([(task, task.rows)])
    for _, batch, values in encoded_batches(teacher, "none", shards, dataset, options):
        rows |= dict(
            zip(
                batch.rows.tolist(), values[batch.source] if values is not None else [], strict=True
            )
        )
        messages |= dict(batch.errors)
    return rows, messages


def test_a_good_teacher_passes(tmp_path):
    rows, messages = _rows(_image_teacher(), _picture_data(tmp_path, range(7)))
    assert messages == {}
    for number, row in rows.items():
        want = (_picture(number).astype(np.float32).transpose(2, 0, 1) / 255).reshape(
            -1
        ) @ WEIGHTS.numpy()
        np.testing.assert_allclose(row, want / np.linalg.norm(want), atol=1e-5)


def test_rows_that_change_are_refused(tmp_path):
    generator = torch.Generator().manual_seed(0)

    def noisy(pixels):
        return _project(pixels) + torch.randn((len(pixels), 5), generator=generator)

    with pytest.raises(TeacherError) as caught:
        _rows(_image_teacher(noisy), _picture_data(tmp_path, range(7)))
    assert (caught.value.name, caught.value.location) == ("t", SECOND_PASS)


def test_rows_that_are_all_alike_are_refused(tmp_path):
    with pytest.raises(EqualRowsError) as caught:
        _rows(
            _image_teacher(lambda pixels: torch.ones(len(pixels), 5)),
            _picture_data(tmp_path, range(7)),
        )
    assert (caught.value.name, caught.value.n_items, caught.value.n_different) == ("t", 3, 1)


def test_captions_that_the_tokeniser_confuses_are_refused(tmp_path):
    """Only their length counts: as where transformers makes up a tokeniser without words."""

    def lengths(tokens):
        n_letters = (tokens != ord(" ")).sum(dim=1, keepdim=True).float()
        return torch.cat([n_letters, torch.ones(len(tokens), 4)], dim=1)

    captions = [f"{a}{b}" for a in "abcd" for b in "efgh"] + ["three", "longer"]
    with pytest.raises(EqualRowsError) as caught:
        _rows(_text_teacher(lengths), _caption_data(tmp_path, captions[:16]))
    assert caught.value.n_different == 1
    with pytest.raises(EqualRowsError) as caught:
        _rows(_text_teacher(lengths, batch_size=18), _caption_data(tmp_path, captions))
    assert (caught.value.n_items, caught.value.n_different) == (18, 3)


def test_a_few_captions_of_unknown_words_are_no_fault(tmp_path):
    def first_letter(tokens):
        return torch.nn.functional.one_hot(tokens[:, 0] - ord("a"), 26)[:, :5].float()

    teacher = _text_teacher(first_letter)
    blind = replace(teacher, tokenize=lambda captions: teacher.tokenize([c[0] for c in captions]))
    rows, _ = _rows(blind, _caption_data(tmp_path, ["aa", "ab"]))
    np.testing.assert_array_equal(rows[0], rows[1])


def test_copies_of_one_picture_are_no_fault(tmp_path):
    """The check goes on to the first batch that holds another one."""
    rows, _ = _rows(_image_teacher(), _picture_data(tmp_path, [1, 1, 1, 1, 1, 1, 2]))
    assert len(rows) == 7
    assert len(_rows(_image_teacher(), _picture_data(tmp_path, [1, 1]))[0]) == 2
    constant = _image_teacher(lambda pixels: torch.ones(len(pixels), 5))
    with pytest.raises(EqualRowsError) as caught:
        _rows(constant, _picture_data(tmp_path, [1, 1, 1, 1, 1, 1, 2]))
    assert caught.value.n_items == 2


def test_another_dimension_than_declared_is_refused(tmp_path):
    with pytest.raises(TeacherError) as caught:
        _rows(replace(_image_teacher(), dim=6), _picture_data(tmp_path, range(3)))
    assert caught.value.location == ROW_DIM


def test_another_number_of_rows_is_refused(tmp_path):
    teacher = _image_teacher(lambda pixels: _project(pixels[:1]))
    with pytest.raises(TeacherError) as caught:
        _rows(teacher, _picture_data(tmp_path, range(3)))
    assert (caught.value.name, caught.value.location) == ("t", ROW_COUNT)


def test_the_item_that_a_model_fails_on_is_named(tmp_path):
    def picky(pixels):
        if (pixels[:, 0, 0, 0] * 255).round().int().eq(_picture(5)[0, 0, 0]).any():
            raise IndexError("index out of range in self\nand more")
        return _project(pixels)

    with pytest.raises(TeacherError) as caught:
        _rows(_image_teacher(picky), _picture_data(tmp_path, range(7)))
    assert fault_of(caught.value) == Fault(TeacherError, path=tmp_path / "5.png", name="t")
    assert (caught.value.name, caught.value.path) == ("t", tmp_path / "5.png")
    assert "\n" not in str(caught.value)

    def short(tokens):
        if tokens.shape[1] > 20:
            raise RuntimeError("too long")
        return torch.nn.functional.one_hot(tokens, 128).sum(dim=1)[:, 97:102].float()

    captions = ["abc", "bcd", "a" * 70, "cde"]
    with pytest.raises(TeacherError) as caught:
        _rows(_text_teacher(short), _caption_data(tmp_path, captions))
    assert (caught.value.name, caught.value.location) == ("t", "caption id i2#0")
    message = str(caught.value)
    assert "a" * 60 in message
    assert "a" * 61 not in message


def test_a_batch_that_fails_only_as_a_whole_is_named(tmp_path):
    def lonely(pixels):
        if len(pixels) > 1:
            raise RuntimeError("no batches")
        return _project(pixels)

    with pytest.raises(TeacherError) as caught:
        _rows(_image_teacher(lonely), _picture_data(tmp_path, range(3)))
    assert (caught.value.name, caught.value.path) == ("t", tmp_path / "0.png")


def test_rows_of_zeros_are_skipped_or_named(tmp_path):
    def bag(tokens):
        return torch.nn.functional.one_hot(tokens, 128).sum(dim=1)[:, 97:102].float()  # of a to e

    dataset = _caption_data(tmp_path, ["abc", "xyz", "cab e", "xyz", "dd", "1e-40"])
    tiny = _text_teacher(
        lambda tokens: bag(tokens) * torch.where(tokens[:, :1] == ord("1"), 1e-25, 1.0)
    )
    rows, messages = _rows(tiny, dataset)
    assert sorted(rows) == [0, 2, 4, 5]  # small features have a direction, too
    assert sorted(messages) == [1, 3]
    assert "caption id i3#0 ('xyz')" in messages[3]
    settings = tiny.settings("fp32", "float16", "none")
    task = ShardTask(tmp_path / "s.h5", "t", "train", 0, 6)
    header = ShardHeader("t", "train", "f", 0, 6, settings)

    def encode(options):
        return encode_shards(
            tiny, "none", lambda _: header, iter([task]), dataset, options, lambda t, n: None
        )

    with pytest.raises(DataError) as caught:
        encode(OPTIONS)
    assert (caught.value.name, caught.value.location) == ("t", "row 1")
    assert encode(replace(OPTIONS, skip_errors=True))[task].skipped == (1, 3)


def test_pictures_of_several_sizes_keep_their_places():
    sizes = [(4, 6), (6, 4), (4, 6), (2, 2), (6, 4)]
    arrays = [np.full((3, *size), number, np.float32) for number, size in enumerate(sizes)]
    groups = stacked(arrays)
    assert isinstance(groups, SizeGroups)
    assert len(groups) == 5
    teacher = replace(
        _image_teacher(
            lambda pixels: torch.stack([pixels.mean((1, 2, 3)), torch.ones(len(pixels))], 1)
        )
    )
    rows = teacher.rows(groups, "cpu", "fp32")
    np.testing.assert_allclose(rows[:, 0] / rows[:, 1], [0, 1, 2, 3, 4], rtol=1e-5)
    digests = input_digests(groups)
    assert len(set(digests)) == 5
    assert input_digests(stacked(arrays[:1])) == digests[:1]
    assert isinstance(stacked([arrays[0], arrays[2]]), torch.Tensor)


def test_counting_rows():
    rows = np.array([[1, 0], [0, 1], [1, 0], [1, 1e-7], [0.6, 0.8]], np.float32)
    assert count_different(rows) == 3
    assert count_different(rows[:0]) == 0


def test_inputs_that_are_not_one_row_per_item_have_no_digests():
    flat = {"input_ids": torch.arange(7), "offsets": torch.tensor([0, 3])}
    assert input_digests(flat) == []
    check = FirstBatchCheck(_image_teacher(lambda inputs: torch.eye(5)[:2]), "cpu", "fp32")
    check("t", flat, np.eye(5, dtype=np.float32)[:2], ["a", "b"])


def test_a_batch_of_another_thread_waits_for_the_check_of_the_first(monkeypatch):
    """Unguarded, the other thread counts the rows of 8 captions while the first adds 16."""
    all_rows = unit_rows(24, 5, seed=0)
    is_counted, is_checked = Event(), Event()
    errors = []

    def second_pass(token_ids):
        other.start()
        is_counted.wait(timeout=0.5)
        return torch.from_numpy(all_rows[token_ids[:, 0]])

    def count_and_wait(rows):
        number = count_different(rows)
        is_counted.set()
        is_checked.wait(timeout=0.5)
        return number

    check = FirstBatchCheck(_text_teacher(second_pass), "cpu", "fp32")

    def check_captions(start, stop):
        token_ids = torch.arange(start, stop)[:, None]
        captions = [str(number) for number in range(start, stop)]
        try:
            check("t", {"input_ids": token_ids}, all_rows[start:stop], captions)
        except TeacherError as error:
            errors.append(error)

    monkeypatch.setattr(checks, "count_different", count_and_wait)
    other = Thread(target=check_captions, args=(16, 24))
    check_captions(0, 16)
    is_checked.set()
    other.join()
    assert errors == []
