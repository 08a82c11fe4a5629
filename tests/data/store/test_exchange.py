import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors import safe_open

from cusa.data.errors import EmbeddingsError, FileFormatError, SettingError, StoreError
from cusa.data.records import Dataset, Record
from cusa.data.store import import_export as exchange
from cusa.data.store import row_matching
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.verify import verify
from cusa.eval.models.embedding_providers import FileProvider
from tests.helpers import (
    Fault,
    add_teacher,
    fault_of,
    make_store,
    records,
    run_error,
    run_failure,
    run_fault,
    run_ok,
    settings,
    unit_rows,
)

SIZES = {"train": 16, "val": 5}


@pytest.fixture
def index(tmp_path):
    return make_store(tmp_path / "s", SIZES, dim=4)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Several blocks and shards for few rows."""
    monkeypatch.setattr(exchange, "_BLOCK_ROWS", 7)
    monkeypatch.setattr(row_matching, "_BLOCK_ROWS", 7)
    monkeypatch.setattr(exchange, "SHARD_ROWS", 6)


def _rows(index, teacher, split):
    embeddings = EmbeddingStore(index).embeddings(teacher, split)
    return embeddings.gather(range(len(embeddings)))


def _files(index):
    return {p: p.read_bytes() for p in index.parent.rglob("*.h5")}


def _given(folder, rows, ids):
    """A .npy file and its ids, as import takes them."""
    np.save(folder / "given.npy", rows)
    (folder / "given.json").write_text(json.dumps(ids))
    return folder / "given.npy", "--ids", folder / "given.json"


def _image_ids(split="train"):
    return [f"{split}{i}" for i in range(SIZES[split])]


@pytest.mark.parametrize(
    ("teacher", "split"), [("vision", "train"), ("vision", "val"), ("words", "train")]
)
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_export_gives_all_rows_and_their_ids_in_row_order(index, tmp_path, teacher, split, suffix):
    out = tmp_path / f"rows{suffix}"
    output = run_ok("store", "export", index, out, "--teacher", teacher, "--split", split)
    assert output == f"rows: {out}\nids: {tmp_path / 'rows.ids.json'}\n"
    if suffix == ".npy":
        rows = np.load(out)
    else:
        with safe_open(out, "np") as file:
            rows = file.get_tensor("embeddings")
            assert (
                json.loads(file.metadata()["settings"])["model_id"]
                == f"made-up-{'text' if teacher == 'words' else 'image'}"
            )
    assert rows.dtype == np.float16
    np.testing.assert_array_equal(rows, _rows(index, teacher, split))
    ids = json.loads((tmp_path / "rows.ids.json").read_text())
    assert ids == (
        _image_ids(split)
        if teacher == "vision"
        else [f"{i}#{c}" for i in _image_ids(split) for c in (0, 1)]
    )


def test_export_gives_nan_where_rows_were_skipped(index, tmp_path):
    dataset = Dataset("made-up", index.parent, {"train": records("train", 16)})
    add_teacher(
        index,
        dataset,
        "holes",
        settings("image", 4),
        {"train": unit_rows(16, 4, 0)},
        skipped=[0, 13],
    )
    run_ok(
        "store", "export", index, tmp_path / "rows.npy", "--teacher", "holes", "--split", "train"
    )
    rows = np.load(tmp_path / "rows.npy")
    assert np.flatnonzero(np.isnan(rows).any(axis=1)).tolist() == [0, 13]
    again = (
        "store",
        "import",
        index,
        tmp_path / "rows.npy",
        "--ids",
        tmp_path / "rows.ids.json",
        "--split",
        "train",
    )
    assert run_fault(*again, "--teacher", "again") == Fault(EmbeddingsError, location="row 0")
    assert "2 skipped" in run_ok(*again, "--teacher", "again", "--on-error", "skip")
    assert EmbeddingStore(index).embeddings("again", "train").skipped.tolist() == [0, 13]


def test_rows_that_belong_to_nothing_are_counted(index, tmp_path):
    np.save(tmp_path / "rows.npy", np.eye(19, 4, dtype=np.float32) + 1)
    (tmp_path / "ids.txt").write_text("\n".join([f"train{i}" for i in range(16)] + ["x", "y", "z"]))
    given = (tmp_path / "rows.npy", "--ids", tmp_path / "ids.txt")
    text = run_ok("store", "import", index, *given, "--split", "train", "--teacher", "again")
    assert "note: 3 rows of" in text
    assert "belong to nothing in split train" in text


def test_export_refuses_what_is_not_there(index, tmp_path):
    def refused(name, teacher, split):
        return run_fault(
            "store", "export", index, tmp_path / name, "--teacher", teacher, "--split", split
        )

    assert refused("x.csv", "vision", "train") == Fault(FileFormatError, path=tmp_path / "x.csv")
    assert refused("x.npy", "nope", "train") == Fault(StoreError, path=index, name="nope")
    assert refused("x.npy", "vision", "test") == Fault(StoreError, path=index, name="test")
    (index.with_suffix("") / "vision" / "train-000000014-000000016.h5").unlink()
    assert refused("x.npy", "vision", "train") == Fault(
        StoreError, path=tmp_path / "s/store/vision/train-000000014-000000016.h5"
    )
    assert list(tmp_path.glob("*x*")) == []


@pytest.mark.parametrize(("modality", "per_image"), [("image", 1), ("text", 2)])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_was_exported_is_imported_bit_for_bit(index, tmp_path, modality, per_image, dtype):
    dataset = Dataset(
        "made-up", index.parent, {split: records(split, n) for split, n in SIZES.items()}
    )
    made = {split: unit_rows(per_image * n, 4, 6) for split, n in SIZES.items()}
    add_teacher(index, dataset, "once", settings(modality, 4), made)
    for split in SIZES:
        run_ok("store", "export", index, tmp_path / "x.npy", "--teacher", "once", "--split", split)
        ids = ("--ids", tmp_path / "x.ids.json", "--modality", modality, "--dtype", dtype)
        run_ok(
            "store",
            "import",
            index,
            tmp_path / "x.npy",
            *ids,
            "--teacher",
            "again",
            "--split",
            split,
        )
        assert _rows(index, "again", split).dtype == dtype
        np.testing.assert_array_equal(_rows(index, "again", split), made[split].astype(np.float16))
    found = EmbeddingStore(index)
    assert set(found.teachers) == {"vision", "words", "once", "again"}
    assert found.sources["again"] == str(tmp_path / "x.npy")
    assert found.embeddings("again", "train").n_shards == -(-16 * per_image // 6)
    assert verify(index)[1] == []


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_what_was_exported_is_imported_and_evaluated_without_more_words(index, tmp_path, suffix):
    """The ids lie beside the rows, under the name that the reader looks for."""
    path = tmp_path / f"x{suffix}"
    run_ok("store", "export", index, path, "--teacher", "vision", "--split", "train")
    run_ok("store", "import", index, path, "--teacher", "again", "--split", "train")
    rows = _rows(index, "vision", "train")
    np.testing.assert_array_equal(_rows(index, "again", "train"), rows)
    found = FileProvider((path, None), None, "exported").images(_image_ids()[::-1], [])["cross"]
    np.testing.assert_allclose(found, rows[::-1], atol=1e-3)


def test_rows_in_hdf5_are_imported(index, tmp_path):
    rows = unit_rows(16, 4, 5)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["mine/embeddings"], file["mine/ids"] = rows, _image_ids()
    options = ("--teacher", "new", "--split", "train", "--dtype", "float32")
    run_ok("store", "import", index, f"{tmp_path / 'x.h5'}:/mine", *options)
    np.testing.assert_array_equal(_rows(index, "new", "train"), rows)


@pytest.mark.parametrize(
    ("dtype", "size"), [(np.float64, 1e300), (np.float64, 1e-300), (np.float16, 3e4), (np.int8, 90)]
)
def test_rows_of_any_size_are_normalised(index, tmp_path, dtype, size):
    rows = (np.array([[0.6, 0.8], [0, -1], [1, 0], [-0.6, 0.8], [1, 1]]) * size).astype(dtype)
    given = _given(tmp_path, rows, _image_ids("val"))
    run_ok(
        "store", "import", index, *given, "--teacher", "new", "--split", "val", "--dtype", "float32"
    )
    want = rows.astype(np.longdouble) / np.linalg.norm(
        rows.astype(np.longdouble), axis=1, keepdims=True
    )
    np.testing.assert_allclose(_rows(index, "new", "val"), want.astype(float), rtol=1e-6)


def _names(kind):
    """What a record of helpers.records is called."""
    return {
        "id": lambda i: f"train{i}",
        "path": lambda i: f"train/{i}.jpg",
        "file name": lambda i: f"{i}.jpg",
        "stem": lambda i: f"{i}",
    }[kind]


@pytest.mark.parametrize("kind", ["id", "path", "file name", "stem"])
def test_shuffled_rows_are_put_in_order_by_id_path_or_name(index, tmp_path, kind):
    want, name = unit_rows(20, 4, 5), _names(kind)
    order = np.random.default_rng(0).permutation(20)  # four more than the split has
    given = _given(tmp_path, want[order], [name(i) for i in order])
    run_ok(
        "store",
        "import",
        index,
        *given,
        "--teacher",
        "new",
        "--split",
        "train",
        "--dtype",
        "float32",
    )
    np.testing.assert_array_equal(_rows(index, "new", "train"), want[:16])


def test_ids_may_be_lines_and_captions_have_ids_of_their_own(index, tmp_path):
    want = unit_rows(10, 4, 5)
    np.save(tmp_path / "x.npy", want[::-1])
    (tmp_path / "x.txt").write_text(
        "".join(f"val{i}#{c}\n" for i in range(4, -1, -1) for c in (1, 0))
    )
    ids = (
        "--ids",
        tmp_path / "x.txt",
        "--modality",
        "text",
        "--normalizer",
        "none",
        "--model-id",
        "m",
    )
    run_ok(
        "store",
        "import",
        index,
        tmp_path / "x.npy",
        *ids,
        "--teacher",
        "t",
        "--split",
        "val",
        "--dtype",
        "float32",
    )
    np.testing.assert_array_equal(_rows(index, "t", "val"), want)
    found = EmbeddingStore(index).teachers["t"]
    assert (found.modality, found.normalizer, found.model_id, found.dim) == ("text", "none", "m", 4)


@pytest.mark.parametrize("dtype", [">f2", "<f4", "<f8"])
def test_rows_are_normalised(index, tmp_path, dtype):
    rows = np.array([[3, 4], [0, -2], [5, 0], [0.5, 0], [30, 40]], dtype)
    given = _given(tmp_path, rows, _image_ids("val"))
    run_ok(
        "store", "import", index, *given, "--teacher", "new", "--split", "val", "--dtype", "float32"
    )
    want = np.array([[0.6, 0.8], [0, -1], [1, 0], [1, 0], [0.6, 0.8]])
    np.testing.assert_allclose(_rows(index, "new", "val"), want, rtol=1e-6)
    assert EmbeddingStore(index).teachers["new"].normalized


def test_rows_whose_squares_no_float32_holds_are_normalised(index, tmp_path):
    rows = np.array([[3e30, 4e30], [3e-30, 4e-30], [1, 0], [1, 0], [1, 0]], np.float32)
    run_ok(
        "store",
        "import",
        index,
        *_given(tmp_path, rows, _image_ids("val")),
        "--teacher",
        "n",
        "--split",
        "val",
    )
    np.testing.assert_allclose(_rows(index, "n", "val")[:2], [[0.6, 0.8]] * 2, rtol=1e-3)


def test_missing_rows_are_refused_or_recorded(index, tmp_path):
    kept = [i for i in range(16) if i not in (3, 15)]
    rows = unit_rows(16, 4, 5)
    given = _given(tmp_path, rows[kept], [f"train{i}" for i in kept])
    arguments = (
        "store",
        "import",
        index,
        *given,
        "--teacher",
        "new",
        "--split",
        "train",
        "--dtype",
        "float32",
    )
    before = _files(index)
    assert run_fault(*arguments) == Fault(EmbeddingsError, name="train3")
    assert _files(index) == before
    assert "2 skipped" in run_ok(*arguments, "--on-error", "skip")
    found = EmbeddingStore(index).embeddings("new", "train")
    assert found.skipped.tolist() == [3, 15]
    assert np.isnan(found.gather([3, 15])).all()
    np.testing.assert_array_equal(found.gather(kept), rows[kept])


def _changed(row, value):
    rows = unit_rows(16, 4, 5)
    rows[row] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "ids", "fault"),
    [
        (
            unit_rows(16, 4, 5),
            [f"x{i}" for i in range(16)],
            Fault(EmbeddingsError, name="train0"),
        ),
        (
            unit_rows(16, 4, 5),
            [*_image_ids()[1:], "x"],
            Fault(EmbeddingsError, name="train0"),
        ),
        (unit_rows(0, 4, 5), [], Fault(EmbeddingsError, path=Path("given.npy"))),
        (
            unit_rows(16, 4, 5),
            [*_image_ids()[:15], "train0"],
            Fault(EmbeddingsError, path=Path("given.json"), name="train0"),
        ),
        (_changed(9, 0), _image_ids(), Fault(EmbeddingsError, name="row 9")),
        (
            _changed(9, np.nan),
            _image_ids(),
            Fault(EmbeddingsError, location="row 9"),
        ),
        (
            _changed(9, np.inf),
            _image_ids(),
            Fault(EmbeddingsError, location="row 9"),
        ),
        (unit_rows(15, 4, 5), _image_ids(), Fault(EmbeddingsError, path=Path("given.json"))),
        (unit_rows(16, 4, 5)[0], _image_ids(), Fault(FileFormatError, path=Path("given.npy"))),
        (np.ones((16, 4), bool), _image_ids(), Fault(FileFormatError, path=Path("given.npy"))),
    ],
)
def test_rows_that_do_not_fit_are_refused(index, tmp_path, rows, ids, fault):
    before = index.read_bytes()
    given = _given(tmp_path, rows, ids)
    error = run_failure("store", "import", index, *given, "--teacher", "new", "--split", "train")
    assert fault_of(error, tmp_path) == fault
    assert index.read_bytes() == before
    assert verify(index)[1] == []


def test_a_name_that_two_images_share_means_neither(tmp_path):
    """Rows by file name must not be given to every image of that name."""
    pairs = [
        Record(f"i{i}", f"{'ab'[i % 2]}/{i // 2}.jpg", (f"text {i}",), (f"c{i}",)) for i in range(4)
    ]
    index = tmp_path / "store.h5"
    rows = {"train": unit_rows(4, 4, 0)}
    add_teacher(
        index,
        Dataset("made-up", tmp_path, {"train": tuple(pairs)}),
        "a",
        settings("image", 4),
        rows,
    )
    before = _files(index)
    given = _given(tmp_path, unit_rows(2, 4, 1), ["0.jpg", "1.jpg"])
    arguments = (
        "store",
        "import",
        index,
        *given,
        "--teacher",
        "new",
        "--split",
        "train",
        "--on-error",
        "skip",
    )
    assert run_fault(*arguments) == Fault(EmbeddingsError, name="i0")
    assert _files(index) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"nonsense", "cannot be read"),
        (b"PK\x03\x04nonsense", "is an .npz archive"),
        ("npz", "is an .npz archive"),
        ("objects", "holds Python objects"),
        ("cut", "cannot be read"),
    ],
)
def test_what_is_no_array_is_refused(index, tmp_path, content, message):
    path = tmp_path / "x.npy"
    if content == "npz":
        np.savez(tmp_path / "x.npz", rows=unit_rows(16, 4, 5))
        (tmp_path / "x.npz").rename(path)
    elif content == "objects":
        np.save(path, np.array([{}, {}], object), allow_pickle=True)
    else:
        np.save(path, unit_rows(16, 4, 5))
        path.write_bytes(path.read_bytes()[:-1] if content == "cut" else content)
    (tmp_path / "ids.json").write_text(json.dumps(_image_ids()))
    arguments = ("store", "import", index, path, "--teacher", "new", "--split", "train", "--ids")
    assert run_fault(*arguments, tmp_path / "ids.json") == Fault(FileFormatError, path=path)
    assert "new" not in EmbeddingStore(index).teachers


@pytest.mark.parametrize("content", ["3", "[", "[[]", "null"])
def test_ids_that_are_no_list_are_refused(index, tmp_path, content):
    rows, _, ids = _given(tmp_path, unit_rows(16, 4, 5), [])
    ids.write_text(content)
    arguments = ("store", "import", index, rows, "--teacher", "new", "--split", "train", "--ids")
    assert run_failure(*arguments, ids).path == ids
    assert run_fault(*arguments, tmp_path / "no.json") == Fault(
        FileFormatError, path=tmp_path / "no.json"
    )
    ids.unlink()
    rows.unlink()
    assert run_fault(*arguments, ids) == Fault(FileFormatError, path=rows)


def test_import_asks_for_ids_or_a_dictionary_but_not_both(index, tmp_path):
    rows, *ids = _given(tmp_path, unit_rows(16, 4, 5), _image_ids())
    place = ("--teacher", "new", "--split", "train")
    assert run_fault("store", "import", index, rows, *place) == Fault(EmbeddingsError, path=rows)
    assert run_fault("store", "import", index, rows, *ids, "--allow-pickle", *place) == Fault(
        SettingError, name="ids"
    )


def test_a_teacher_that_is_there_is_not_replaced(index, tmp_path):
    before = _files(index)
    given = _given(tmp_path, unit_rows(16, 4, 5), _image_ids())
    assert run_fault(
        "store", "import", index, *given, "--teacher", "vision", "--split", "train"
    ) == Fault(StoreError, path=index, name="vision")
    assert _files(index) == before


def test_a_teacher_of_other_settings_gets_no_rows_of_a_further_split(index, tmp_path):
    """A shard left behind would be in the way of the precompute run that makes the split."""
    dataset = Dataset("made-up", index.parent, {"train": records("train", 16)})
    add_teacher(index, dataset, "half", settings("image", 4), {"train": unit_rows(16, 4, 0)})
    before = _files(index)
    given = _given(tmp_path, unit_rows(5, 4, 5), _image_ids("val"))
    error = run_failure("store", "import", index, *given, "--teacher", "half", "--split", "val")
    assert (type(error), error.name) == (StoreError, "half")
    assert _files(index) == before


def test_a_split_that_is_not_there_is_refused(index, tmp_path):
    given = _given(tmp_path, unit_rows(16, 4, 5), _image_ids())
    assert run_fault(
        "store", "import", index, *given, "--teacher", "new", "--split", "test"
    ) == Fault(SettingError, name="split")


def _pairs(folder, n):
    lines = [
        {"image": f"{i}.jpg", "caption": f"text {i}", "image_id": f"i{i}", "split": "train"}
        for i in range(n)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "pairs.jsonl"


def test_a_new_store_needs_the_data_set(tmp_path):
    index, rows = tmp_path / "new" / "store.h5", unit_rows(8, 4, 5)
    given = _given(tmp_path, rows, [f"i{i}" for i in range(8)])
    arguments = (
        "store",
        "import",
        index,
        *given,
        "--teacher",
        "new",
        "--split",
        "train",
        "--dtype",
        "float32",
    )
    assert run_fault(*arguments) == Fault(StoreError, path=index)
    assert not index.parent.exists()
    run_ok(*arguments, "--dataset", _pairs(tmp_path, 8))
    np.testing.assert_array_equal(_rows(index, "new", "train"), rows)
    assert EmbeddingStore(index).split("train").captions[7] == "text 7"
    assert verify(index) == (3, [])


def test_a_data_set_other_than_the_stores_is_refused(index, tmp_path):
    before = _files(index)
    given = _given(tmp_path, unit_rows(8, 4, 5), [f"i{i}" for i in range(8)])
    place = ("--teacher", "new", "--split", "train", "--dataset", _pairs(tmp_path, 8))
    assert run_fault("store", "import", index, *given, *place) == Fault(StoreError, name="dataset")
    assert _files(index) == before


@pytest.mark.parametrize("name", ["a/b", "", ".hidden", "a b"])
def test_a_teacher_needs_a_legal_name(index, tmp_path, name):
    run_ok(
        "store", "export", index, tmp_path / "rows.npy", "--teacher", "vision", "--split", "train"
    )
    given = (tmp_path / "rows.npy", "--ids", tmp_path / "rows.ids.json")
    named = ("--split", "train", "--teacher", name)
    assert run_fault("store", "import", index, *given, *named) == Fault(SettingError, name="name")
    assert "files are whole" in run_ok("store", "verify", index)


def test_a_lost_shard_of_imported_rows_is_imported_again(index, tmp_path):
    run_ok(
        "store", "export", index, tmp_path / "rows.npy", "--teacher", "vision", "--split", "train"
    )
    again = (
        "store",
        "import",
        index,
        tmp_path / "rows.npy",
        "--ids",
        tmp_path / "rows.ids.json",
        "--split",
        "train",
    )
    run_ok(*again, "--teacher", "again")
    before = index.read_bytes()
    next(index.parent.rglob("again/*.h5")).unlink()
    run_error("store", "verify", index)
    run_ok(*again, "--teacher", "again")
    assert index.read_bytes() == before
    assert "files are whole" in run_ok("store", "verify", index)
