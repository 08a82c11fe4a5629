"""Records as columns: in memory or in files, they are what was read, in the order of the rows."""

import hashlib
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest

from cusa.data import array_writer, grouping, image_runs, record_columns, repeated_texts, texts
from cusa.data.array_writer import ArrayWriter
from cusa.data.datasets import load_dataset
from cusa.data.errors import CusaError, DataError, FileFormatError
from cusa.data.grouping import group_rows
from cusa.data.readers.forms import AnnotationRow
from cusa.data.record import Record
from cusa.data.record_columns import Records
from cusa.data.records import AnnotationFile, Dataset
from cusa.data.repeated_texts import first_rows, shared_text
from cusa.data.texts import Texts

SPLITS = ("train", "val", "test")


@pytest.fixture(params=["memory", "files", "files, equal hashes"])
def columns(request, monkeypatch):
    """Long columns, as they are in memory or in files; and texts whose hashes are equal."""
    if request.param == "memory":
        return
    monkeypatch.setattr(array_writer, "MAX_BYTES_IN_MEMORY", 16)
    for module in (texts, record_columns, image_runs, grouping, repeated_texts):
        monkeypatch.setattr(module, "BLOCK", 3)
    if "hashes" in request.param:

        def few_hashes(strings):
            return np.fromiter((len(string) % 3 for string in strings), np.int64)

        for module in (image_runs, grouping, repeated_texts):
            monkeypatch.setattr(module, "text_hashes", few_hashes)


def _rows(seed, order, with_ids):
    """Rows of 60 images; each has 1 to 4 rows with 0 to 3 captions, at least one of them."""
    rng = random.Random(seed)
    rows = []
    for image in range(60):
        split = rng.choice(SPLITS)
        for row in range(rng.randint(1, 4)):
            captions = tuple(
                f"é{rng.random()}" * rng.randint(0, 2) for _ in range(rng.randint(0, 3))
            )
            captions = captions or ("one",) * (row == 0)
            ids = tuple(f"c{image}-{row}-{n}" for n in range(len(captions)))
            if with_ids == "none" or (with_ids == "some" and rng.random() < 0.5):
                ids = ()
            rows.append((split, f"f/{image}.jpg", f"i{image}", captions, ids))
    if order == "shuffled":
        rng.shuffle(rows)
    return [(3 * n, AnnotationRow(*row, number=n)) for n, row in enumerate(rows)]


def _grouped_by_hand(rows):
    images = {}
    for position, row in rows:
        split, path, captions, ids, positions = images.setdefault(
            row.image_id, (row.split, row.image_path, [], [], [])
        )
        assert (split, path) == (row.split, row.image_path)
        numbers = range(len(captions), len(captions) + len(row.captions))
        ids += row.caption_ids or [f"{row.image_id}#{number}" for number in numbers]
        captions += row.captions
        positions += [position] * len(row.captions)
    splits = {}
    for name in SPLITS:
        splits[name] = [
            Record(image_id, path, tuple(captions), tuple(ids), tuple(positions))
            for image_id, (split, path, captions, ids, positions) in images.items()
            if split == name
        ]
    return {name: records for name, records in splits.items() if records}


@pytest.mark.parametrize("with_ids", ["all", "some", "none"])
@pytest.mark.parametrize("order", ["adjacent", "shuffled"])
def test_rows_are_grouped_as_by_hand(columns, order, with_ids):
    rows = _rows(7, order, with_ids)
    splits = group_rows(rows, [])
    by_hand = _grouped_by_hand(rows)
    assert list(splits) == list(by_hand)
    for name, expected in by_hand.items():
        records = splits[name]
        assert list(records) == expected
        assert [record.positions for record in records] == [r.positions for r in expected]
        assert [records[row] for row in range(len(records))] == expected
        assert records.fingerprint == _fingerprint_by_hand(expected)
        assert list(records.captions) == [c for r in expected for c in r.captions]
        assert records.caption_ids[2:7] == [c for r in expected for c in r.caption_ids][2:7]


def _fingerprint_by_hand(records):
    """As docs/FORMAT.md has it."""
    digest = hashlib.sha256()
    for record in records:
        texts_in_order = [record.image_id, record.image_path]
        for pair in zip(record.caption_ids, record.captions, strict=True):
            texts_in_order += pair
        for text in texts_in_order:
            digest.update(len(text.encode()).to_bytes(8, "little") + text.encode())
        digest.update(b"\xff" * 8)
    return digest.hexdigest()


def test_rows_of_records(columns):
    given = _grouped_by_hand(_rows(3, "adjacent", "some"))["train"]
    records = Records.from_records(iter(given))
    n = len(given)
    assert records == given
    assert records != given[1:]
    assert records != [*given[1:], given[0]]
    for start, stop, step in ((0, 5, 1), (4, 9, 1), (5, 2, 1), (-3, None, 1), (None, None, -2)):
        part = records[start:stop:step]
        assert part == given[start:stop:step]
        assert part.fingerprint == _fingerprint_by_hand(given[start:stop:step])
    rows = np.random.default_rng(0).permutation(n)[: n // 2]
    taken = records[2:].take(rows[rows < n - 2])
    assert list(taken) == [given[row + 2] for row in rows if row < n - 2]
    assert [r.positions for r in records] == [r.positions for r in given]
    assert pickle.loads(pickle.dumps(records[3:6])) == given[3:6]
    with pytest.raises(IndexError):
        records[n]


def test_repeated_texts(columns):
    strings = [f"t{n % 11}" for n in range(40)] + ["once", "", "t1"]
    column = Texts.from_strings(strings)
    rows, firsts = first_rows(column, repeated_texts.text_hashes(strings))
    first_of = dict(zip(rows.tolist(), firsts.tolist(), strict=True))
    for row, string in enumerate(strings):
        if strings.count(string) > 1 or row in first_of:
            assert first_of[row] == strings.index(string)
    assert shared_text(column, Texts.from_strings(["x", "once", "y"])) == "once"
    assert shared_text(column, Texts.from_strings(["x", "Once"])) is None
    assert shared_text(Texts.from_strings([]), column) is None


def _position_of(error):
    return int(error.value.location)


@pytest.mark.parametrize(
    ("others", "at", "name"),
    [
        ([("train", "f/x.jpg", "i3", ("a",), ())], 0, "i3"),
        ([("other", "f/3.jpg", "i3", ("a",), ())], 0, "i3"),
        ([("train", "new", "new", (), ()), ("train", "new2", "new2", (), ())], 0, "new"),
        ([("train", "n", "n", (), ("z",)), ("train", "f/x.jpg", "i9", ("a",), ())], 1, "i9"),
        ([("train", "n", "n", ("a", "b"), ("z", "z"))], 0, "z"),
        ([("val", "n", "n", ("a",), ("z",)), ("train", "m", "m", ("b",), ("z",))], 1, "z"),
        ([("train", "n", "n", ("a",), ("i5#0",)), ("val", "m", "m", ("b",), ("i6#0",))], 0, "i5#0"),
    ],
)
def test_ambiguous_rows_are_named(columns, tmp_path, others, at, name):
    rows = _rows(5, "shuffled", "none")
    split_of = {row.image_id: row.split for _, row in rows}
    number = len(rows)
    for split, path, image_id, captions, ids in others:
        if split == "other":
            split = SPLITS[SPLITS.index(split_of[image_id]) - 1]
        else:
            split = split_of.get(image_id, split)
        row = AnnotationRow(split, path, image_id, captions, ids, len(rows))
        rows.append((len(rows), row))
    file = AnnotationFile(tmp_path / "pairs.jsonl", "{}")
    with pytest.raises(DataError) as error:
        group_rows(rows, [file])
    assert error.value.name == name
    assert _position_of(error) == number + at
    assert error.value.path == file.path


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        ([("m", "i"), ("n", "z"), ("i", "z"), ("i", "i")], "z"),
        ([("m", "a"), ("i", "b"), ("n", "z"), ("i", "z")], "i"),
        ([("m", "z"), ("n", "z"), ("i", "i"), ("i", "j")], "z"),
    ],
)
@pytest.mark.parametrize("malformed", [False, True])
def test_the_first_error_is_reported(rows, name, malformed):
    """Rows of one caption each, given by the image's file and the caption's id."""

    def read():
        for number, (path, caption_id) in enumerate(rows):
            image_id = "i" if path in ("i", "m") and name == "i" else f"{path}{number}"
            yield number, AnnotationRow("train", path, image_id, ("a",), (caption_id,), number)
        if malformed:
            raise FileFormatError("a malformed row", name="row")

    with pytest.raises(CusaError) as error:
        group_rows(read(), [AnnotationFile("pairs", "{}")])
    assert error.value.name == name


def test_caption_ids_must_be_as_many_as_captions(tmp_path):
    record = Record("i", "p", ("a", "b"), ("1",))
    with pytest.raises(DataError) as error:
        Dataset("d", tmp_path, {"train": [record]})
    assert error.value.name == "i"


@pytest.mark.parametrize("column", ["image_id", "image_path", "captions", "caption_ids"])
def test_half_a_character_is_refused(tmp_path, column):
    texts = {"image_id": "i", "image_path": "p", "captions": ("a",), "caption_ids": ("1",)}
    texts[column] = "\ud800" if isinstance(texts[column], str) else ("\ud800",)
    with pytest.raises(DataError) as error:
        Dataset("d", tmp_path, {"train": [Record(**texts)]})
    assert error.value.name == texts["image_id"]


def test_records_do_not_equal_other_things():
    records = Records.from_records([Record("i", "p", ("a",), ("1",))])
    assert records == [Record("i", "p", ("a",), ("1",))]
    assert records != ["i"]
    assert records != "i"


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(array_writer, "MAX_BYTES_IN_MEMORY", 16)
    monkeypatch.setattr(array_writer.tempfile, "tempdir", str(tmp_path / "missing"))
    writer = ArrayWriter("<i8")
    with pytest.raises(DataError) as error:
        writer.append(np.arange(9))
    assert error.value.path == tmp_path / "missing"
    assert error.value.name == "TMPDIR"


def test_a_disk_that_is_full_at_the_end_is_one_line_too():
    """The last values are written when the array is finished."""
    script = """
import resource, signal
from cusa.data.array_writer import ArrayWriter, MAX_BYTES_IN_MEMORY
from cusa.data.errors import DataError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
n_bytes = 2 * MAX_BYTES_IN_MEMORY
resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
writer = ArrayWriter("|u1")
writer.append(bytes(n_bytes))
writer.append(b"x")
try:
    writer.finish()
except DataError as error:
    raise SystemExit(error.name != "TMPDIR")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_long_columns_take_no_memory_and_leave_no_file(tmp_path):
    """Anonymous memory of a process that reads 200,000 pairs with captions of 400 characters."""
    script = """
import sys
from pathlib import Path
from cusa.data.readers.forms import AnnotationRow
from cusa.data.grouping import group_rows

def anonymous_mib():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) >> 10

def row(n):
    return n, AnnotationRow("train", f"{n}.jpg", f"{n}.jpg", (str(n) * 80,), (), n)

group_rows(map(row, range(10)), [])
before = anonymous_mib()
splits = group_rows(map(row, range(200_000)), [])
assert len(splits["train"].captions[199_999]) == 480
print(anonymous_mib() - before)
"""
    environment = {"TMPDIR": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    # The captions alone have 90 MB.
    assert int(done.stdout) < 60
    assert not list(tmp_path.iterdir())


def test_an_image_may_have_rows_without_a_caption(tmp_path):
    """Positions used to count such a row."""
    file = tmp_path / "x.jsonl"
    file.write_text(
        '{"image": "1.jpg", "caption": []}\n{"image": "1.jpg", "caption": ["a", "b"]}\n'
    )
    dataset = load_dataset(file)
    assert dataset.splits["train"] == [Record("1.jpg", "1.jpg", ("a", "b"), ("1.jpg#0", "1.jpg#1"))]
    assert dataset.location_of("train", 0) == (file, "line 2")
