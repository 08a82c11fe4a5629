"""What a reader in a process of its own gives, and what its faults become."""

import time
from pathlib import Path

import numpy as np
import pytest

import cusa
from cusa.data.errors import FileFormatError
from cusa.data.foreign.guarded_process import read_in_child
from tests.data.foreign import child_readers
from tests.helpers import Fault, fault_of


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(cusa.__file__).parent.parent)  # where the child finds the readers
    (tmp_path / "x").write_bytes(b"content")
    return tmp_path / "x"


def test_content_and_array_come_as_they_are(path):
    content, array = read_in_child(child_readers.give, "made up", path, "b\nö")
    assert content == {"path": str(path), "text": "b\nö"}
    assert array.dtype == ">i2"
    np.testing.assert_array_equal(array, [[0, 1, 2], [3, 4, 5]])
    assert read_in_child(child_readers.give_no_array, "made up", path) == (["ü", 1], None)
    assert read_in_child(child_readers.give_nothing_in_it, "made up", path)[1].shape == (0, 4)


def test_an_error_of_ours_comes_with_its_place(path):
    with pytest.raises(FileFormatError) as found:
        read_in_child(child_readers.refuse, "made up", path)
    assert (found.value.path, found.value.location) == (path, "line 3")


@pytest.mark.parametrize(
    ("reader", "word"),
    [
        (child_readers.crash, "SIGSEGV"),
        (child_readers.hang, "SIGKILL|SIGXCPU"),
        (child_readers.leave, "no answer"),
    ],
)
def test_faults_are_one_line(path, monkeypatch, reader, word):
    monkeypatch.setattr("cusa.data.foreign.guarded_process._CPU_SECONDS", 1)
    began = time.monotonic()
    with pytest.raises(FileFormatError) as found:
        read_in_child(reader, "made up", path)
    assert fault_of(found.value) == Fault(FileFormatError, path=path)
    assert found.value.path == path
    assert "\n" not in str(found.value)
    assert time.monotonic() - began < 30


def test_a_small_file_takes_no_more_than_a_gibibyte(path):
    with pytest.raises(FileFormatError) as raised:
        read_in_child(child_readers.take_memory, "made up", path)
    assert raised.value.path == path
