from pathlib import Path

import pytest

from cusa.data.datasets import load_dataset
from cusa.data.errors import LONGEST_LINE, CusaError, DataError, FileFormatError, ImageError


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("two\nlines", "two lines"),
        ("a\r\nb\u2028c\x0bd", "a b c d"),
        ("a\x1b[2Jb\x00\x85", r"a\x1b[2Jb\x00"),
        ("Löwe 🦁", "Löwe 🦁"),
    ],
)
def test_a_message_is_one_line_that_moves_no_cursor(message, line):
    assert str(DataError(message)) == line


def test_the_middle_of_a_long_message_is_left_out():
    line = str(CusaError("begin " + "x" * 1_000_000 + " end"))
    assert len(line) <= LONGEST_LINE
    assert line.startswith("begin x")
    assert line.endswith("x end")


def test_columns_with_line_breaks_are_named_in_one_line(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text('"a\nb",caption\nx.jpg,hello\n')
    with pytest.raises(FileFormatError) as raised:
        load_dataset(path)
    assert raised.value.path == path
    assert "\n" not in str(raised.value)


def test_a_reworded_error_keeps_its_kind_and_what_is_at_fault():
    error = ImageError("an image", path=Path("a.jpg"), location="line 3", name="a")
    reworded = error.reworded("first this: an image")
    assert type(reworded) is ImageError
    assert str(reworded) == "first this: an image"
    assert (reworded.path, reworded.location, reworded.name) == (Path("a.jpg"), "line 3", "a")
    assert error.reworded("another", "b").name == "b"
