import contextlib
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy._core.multiarray import scalar
from numpy._core.numeric import _frombuffer

from cusa.data.errors import FileFormatError
from cusa.data.foreign.published import read_published_rows
from cusa.data.store.reader import EmbeddingStore
from tests.helpers import Fault, make_store, run_fault, run_ok, unit_rows


@pytest.fixture
def index(tmp_path):
    return make_store(tmp_path / "s", {"train": 6}, dim=4)


def _saved(path, content):
    """As the published code saves its features."""
    np.save(path, content, allow_pickle=True)
    return path


def _import(index, path):
    return (
        "store",
        "import",
        index,
        path,
        "--allow-pickle",
        "--teacher",
        "new",
        "--split",
        "train",
        "--dtype",
        "float32",
    )


_VECTORS = {
    "float32": lambda row: row,
    "float16": lambda row: row.astype(np.float16),
    "float64, big-endian": lambda row: row.astype(">f8"),
    "[1, d]": lambda row: row[None],
    "[1, d] float16": lambda row: row[None].astype(np.float16),
    "a row of a larger array": lambda row: np.stack([row, 0 * row], axis=1)[:, 0],
    "torch": torch.from_numpy,
    "torch [1, d] half": lambda row: torch.from_numpy(row)[None].half(),
    "torch bfloat16": lambda row: torch.from_numpy(row).bfloat16(),
    "torch with gradient": lambda row: torch.from_numpy(row).requires_grad_(),
    "a row of a larger tensor": lambda row: torch.from_numpy(np.stack([0 * row, row], axis=1))[
        :, 1
    ],
}


@pytest.mark.parametrize("kind", _VECTORS)
def test_a_dictionary_of_vectors_is_imported(index, tmp_path, kind):
    rows = unit_rows(6, 4, 3)
    vectors = {f"train/{i}.jpg": _VECTORS[kind](rows[i]) for i in (5, 0, 3, 1, 4, 2)}
    run_ok(*_import(index, _saved(tmp_path / "train_unicom.npy", vectors)))
    found = EmbeddingStore(index).embeddings("new", "train").gather(range(6))
    rounding = (
        2**-8 if "bfloat16" in kind else 2**-10 if "float16" in kind or "half" in kind else 1e-7
    )
    np.testing.assert_allclose(found, rows, atol=rounding)


@pytest.mark.parametrize("name", ["train{}", "train/{}.jpg", "{}.jpg", "{}"])
def test_keys_may_be_ids_paths_or_names(index, tmp_path, name):
    rows = unit_rows(6, 4, 3)
    run_ok(
        *_import(
            index, _saved(tmp_path / "x.npy", {name.format(i): rows[i] for i in range(5, -1, -1)})
        )
    )
    np.testing.assert_array_equal(
        EmbeddingStore(index).embeddings("new", "train").gather(range(6)), rows
    )


@pytest.mark.parametrize("kind", [int, np.int64, np.str_])
def test_keys_may_be_numbers_or_texts_of_numpy(tmp_path, kind):
    keys, rows = read_published_rows(
        _saved(tmp_path / "x.npy", {kind(i): np.array([i, 1.0]) for i in (7, 12)})
    )
    assert keys == ["7", "12"]
    assert rows.dtype == np.float32
    assert rows.tolist() == [[7, 1], [12, 1]]


def _write_npy(path, content):
    """A .npy whose array is this pickle."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|O", "fortran_order": False, "shape": ()}
        )
        file.write(content)
    return path


@pytest.mark.parametrize("protocol", [2, 3])
def test_files_of_older_numpy_are_read(tmp_path, protocol):
    content = pickle.dumps(
        np.array({"a": np.array([1.5, -2]), "b": torch.tensor([3.0, 4])}, object), protocol
    )
    assert b"numpy._core.multiarray" in content
    content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    keys, rows = read_published_rows(_write_npy(tmp_path / "x.npy", content))
    assert (keys, rows.tolist()) == (["a", "b"], [[1.5, -2], [3, 4]])


def test_a_pickle_is_read_only_when_allowed(index, tmp_path):
    path = _saved(
        tmp_path / "x.npy", {f"train{i}": row for i, row in enumerate(unit_rows(6, 4, 3))}
    )
    (tmp_path / "ids.txt").write_text("train0\n")
    arguments = ("store", "import", index, path, "--teacher", "new", "--split", "train")
    assert run_fault(*arguments) == Fault(FileFormatError, path=path)
    assert run_fault(*arguments, "--ids", tmp_path / "ids.txt") == Fault(FileFormatError, path=path)
    assert "new" not in EmbeddingStore(index).teachers


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no dictionary from image to vector"),
        ({"a", "b"}, "one of its instructions is none of plain data"),
        ({"a": {"b": np.ones(4)}}, "(dict is no float [dim] or [1, dim])"),
        ({(1, 2): np.ones(4)}, "a key is a tuple, not a text or a number"),
        ({"a": np.ones(0)}, "vectors must have the same shape, they have 1, or none"),
        ([{"a": np.ones(4)}], "holds object (1,), no pickled dictionary; import it with --ids"),
        (np.ones((6, 4)), "holds float64 (6, 4), no pickled dictionary; import it with --ids"),
        ({"a": [1.0, 2.0]}, "(list is no float [dim] or [1, dim])"),
        ({"a": "text"}, "(str is no float [dim] or [1, dim])"),
        ({"a": np.ones((2, 4))}, "(float64 (2, 4) is no float [dim] or [1, dim])"),
        ({"a": np.array(1.0)}, "(float64 () is no float [dim] or [1, dim])"),
        ({"a": np.ones(4, int)}, "(int64 (4,) is no float [dim] or [1, dim])"),
        ({"a": np.array([1.0, None])}, "an array holds neither numbers nor texts"),
        ({"a": np.ones(4), "b": np.ones(3)}, "must have the same shape"),
        ({"a": torch.nn.Parameter(torch.ones(4))}, "torch._utils._rebuild_parameter is neither"),
        ({"a": Path("x")}, "pathlib.PosixPath is neither a numpy array nor a torch tensor"),
    ],
)
def test_what_is_no_dictionary_of_vectors_is_refused(index, tmp_path, content, message):
    path, before = _saved(tmp_path / "x.npy", content), index.read_bytes()
    assert run_fault(*_import(index, path)) == Fault(FileFormatError, path=path)
    assert index.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"\x93NUMPY\x01\x00", pickle.dumps({"a": 1.0})]
)
def test_what_is_no_npy_is_refused(index, tmp_path, content):
    path = tmp_path / "x.npy"
    assert run_fault(*_import(index, path)) == Fault(FileFormatError, path=path)
    path.write_bytes(content)
    assert run_fault(*_import(index, path)) == Fault(FileFormatError, path=path)


def test_a_truncated_dictionary_is_refused(index, tmp_path):
    path = _saved(
        tmp_path / "x.npy", {f"train{i}": row for i, row in enumerate(unit_rows(6, 4, 3))}
    )
    path.write_bytes(path.read_bytes()[:-40])
    assert run_fault(*_import(index, path)) == Fault(FileFormatError, path=path)


class _Call:
    """Is pickled as a call, and a state for its result."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def _touch(mark):
    return _Call(eval, f"open({str(mark)!r}, 'w').close()")


def _torch_file(evil):
    """An old torch file, well-formed up to its content."""
    true = io.BytesIO()
    torch.save(torch.zeros(2), true, _use_new_zipfile_serialization=False)
    head = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2) + pickle.dumps(
        torch.serialization.PROTOCOL_VERSION, 2
    )
    assert true.getvalue().startswith(head)
    return head + pickle.dumps({"little_endian": True}, 2) + pickle.dumps(evil, 2)


_storage = torch.storage._load_from_bytes
_EVIL = {
    "os.system": lambda mark: {"a": _Call(os.system, f"touch {mark}")},
    "subprocess": lambda mark: {"a": _Call(subprocess.call, ["touch", str(mark)])},
    "eval": lambda mark: {"a": _touch(mark)},
    "exec": lambda mark: {"a": _Call(exec, f"open({str(mark)!r}, 'w').close()")},
    "a pickle in a pickle": lambda mark: {"a": _Call(pickle.loads, pickle.dumps(_touch(mark)))},
    "no dictionary": _touch,
    "in a list": lambda mark: {"a": [np.ones(4), (_touch(mark),)]},
    "in an array": lambda mark: {"a": np.array([_touch(mark)], object)},
    "numpy.memmap": lambda mark: {"a": _Call(np.memmap, str(mark), "u1", "w+", 0, (1,))},
    "numpy.save": lambda mark: {"a": _Call(np.save, str(mark), 1)},
    "numpy.savetxt": lambda mark: {"a": _Call(np.savetxt, str(mark), (1,))},
    "a storage that is a pickle": lambda mark: {"a": _Call(_storage, pickle.dumps(_touch(mark)))},
    "a storage that is a torch file": lambda mark: {
        "a": _Call(_storage, _torch_file(_touch(mark)))
    },
}


@pytest.mark.filterwarnings("ignore")  # numpy's and torch's, where the file is trusted
@pytest.mark.parametrize("kind", _EVIL)
def test_nothing_of_a_hostile_file_is_executed(index, tmp_path, kind):
    mark, before = tmp_path / "mark.npy", index.read_bytes()
    path = _saved(tmp_path / "x.npy", _EVIL[kind](mark))
    assert run_fault(*_import(index, path)) == Fault(FileFormatError, path=path)
    assert not mark.exists()
    assert index.read_bytes() == before
    with contextlib.suppress(Exception):
        np.load(path, allow_pickle=True)
    assert mark.exists(), "the file harms nobody: it tests nothing"


def _dtype(code, *state):
    return _Call(np.dtype, code, False, True, state=(3, "|", *state))


_POINTER = _dtype("O8", None, None, None, -1, -1, 0)  # says that its elements are no pointers
_LARGE = _dtype(
    "V4", (np.dtype("f4"), (10**8,)), None, None, 4, 1, 0
)  # says that 10 ** 8 numbers are four bytes
_tensor = torch._utils._rebuild_tensor_v2
_LIES = {
    "an object's address": lambda: {_Call(scalar, _POINTER, b"A" * 8): np.ones(4)},
    "an array's size": lambda: {"a": _Call(_frombuffer, b"AAAA", _LARGE, (10**8,), "C")},
    "an array's shape": lambda: {
        "a": _Call(np.ndarray, (0,), state=(1, (10**8,), np.dtype("f4"), False, b"AAAA"))
    },
    "a tensor's stride": lambda: {
        "a": _Call(_tensor, torch.ones(4).storage(), 0, (4,), (10**8,), False, {})
    },
    "a tensor's size": lambda: {
        "a": _Call(_tensor, torch.ones(4).storage(), 0, (10**8,), (1,), False, {})
    },
}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("kind", _LIES)
def test_a_lie_about_memory_is_not_believed(index, tmp_path, kind):
    """In a process of its own: numpy would go to any address that the file names."""
    path = _saved(tmp_path / "x.npy", _LIES[kind]())
    command = [Path(sys.executable).with_name("cusa-store"), *map(str, _import(index, path)[1:])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {path} cannot be read as a dictionary of vectors")


_HEAD, _END = b"\x80\x04", b"."
_VECTOR = pickle.dumps(np.ones(4, np.float32), 3)[2:-1]  # as it stands within a pickle
_KEY = b"\x8c\x01a"
_FAR = b"\xff\xff\xff\x0f"  # a place in the memo, 2 ** 28 - 1


def _dictionary(items):
    """A pickled dictionary, from the instructions that push its keys and values."""
    return _HEAD + b"}(" + items + b"u" + _END


def _named_often(n_values, n_names):
    """A dictionary that holds one vector under many names."""
    large = pickle.dumps(np.ones(n_values, np.float32), 3)[2:-1]
    items = b"".join(b"J" + i.to_bytes(4, "little") + b"j" + _FAR for i in range(n_names))
    return _dictionary(_KEY + large + b"r" + _FAR + items)


def _read_often(n_values, n_times):
    """A dictionary of many tensors, each read from one and the same bytes of a storage."""
    file = io.BytesIO()
    storage = torch.ones(n_values, dtype=torch.bfloat16).storage()
    torch.save(storage, file, _use_new_zipfile_serialization=False)
    content = b"B" + len(file.getvalue()).to_bytes(4, "little") + file.getvalue()
    load = b"ctorch.storage\n_load_from_bytes\n"
    one = load + b"j" + _FAR + b"\x85R"
    items = b"".join(b"J" + i.to_bytes(4, "little") + one for i in range(n_times))
    return _dictionary(_KEY + content + b"r" + _FAR + items)


_BOMBS = {
    "a memo of 2 ** 28": lambda: _dictionary(_KEY + b"r" + _FAR + _VECTOR),
    "a key that nests": lambda: _dictionary(b")" + b"\x85" * 1_000_000 + _VECTOR),
    "a key that doubles": lambda: _dictionary(b")q\x00" + b"h\x00\x86q\x00" * 100 + _VECTOR),
    "a value that nests": lambda: _dictionary(_KEY + b"]" * 1_000_000 + b"a" * 999_999),
    "marks without end": lambda: _HEAD + b"(" * 1_000_000 + _END,
    "a flood of containers": lambda: _HEAD + b"(" + b"}" * 5_000_000 + b"t" + _END,
    "a number of a million digits": lambda: _dictionary(b"I" + b"9" * 1_000_000 + b"\n" + _VECTOR),
    "a text of 2 ** 60 bytes": lambda: _dictionary(
        b"\x8d" + (2**60).to_bytes(8, "little") + b"a" + _VECTOR
    ),
    "no end": lambda: _HEAD + b"}" + b"\x94" * 1_000_000,
    "one vector under many names": lambda: _named_often(250_000, 50_000),
    "one storage read many times": lambda: _read_often(1_000_000, 20_000),
}
_LIMITED = """
import resource, sys
from pathlib import Path
from cusa.data.errors import FileFormatError
from cusa.data.errors import FileFormatError
from cusa.data.foreign.published import read_published_rows
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
for name in sys.argv[1:]:
    try:
        read_published_rows(Path(name))
        print("read")
    except FileFormatError as error:
        assert error.path == Path(name)
        print("refused")
"""


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_memory_and_time_are_bounded_by_the_size_of_the_file(tmp_path):
    """In a process of its own with 3 GiB and a minute: some of these would take all there is."""
    paths = [_write_npy(tmp_path / f"{n}.npy", make()) for n, make in enumerate(_BOMBS.values())]
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    # A memo is a dictionary: the vector is one.
    expected = dict.fromkeys(_BOMBS, "refused") | {"a memo of 2 ** 28": "read"}
    assert dict(zip(_BOMBS, done.stdout.split(), strict=True)) == expected


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_tensor_whose_rows_lie_on_each_other_is_refused(tmp_path):
    """Four bytes may be a tensor of any size with a stride of 0."""
    for size, stride in (((10**9,), (0,)), ((4,), (0,)), ((1, 10**9), (1, 0))):
        tensor = _Call(_tensor, torch.ones(4).storage(), 0, size, stride, False, {})
        with pytest.raises(FileFormatError):
            read_published_rows(_saved(tmp_path / "x.npy", {"a": tensor}))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_byte_missing_from_a_row_or_added_to_it_is_noticed(tmp_path, change):
    """What follows may still make sense: the row would take its last byte from there."""
    path = _saved(tmp_path / "x.npy", {str(i): row for i, row in enumerate(unit_rows(3, 4, 3))})
    content = path.read_bytes()
    end = content.index(b"\x94t\x94b")
    path.write_bytes(content[: end + min(change, 0)] + b"x" * max(change, 0) + content[end:])
    with pytest.raises(FileFormatError) as raised:
        read_published_rows(path)
    assert raised.value.path == path
