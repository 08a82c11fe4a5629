"""Embeddings that others made: every format as numpy reads it, and one line for each way of being wrong."""

import json
import pickle
import re

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cusa.data.errors import CusaError
from cusa.eval.embedding_files import align, read_embeddings

ROWS = np.array([[1.0, 2.0], [0.0, -3.0], [0.5, 0.25]])
NAMES = ["a/1.jpg", "b 2", "ü"]


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
    np.save(tmp_path / "rows.npy", ROWS.astype(dtype) if dtype != np.int8 else (ROWS * 4).astype(dtype))
    names, rows = read_embeddings(tmp_path / "rows.npy", save_ids(tmp_path, kind))
    assert names == (["7", "30", "2"] if kind == "int-npy" else NAMES)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, ROWS * 4 if dtype == np.int8 else ROWS)  # halves and quarters are exact
    rows[0] = 0  # an array of its own, not the file
    np.testing.assert_array_equal(read_embeddings(tmp_path / "rows.npy", save_ids(tmp_path, kind))[1][0] != 0, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors(tmp_path, dtype):
    save_file({"embeddings": torch.from_numpy(ROWS).to(dtype)}, tmp_path / "rows.safetensors")
    names, rows = read_embeddings(tmp_path / "rows.safetensors", save_ids(tmp_path, "json"))
    assert names == NAMES
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, ROWS)


@pytest.mark.parametrize("ids", [np.array([4, 5, 6]), np.array(NAMES, object), np.array([b"x", b"yy", b"z"])])
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
        got, rows = read_embeddings(tmp_path / f"rows.h5{place}", None)
        assert got == names
        np.testing.assert_array_equal(rows, factor * ROWS)
    got, rows = read_embeddings(tmp_path / "rows.h5:/alone/rows", save_ids(tmp_path, "txt"))
    assert got == NAMES
    np.testing.assert_array_equal(rows, 4 * ROWS)
    assert read_embeddings(tmp_path / "rows.h5", save_ids(tmp_path, "txt"))[0] == NAMES  # those given count
    for place, message in (
        (":/alone/rows", "have no ids; pass a file of them"),
        (":/nope", "has no dataset '/nope' or '/nope/embeddings', it holds alone, deep, embeddings, ids; name it"),
        (":/alone", "has no dataset '/alone' or '/alone/embeddings'"),
        (":/deep/val/uni/x", "has no dataset '/deep/val/uni/x'"),
        (":/ids", "not numbers|array of shape"),
    ):
        with pytest.raises(CusaError, match=message):
            read_embeddings(tmp_path / f"rows.h5{place}", None)


def bad(rows=ROWS, name="rows.npy", ids=NAMES, ids_name="ids.json"):
    return rows, name, ids, ids_name


NAN, INF, ZERO = ROWS.copy(), ROWS.copy(), ROWS.copy()
NAN[1, 0], INF[2, 1], ZERO[1] = np.nan, -np.inf, 0
HUGE = ROWS.copy()
HUGE[1, 1] = 1e300


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (bad(ids=NAMES[:2]), r"rows.npy holds 3 rows, but .*ids.json 2 ids; there must be one each"),
        (bad(ids=["x", "y", "x"]), "ids.json: 1 ids are given more than once, the first 'x'; keep one row of each"),
        (bad(ids=[1, 2, "1"]), "more than once, the first '1'"),
        (bad(rows=ROWS[0]), r"rows.npy holds an array of shape \(2,\); legal: one row per item, \[n, d\]"),
        (bad(rows=ROWS[None]), r"shape \(1, 3, 2\)"),
        (bad(rows=ROWS[:, :0]), r"shape \(3, 0\)"),
        (bad(rows=ROWS[:0], ids=[]), "holds no rows"),
        (bad(rows=ROWS > 0), "holds bool, not numbers"),
        (bad(rows=ROWS * 1j), "holds complex128, not numbers"),
        (bad(rows=np.array([["a", "b"]] * 3)), "holds <U1, not numbers"),
        (bad(rows=NAN), "rows.npy: 1 rows are not finite, the first that of id 'b 2'"),
        (bad(rows=INF), "1 rows are not finite, the first that of id 'ü'"),
        (bad(rows=HUGE), "1 rows are not finite, the first that of id 'b 2'"),
        (bad(rows=ZERO), "1 rows are all zeros, the first that of id 'b 2'"),
        (bad(name="rows.csv"), r"unknown suffix; legal: .npy, .h5 .* or .safetensors"),
        (bad(ids_name="ids.csv"), "ids .*ids.csv have an unknown suffix; legal: a .txt file"),
        (bad(ids={"a": 1}), "are a json dict; legal: a list"),
        (bad(ids=["a", 1.5, "b"]), "entry 1 is 1.5; legal: strings or integers"),
        (bad(ids=["a", True, "b"]), "entry 1 is True"),
        (bad(ids=["a", "", "b"]), "entry 1 is ''"),
        (bad(ids=np.array([1.0, 2, 3]), ids_name="ids.npy"), "ids.npy holds float64; legal: integers or strings"),
        (bad(ids=np.array([[1], [2], [3]]), ids_name="ids.npy"), r"shape \(3, 1\); legal: one id per row"),
        (bad(ids=np.array(["a", "", "c"]), ids_name="ids.npy"), "ids.npy: entry 1 is empty"),
        (bad(ids=b"a\n\nc\n", ids_name="ids.txt"), "ids.txt, line 2: empty"),
        (bad(ids=b"a\n\xff\nc\n", ids_name="ids.txt"), "ids.txt are not UTF-8"),
        (bad(ids=b"[1,", ids_name="ids.json"), "ids.json are not valid json"),
        (bad(ids=None), "ids .*ids.json do not exist; legal"),
        (bad(rows=None), "embeddings .*rows.npy do not exist; legal"),
    ],
)
def test_bad_input(tmp_path, case, message):
    rows, name, ids, ids_name = case
    if rows is not None:
        with (tmp_path / name).open("wb") as file:
            np.save(file, rows)
    if isinstance(ids, np.ndarray):
        np.save(tmp_path / ids_name, ids)
    elif ids is not None:
        (tmp_path / ids_name).write_bytes(ids if isinstance(ids, bytes) else json.dumps(ids).encode())
    with pytest.raises(CusaError, match=message) as found:
        read_embeddings(tmp_path / name, tmp_path / ids_name)
    assert "\n" not in str(found.value)


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
    save_file({"rows": torch.from_numpy(ROWS)}, tmp_path / "other.safetensors")
    (tmp_path / "folder.npy").mkdir()
    for name, message in {
        "objects.npy": "holds Python objects, which are never loaded",
        "pickle.npy": "holds Python objects, which are never loaded",
        "empty.npy": "empty.npy cannot be read",
        "torn.npy": "torn.npy cannot be read",
        "archive.npy": "is an .npz archive",
        "torn.h5": "torn.h5 cannot be read",
        "torn.safetensors": "torn.safetensors cannot be read",
        "other.safetensors": "has no tensor 'embeddings', it holds rows",
        "folder.npy": "folder.npy cannot be read",
    }.items():
        with pytest.raises(CusaError, match=message) as found:
            read_embeddings(tmp_path / name, ids)
        assert "\n" not in str(found.value)
    with pytest.raises(CusaError, match=r"have no ids; pass a file of them: a .txt"):
        read_embeddings(_saved(tmp_path / "rows.npy"), None)


def _saved(path):
    np.save(path, ROWS)
    return path


def test_align():
    rows, ignored = align(["a", "b", "c", "d"], np.arange(8).reshape(4, 2), ["c", "a", "c"], "images")
    assert rows.tolist() == [[4, 5], [0, 1], [4, 5]]
    assert ignored == 2
    message = "the embeddings lack 2 of 3 captions, the first 'x' (they have 2, such as 'a'); give every one a row"
    with pytest.raises(CusaError, match=re.escape(message)):
        align(["a", "b"], np.zeros((2, 2)), ["b", "x", "y"], "captions")


def test_ids_of_bytes_in_hdf5_are_utf8(tmp_path):
    """h5py writes a list of bytes as strings that say they are ASCII."""
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["embeddings"] = ROWS[:2]
        file["ids"] = ["ü.jpg".encode(), b"b.jpg"]
    assert read_embeddings(tmp_path / "rows.h5", None)[0] == ["ü.jpg", "b.jpg"]
