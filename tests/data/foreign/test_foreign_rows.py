"""Embeddings that others made: every format as numpy reads it, and one line for each fault."""

import json
import pickle

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cusa.data.errors import CusaError, EmbeddingsError, FileFormatError
from cusa.data.foreign import hdf5 as foreign_h5
from cusa.data.foreign.ids import read_ids
from cusa.data.foreign.npy import open_npy, read_npz
from cusa.data.foreign.rows import read_rows, write_rows
from cusa.eval.models.embedding_providers import FileProvider, align
from tests.helpers import Fault, fault_of

ROWS = np.array([[1.0, 2.0], [0.0, -3.0], [0.5, 0.25]])
NAMES = ["a/1.jpg", "b 2", "ü"]


def read(path, ids=None):
    """Ids and rows of a file."""
    foreign = read_rows(path, ids)
    return foreign.ids, foreign.rows


def save_ids(folder, kind):
    path = folder / f"ids.{kind.split('-')[-1]}"
    if kind == "txt":
        path.write_bytes("\ufeffa/1.jpg\r\nb 2\r\nü\r\n".encode())
    elif kind == "json":
        path.write_text(json.dumps(NAMES))
    else:
        np.save(path, np.array([7, 30, 2]) if kind == "int-npy" else np.array(NAMES))
    return path


@pytest.mark.parametrize("kind", ["txt", "json", "npy", "int-npy"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_numpy_rows_with_ids_beside(tmp_path, kind, dtype):
    np.save(
        tmp_path / "rows.npy", ROWS.astype(dtype) if dtype != np.int8 else (ROWS * 4).astype(dtype)
    )
    names, rows = read(tmp_path / "rows.npy", save_ids(tmp_path, kind))
    assert names == (["7", "30", "2"] if kind == "int-npy" else NAMES)
    assert rows.dtype == dtype
    assert not rows.flags.writeable  # it is the file
    np.testing.assert_array_equal(
        rows, ROWS * 4 if dtype == np.int8 else ROWS
    )  # halves and quarters are exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors(tmp_path, dtype):
    save_file({"embeddings": torch.from_numpy(ROWS).to(dtype)}, tmp_path / "rows.safetensors")
    names, rows = read(tmp_path / "rows.safetensors", save_ids(tmp_path, "json"))
    assert names == NAMES
    assert rows.dtype == (
        np.float16 if dtype == torch.float16 else np.float32
    )  # numpy has no bfloat16
    np.testing.assert_array_equal(rows, ROWS)


@pytest.mark.parametrize(
    "ids", [np.array([4, 5, 6]), np.array(NAMES, object), np.array([b"x", b"yy", b"z"])]
)
def test_hdf5(tmp_path, ids):
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["embeddings"], file["ids"] = ROWS, ids
        file["deep/val/embeddings"], file["deep/val/ids"] = 2 * ROWS, ids[::-1]
        file["deep/val/uni"] = 3 * ROWS.astype(np.float16)
        file["alone/rows"] = 4 * ROWS
    expected = [one.decode() if isinstance(one, bytes) else str(one) for one in ids]
    for place, factor, names in (
        ("", 1, expected),
        (":/", 1, expected),
        (":/deep/val", 2, expected[::-1]),
        (":/deep/val/embeddings", 2, expected[::-1]),
        (":deep/val/uni", 3, expected[::-1]),
    ):
        got, rows = read(tmp_path / f"rows.h5{place}", None)
        assert got == names
        np.testing.assert_array_equal(rows, factor * ROWS)
    got, rows = read(tmp_path / "rows.h5:/alone/rows", save_ids(tmp_path, "txt"))
    assert got == NAMES
    np.testing.assert_array_equal(rows, 4 * ROWS)
    assert read(tmp_path / "rows.h5", save_ids(tmp_path, "txt"))[0] == NAMES  # those given count
    for place, error_class, location in (
        (":/alone/rows", EmbeddingsError, ""),
        (":/nope", FileFormatError, "/nope"),
        (":/alone", FileFormatError, "/alone/embeddings"),
        (":/deep/val/uni/x", FileFormatError, "/deep/val/uni/x"),
    ):
        with pytest.raises(error_class) as caught:
            read(tmp_path / f"rows.h5{place}", None)
        assert (caught.value.path, caught.value.location) == (tmp_path / "rows.h5", location)
    with pytest.raises(FileFormatError):
        read(tmp_path / "rows.h5:/ids", None)


def bad(rows=ROWS, name="rows.npy", ids=NAMES, ids_name="ids.json"):
    return rows, name, ids, ids_name


def bad_ids(array):
    return bad(ids=array, ids_name="ids.npy")


def bad_text(content):
    return bad(ids=content, ids_name="ids.txt")


@pytest.mark.parametrize(
    ("case", "error_class", "file_name", "location", "name"),
    [
        (bad(ids=NAMES[:2]), EmbeddingsError, "ids.json", "", ""),
        (bad(ids=["x", "y", "x"]), EmbeddingsError, "ids.json", "", "x"),
        (bad(ids=[1, 2, "1"]), EmbeddingsError, "ids.json", "", "1"),
        (bad(rows=ROWS[0]), FileFormatError, "rows.npy", "", ""),
        (bad(rows=ROWS[None]), FileFormatError, "rows.npy", "", ""),
        (bad(rows=ROWS[:, :0]), FileFormatError, "rows.npy", "", ""),
        (bad(rows=ROWS[:0], ids=[]), EmbeddingsError, "rows.npy", "", ""),
        (bad(rows=ROWS > 0), FileFormatError, "rows.npy", "", ""),
        (bad(rows=ROWS * 1j), FileFormatError, "rows.npy", "", ""),
        (bad(rows=np.array([["a", "b"]] * 3)), FileFormatError, "rows.npy", "", ""),
        (bad(name="rows.csv"), FileFormatError, "rows.csv", "", ""),
        (bad(ids_name="ids.csv"), FileFormatError, "ids.csv", "", ""),
        (bad(ids={"a": 1}), FileFormatError, "ids.json", "", ""),
        (bad(ids=["a", 1.5, "b"]), FileFormatError, "ids.json", "entry 1", ""),
        (bad(ids=["a", True, "b"]), FileFormatError, "ids.json", "entry 1", ""),
        (bad(ids=["a", "", "b"]), FileFormatError, "ids.json", "entry 1", ""),
        (bad_ids(np.array([1.0, 2, 3])), FileFormatError, "ids.npy", "", ""),
        (bad_ids(np.array([[1], [2], [3]])), FileFormatError, "ids.npy", "", ""),
        (bad_ids(np.array(["a", "", "c"])), FileFormatError, "ids.npy", "entry 1", ""),
        (bad_ids(np.array([b"a", b"\xff", b"c"])), FileFormatError, "ids.npy", "", ""),
        (bad_text(b"a\n\nc\n"), FileFormatError, "ids.txt", "line 2", ""),
        (bad_text(b"a\n\xff\nc\n"), FileFormatError, "ids.txt", "byte 2", ""),
        (bad_text(b"a\nb'id0'\nc\n"), FileFormatError, "ids.txt", "line 2", ""),
        (bad(ids=b"[1,"), FileFormatError, "ids.json", "line 1", ""),
        (bad(ids=b"[" * 100_000), FileFormatError, "ids.json", "", ""),
        (bad(ids=["a", 'b"x"', "c"]), FileFormatError, "ids.json", "entry 1", ""),
        (bad(ids=None), FileFormatError, "ids.json", "", ""),
        (bad(rows=None), FileFormatError, "rows.npy", "", ""),
    ],
)
def test_bad_input(tmp_path, case, error_class, file_name, location, name):
    rows, rows_name, ids, ids_name = case
    if rows is not None:
        with (tmp_path / rows_name).open("wb") as file:
            np.save(file, rows)
    if isinstance(ids, np.ndarray):
        np.save(tmp_path / ids_name, ids)
    elif ids is not None:
        (tmp_path / ids_name).write_bytes(
            ids if isinstance(ids, bytes) else json.dumps(ids).encode()
        )
    with pytest.raises(error_class) as caught:
        read(tmp_path / rows_name, tmp_path / ids_name)
    error = caught.value
    assert (error.path, error.location, error.name) == (tmp_path / file_name, location, name)
    assert "\n" not in str(error)


def test_files_that_are_something_else_or_torn(tmp_path):
    ids = save_ids(tmp_path, "txt")
    np.save(tmp_path / "objects.npy", np.array([ROWS, None, 1], object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(ROWS))
    (tmp_path / "empty.npy").touch()
    np.save(tmp_path / "torn.npy", ROWS)
    (tmp_path / "torn.npy").write_bytes((tmp_path / "torn.npy").read_bytes()[:-9])
    np.savez(tmp_path / "z.npz", ROWS)
    (tmp_path / "z.npz").rename(tmp_path / "archive.npy")
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file["embeddings"], file["ids"] = ROWS, [1, 2, 3]
    (tmp_path / "torn.h5").write_bytes((tmp_path / "whole.h5").read_bytes()[:-1500])
    save_file({"embeddings": torch.from_numpy(ROWS)}, tmp_path / "torn.safetensors")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "torn.safetensors").read_bytes()[:-5])
    save_file({"vectors": torch.from_numpy(ROWS)}, tmp_path / "other.safetensors")
    (tmp_path / "folder.npy").mkdir()
    for name in (
        "objects.npy",
        "pickle.npy",
        "empty.npy",
        "torn.npy",
        "archive.npy",
        "torn.h5",
        "torn.safetensors",
        "other.safetensors",
        "folder.npy",
    ):
        with pytest.raises(FileFormatError) as caught:
            read(tmp_path / name, ids)
        assert caught.value.path == tmp_path / name
        assert "\n" not in str(caught.value)
    with pytest.raises(EmbeddingsError) as caught:
        read(_saved(tmp_path / "rows.npy"), None)
    assert caught.value.path == tmp_path / "rows.npy"


def _saved(path):
    np.save(path, ROWS)
    return path


def test_align():
    rows = align(["a", "b", "c", "d"], np.arange(8).reshape(4, 2), ["c", "a", "c"], "images")
    assert rows.tolist() == [[4, 5], [0, 1], [4, 5]]
    with pytest.raises(CusaError) as refused:
        align(["a", "b"], np.zeros((2, 2)), ["b", "x", "y"], "captions")
    assert fault_of(refused.value) == Fault(EmbeddingsError, name="x")


def test_ids_of_bytes_in_hdf5_are_utf8(tmp_path):
    """h5py writes a list of bytes as strings that say they are ASCII."""
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["embeddings"] = ROWS[:2]
        file["ids"] = ["ü.jpg".encode(), b"b.jpg"]
    assert read(tmp_path / "rows.h5", None)[0] == ["ü.jpg", "b.jpg"]


def test_ids_of_bytes_in_numpy_are_utf8(tmp_path):
    np.save(tmp_path / "ids.npy", np.array(["ü.jpg".encode(), b"b.jpg"]))
    assert read_ids(tmp_path / "ids.npy") == ["ü.jpg", "b.jpg"]


@pytest.mark.parametrize("suffix", [".txt", ".json", ".npy"])
@pytest.mark.parametrize("name", ["b'id0'", 'b"id0"'])
def test_ids_as_python_prints_bytes_are_refused(tmp_path, suffix, name):
    """They would be other ids than id0, and which is meant is not for the reader to guess."""
    path = tmp_path / f"ids{suffix}"
    if suffix == ".npy":
        np.save(path, np.array(["b", name]))
    else:
        path.write_text(f"b\n{name}\n" if suffix == ".txt" else json.dumps(["b", name]))
    with pytest.raises(FileFormatError) as found:
        read_ids(path)
    assert found.value.path == path
    assert found.value.location == ("line 2" if suffix == ".txt" else "entry 1")


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_ids_lie_beside_the_rows(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    np.save(path, ROWS) if suffix == ".npy" else save_file(
        {"embeddings": torch.from_numpy(ROWS)}, path
    )
    with pytest.raises(EmbeddingsError) as found:
        read_rows(path)
    assert found.value.path == path
    (tmp_path / "x.ids.json").write_text(json.dumps(NAMES))
    assert read_rows(path).ids == NAMES


def test_ids_of_another_file_of_rows_are_kept(tmp_path):
    """x.npy and x.safetensors would share x.ids.json: rows of one would get the other's ids."""
    rows = np.eye(3, dtype=np.float32)

    def export(name, ids):
        write_rows(tmp_path / name, [rows], rows.shape, rows.dtype, ids, "")

    export("x.npy", ["a", "b", "c"])
    export("x.safetensors", ["a", "b", "c"])  # the same rows in another form
    with pytest.raises(EmbeddingsError) as caught:
        export("x.safetensors", ["d", "e", "f"])
    assert caught.value.path == tmp_path / "x.ids.json"
    assert read_rows(tmp_path / "x.npy").ids == ["a", "b", "c"]
    (tmp_path / "x.safetensors").unlink()
    export("x.npy", ["d", "e", "f"])  # alone, it is replaced with its ids
    assert read_rows(tmp_path / "x.npy").ids == ["d", "e", "f"]


def test_what_earlier_versions_exported_is_read(tmp_path):
    save_file({"rows": torch.from_numpy(ROWS)}, tmp_path / "x.safetensors")
    (tmp_path / "x.ids.json").write_text(json.dumps(NAMES))
    np.testing.assert_array_equal(read_rows(tmp_path / "x.safetensors").rows, ROWS)


def _given(tmp_path, rows):
    np.save(tmp_path / "rows.npy", rows)
    return FileProvider((tmp_path / "rows.npy", save_ids(tmp_path, "json")), None, "rows")


@pytest.mark.parametrize(
    ("row", "value", "name"), [(1, [np.nan, 1], "b 2"), (2, [0, -np.inf], "ü"), (1, [0, 0], "b 2")]
)
def test_rows_that_cannot_rank_are_refused(tmp_path, row, value, name):
    rows = ROWS.copy()
    rows[row] = value
    with pytest.raises(EmbeddingsError) as found:
        _given(tmp_path, rows)
    assert found.value.name == name


@pytest.mark.parametrize(
    ("dtype", "size"), [(np.float64, 1e300), (np.float64, 1e-300), (np.float16, 2e4)]
)
def test_rows_of_any_size_are_normalised(tmp_path, dtype, size):
    found = _given(tmp_path, (ROWS * size).astype(dtype)).images(NAMES, [])["cross"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True), rtol=1e-6)


def test_rows_of_nan_are_of_items_without_an_embedding(tmp_path):
    """As cusa-store export writes those that were skipped."""
    rows = ROWS.copy()
    rows[1] = np.nan
    source = _given(tmp_path, rows)
    assert source.images([NAMES[2], NAMES[0]], [])["cross"].shape == (2, 2)
    with pytest.raises(EmbeddingsError) as found:
        source.images(NAMES, [])
    assert found.value.name == NAMES[1]
    with pytest.raises(EmbeddingsError):
        _given(tmp_path, np.full((3, 2), np.nan))


def _npy(path, header, content=b"\0" * 64):
    text = (header + " " * (117 - len(header)) + "\n").encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content)
    return path


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (8796093022208, 1)}",  # 32 TiB
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**62}, {2**62})}}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-4, -4)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (17,)}",
        "{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,)}",
        "{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000, 1)}",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4, 4)}",
        "{'descr': ('<f4', (2,)), 'fortran_order': False, 'shape': (4, 2)}",
        "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (4, 2)}",
        "{'descr': 'nonsense', 'fortran_order': False, 'shape': (4, 2)}",
        "{'descr': '<f4', 'fortran_order': 1, 'shape': (4, 2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 'four'}",
        "{'descr': '<f4'}",
        "((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((",
        "__import__('os').system('true')",
        "\x00\xff",
    ],
)
def test_a_header_is_not_believed(tmp_path, header):
    path = _npy(tmp_path / "rows.npy", header)
    for ids in (save_ids(tmp_path, "txt"), path):
        with pytest.raises(FileFormatError) as found:
            read_rows(path, ids)
        assert found.value.path == path
    with pytest.raises(FileFormatError):
        read_ids(path)


def _foreign_h5(path, kind):
    """An HDF5 file with something else than rows in their place."""
    with h5py.File(path, "w") as file:
        file["ids"] = [1, 2, 3]
        if kind == "unallocated":
            file.create_dataset("embeddings", (2**30, 2**13), "f4")  # 32 TiB in a file of 2 kB
        elif kind == "unallocated chunks":
            file.create_dataset(
                "embeddings", (2**30, 2**13), "f4", chunks=(64, 64), compression="gzip"
            )
        elif kind == "a chunk is missing":
            rows = file.create_dataset("embeddings", (3, 5), "f4", chunks=(3, 4))
            rows[:, :4] = 1
        elif kind == "virtual":
            layout = h5py.VirtualLayout((3, 2), "f4")
            layout[:] = h5py.VirtualSource("nowhere.h5", "x", (3, 2))
            file.create_virtual_dataset("embeddings", layout)
        elif kind == "external":
            (path.parent / "secret").write_bytes(b"secret" * 4)
            file.create_dataset(
                "embeddings", (3, 2), "f4", external=[(path.parent / "secret", 0, 24)]
            )
        elif kind == "no space":
            file["embeddings"] = h5py.Empty("f4")
        elif kind == "a number":
            file["embeddings"] = 1.5
        elif kind == "texts":
            file["embeddings"] = ["a", "b", "c"]
        elif kind == "records":
            file["embeddings"] = np.zeros(3, [("a", "f4"), ("b", "f4")])
        elif kind == "arrays":
            file.create_dataset("embeddings", (3,), np.dtype(("f4", (2,))))
        elif kind == "numbers of any length":
            file.create_dataset("embeddings", (3,), h5py.vlen_dtype(np.float32))
        elif kind == "references":
            file.create_dataset("embeddings", (3, 2), h5py.ref_dtype)
        elif kind == "booleans":
            file["embeddings"] = np.ones((3, 2), bool)
        elif kind == "complex":
            file["embeddings"] = np.ones((3, 2), complex)
        elif kind == "a group in a group":
            file.create_group("embeddings/embeddings")
        elif kind == "a type":
            file["embeddings"] = np.dtype("f4")
        elif kind == "a loop":
            file["embeddings"] = h5py.SoftLink("/embeddings")
        elif kind == "elsewhere":
            file["embeddings"] = h5py.ExternalLink("nowhere.h5", "/x")
    return path


_OTHER_H5 = [
    *("unallocated", "unallocated chunks", "a chunk is missing", "virtual", "external", "no space"),
    *("a number", "texts", "records", "arrays", "numbers of any length", "references", "booleans"),
    *("complex", "a group in a group", "a type", "a loop", "elsewhere"),
]


@pytest.mark.parametrize("kind", _OTHER_H5)
def test_what_is_no_matrix_in_hdf5_is_refused(tmp_path, kind):
    path = _foreign_h5(tmp_path / "rows.h5", kind)
    with pytest.raises(FileFormatError) as found:
        read_rows(path)
    assert found.value.path == path
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "ids",
    [
        np.ones((3, 2), int),
        np.ones(3, bool),
        np.ones(3),
        np.zeros(3, [("a", "i4")]),
        h5py.Empty("i4"),
        np.dtype("i4"),
        np.array([[b"a", b"b"]] * 3),
        np.array([b"a", b"\xff\xfe", b"c"]),
    ],
)
def test_what_is_no_ids_in_hdf5_is_refused(tmp_path, ids):
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["embeddings"], file["ids"] = ROWS, ids
    with pytest.raises(CusaError) as found:
        read_rows(tmp_path / "rows.h5")
    assert found.value.path == tmp_path / "rows.h5"


def test_ids_that_name_one_text_many_times_are_refused(tmp_path):
    """A text of the file's size for each of the rows would be more than any memory."""
    n = 20_000
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["embeddings"] = np.ones((n, 1), np.float32)
        file.create_dataset("ids", (n,), h5py.string_dtype())
        file["ids"][0] = "x" * 1_000_000
    content = bytearray((tmp_path / "rows.h5").read_bytes())
    with h5py.File(tmp_path / "rows.h5") as file:
        start = file["ids"].id.get_offset()
    content[start : start + 16 * n] = bytes(content[start : start + 16]) * n
    (tmp_path / "rows.h5").write_bytes(content)
    with pytest.raises(FileFormatError):
        read_rows(tmp_path / "rows.h5")


@pytest.mark.parametrize(
    "options", [{}, {"compression": "gzip", "chunks": (2, 2)}, {"compression": "lzf"}]
)
def test_rows_and_ids_in_chunks(tmp_path, options):
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file.create_dataset("embeddings", data=np.ones((3, 2), ">f2"), **options)
        file.create_dataset("ids", data=np.array([7, 8, 9], np.uint8), chunks=(2,))
    names, rows = read(tmp_path / "rows.h5")
    assert (names, rows.tolist()) == (["7", "8", "9"], [[1, 1]] * 3)


def _shape_here(path):
    """In this process, which is faster; the file holds no texts, which would crash the library."""
    if path.suffix != ".h5":
        return read_rows(path).rows.shape
    _, rows = foreign_h5.read_here(str(path), "", "embeddings", "ids")
    return rows.shape


@pytest.mark.parametrize("suffix", [".npy", ".h5", ".safetensors"])
def test_damaged_files_are_refused_or_read(tmp_path, suffix):
    """Bytes changed at random: an error of ours, or rows, of which no format has a checksum."""
    path = tmp_path / f"x{suffix}"
    (tmp_path / "x.ids.json").write_text(json.dumps(NAMES))
    if suffix == ".npy":
        np.save(path, ROWS)
    elif suffix == ".safetensors":
        save_file({"embeddings": torch.from_numpy(ROWS)}, path)
    else:
        with h5py.File(path, "w") as file:
            file["embeddings"] = ROWS
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        content = bytearray(whole[: rng.integers(len(whole))] if rng.random() < 0.2 else whole)
        for place in rng.integers(0, max(1, len(content)), rng.integers(1, 4)) if content else ():
            content[place] = rng.integers(256)
        path.write_bytes(content)
        error = None
        try:
            shape = _shape_here(path)
        except CusaError as caught:
            error = caught
        assert error is not None or shape == (3, 2)
        assert error is None or (error.path is not None and "\n" not in str(error))


@pytest.mark.parametrize(
    "shape", ["(0, 9223372036854775807)", "(True,)", "(2.5,)", f"({'1, ' * 65})"]
)
def test_headers_of_impossible_shapes_are_one_error(tmp_path, shape):
    path = tmp_path / "rows.npy"
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8))
    with pytest.raises(FileFormatError) as raised:
        open_npy(path)
    assert raised.value.path == path


@pytest.mark.parametrize("code", [0x110000, 0xFFFFFFFF, 0xD800])
@pytest.mark.parametrize("order", ["<", ">"])
def test_texts_of_other_numbers_than_characters_are_one_error(tmp_path, code, order):
    texts = np.array(["ab", "cd"], f"{order}U2")
    texts.view(f"{order}u4")[3] = code
    np.save(tmp_path / "ids.npy", texts)
    np.savez(tmp_path / "ids.npz", ids=texts)
    with pytest.raises(FileFormatError):
        read_ids(tmp_path / "ids.npy")
    with pytest.raises(FileFormatError):
        read_npz(tmp_path / "ids.npz")
