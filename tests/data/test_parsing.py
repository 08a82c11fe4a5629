import pickle

import pytest

from cusa.data.errors import CusaError, FileFormatError, StoreError, first_line
from cusa.data.parsing import parse_json, parse_json_lines, read_json, read_text, read_text_lines
from cusa.data.yaml_files import parse_yaml, read_yaml
from tests.helpers import Fault, fault_of


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        "1" * 5000,
        "[NaN]",
        '{"x": -Infinity}',
        "[1e999]",
        '["\\ud800"]',
        '{"\\udc00": 1}',
        '[{"deep": [{"caption": "a \\ud83d dog"}]}]',
        "",
        "{",
        "nonsense",
    ],
)
def test_json_that_cannot_be_used_is_a_format_error(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(FileFormatError) as caught:
        read_json(path)
    assert caught.value.path == path
    assert "\n" not in str(caught.value)


def test_json_keeps_whole_characters(tmp_path):
    # an escaped pair is one character; an escaped backslash before "ud800" is none
    assert parse_json('["\\ud83d\\ude00", "\\\\ud800", "\\u00e9"]', tmp_path) == [
        "\U0001f600",
        "\\ud800",
        "é",
    ]


def test_json_lines_name_the_line(tmp_path):
    rows = parse_json_lines(['{"a": 1}\n', "\n", "[2]\n", "{\n"], tmp_path / "rows.jsonl")
    assert [next(rows), next(rows)] == [(1, {"a": 1}), (3, [2])]
    with pytest.raises(FileFormatError) as caught:
        next(rows)
    assert caught.value.location == "line 4"


@pytest.mark.parametrize(
    "text",
    [
        "a: 0x_",
        "0b_",
        "!!bool foo",
        "!!int x",
        "!!float x",
        "!!timestamp x",
        "!!python/object:os.system []",
        "[" * 5000,
        "a: [",
        "&a [*a]",
        "a: &a {<<: *a}",
        "? [1]\n: 2",
        "2025-13-41",
        "x: *missing",
        "a: 1\n--- \nb: 2",
    ],
)
def test_yaml_that_cannot_be_used_is_a_format_error(text):
    with pytest.raises(FileFormatError) as caught:
        parse_yaml(text, "--set loss.alpha=...")
    assert str(caught.value).startswith("--set loss.alpha=...")
    assert "\n" not in str(caught.value)


def test_yaml_aliases_are_bounded():
    lines = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(FileFormatError) as caught:
        parse_yaml("\n".join(lines), "laughs.yaml")
    assert fault_of(caught.value) == Fault(FileFormatError)


def test_yaml_anchors_of_ordinary_files_work(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("base: &base {lr: 0.1}\ntrain:\n  <<: *base\n  epochs: 3\n")
    assert read_yaml(path)["train"] == {"lr": 0.1, "epochs": 3}
    assert parse_yaml("", "empty") is None


def test_text_files_are_read_or_named(tmp_path):
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfa dog")
    assert read_text(tmp_path / "marked.txt") == "a dog"
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    for path, location in [
        (tmp_path / "latin.txt", "byte 3"),
        (tmp_path, ""),
        (tmp_path / "none", ""),
    ]:
        with pytest.raises(FileFormatError) as caught:
            read_text(path)
        assert (caught.value.path, caught.value.location) == (path, location)


def test_errors_keep_their_fields_between_processes(tmp_path):
    error = pickle.loads(
        pickle.dumps(StoreError("it is damaged", path=tmp_path, location="shard 3", name="unicom"))
    )
    assert isinstance(error, CusaError)
    assert (str(error), error.path, error.location, error.name) == (
        "it is damaged",
        tmp_path,
        "shard 3",
        "unicom",
    )


def test_the_first_line_of_an_error():
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"


@pytest.mark.parametrize("n_before", [0, 3, 100_000])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_are_those_of_the_text(tmp_path, n_before, mark):
    path = tmp_path / "x.jsonl"
    path.write_bytes(mark + b"a\r\nb\rc\n" * n_before + "\u2028é\x0b\n\nlast".encode())
    assert "".join(read_text_lines(path)) == read_text(path)
    assert [line.removesuffix("\n") for line in read_text_lines(path)] == read_text(path).split(
        "\n"
    )
    path.write_bytes(mark + b"a\r\nb\rc\n" * n_before + b"\xff\n")
    errors = []
    for read in (read_text, read_text_lines):
        with pytest.raises(FileFormatError) as error:
            list(read(path))
        errors.append(error.value)
    assert str(errors[0]) == str(errors[1])
    assert errors[0].location == errors[1].location == f"byte {7 * n_before}"
