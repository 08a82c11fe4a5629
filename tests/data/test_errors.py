import pytest

from cusa.data.datasets import load_dataset
from cusa.data.errors import LONGEST_LINE, CusaError, DataError, FileFormatError


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
