"""Seeded mutators: each takes a file's bytes and a random generator, and gives other bytes.

Mutators of bytes suit every file. Those of a form (JSON, YAML, CSV, HDF5, .npy, safetensors,
pickle) change what the file says and leave it well-formed, so that the reader's checks are reached
and not its parser's alone. A mutator of a form may raise where it cannot parse its input, which
another one has damaged: the harness then mutates bytes.
"""

from __future__ import annotations

import csv
import io
import json
import pickletools
import random
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

Mutator = Callable[[bytes, random.Random], bytes]

_MAX_RUN = 64  # bytes that one mutation removes, repeats or overwrites
_HUGE = (0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**40, 2**63 - 1, 2**64 - 1)

# --- bytes ---------------------------------------------------------------------------------------


def flip_bits(content: bytes, rng: random.Random) -> bytes:
    """Flip one bit, or a few."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_bytes(content: bytes, rng: random.Random) -> bytes:
    """Overwrite a run with one byte, or with random ones."""
    start, stop = _run(content, rng)
    length = stop - start
    filler = rng.choice((b"\0" * length, b"\xff" * length, rng.randbytes(length)))
    return content[:start] + filler + content[stop:]


def truncate(content: bytes, rng: random.Random) -> bytes:
    """Keep the beginning alone; of one in ten, nothing."""
    return content[: rng.choice((0, *[rng.randint(0, len(content))] * 9))]


def insert_bytes(content: bytes, rng: random.Random) -> bytes:
    """Insert random bytes."""
    place = rng.randint(0, len(content))
    return content[:place] + rng.randbytes(rng.randint(1, _MAX_RUN)) + content[place:]


def remove_bytes(content: bytes, rng: random.Random) -> bytes:
    """Remove a run."""
    start, stop = _run(content, rng)
    return content[:start] + content[stop:]


def repeat_bytes(content: bytes, rng: random.Random) -> bytes:
    """Repeat a run, twice or a thousand times."""
    start, stop = _run(content, rng)
    return content[:stop] + content[start:stop] * rng.choice((1, 1, 1000)) + content[stop:]


def splice(content: bytes, rng: random.Random) -> bytes:
    """Put the end of the file behind another place of it."""
    first, second = rng.randint(0, len(content)), rng.randint(0, len(content))
    return content[:first] + content[second:]


def huge_length(content: bytes, rng: random.Random) -> bytes:
    """Overwrite two, four or eight bytes with a huge number, as a length field may be damaged."""
    size = rng.choice((2, 4, 8))
    if len(content) < size:
        return insert_bytes(content, rng)
    number = rng.choice(_HUGE) % 256**size
    place = rng.randint(0, len(content) - size)
    return (
        content[:place]
        + number.to_bytes(size, rng.choice(("little", "big")))
        + content[place + size :]
    )


def _run(content: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randint(0, len(content))
    return start, min(len(content), start + rng.randint(1, _MAX_RUN))


BYTE_MUTATORS: tuple[Mutator, ...] = (
    flip_bits,
    set_bytes,
    truncate,
    insert_bytes,
    remove_bytes,
    repeat_bytes,
    splice,
    huge_length,
)


def on_path(mutate: Callable[[Path, random.Random], None]) -> Mutator:
    """A mutator of bytes from a function that changes a file in place, as libraries such as HDF5
    need.
    """

    def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            path.write_bytes(content)
            mutate(path, rng)
            return path.read_bytes()

    mutate_bytes.__name__ = getattr(mutate, "__name__", "on_path")
    return mutate_bytes


# --- trees of JSON and YAML ----------------------------------------------------------------------


class Raw(str):
    """Text that takes the place of a value as it stands, such as a number of 5,000 digits."""


_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1.5, -0.0, 3.0, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**70,
    1e300, 1e-300,
    "", " ", "0", "1", "x", "NaN", "null", "train", "../x", "/", "/dev/null", "a/../../b", "~",
    "a\0b", "\0", "\n",
    "a\nb", "\r", "\u2028", "\ufeff", "\x1b[31m", "\U0001f600", "\ud83d", "a\udc00b", "x" * 300,
    "x" * 100_000,
    "é" * 70, "%s%n{0}", "1:30", "1e5", "01", "yes",
    [], {}, [[]], [None], [{}], {"": None}, {"a": 1}, [1, 2], ["x"], ["x", 1], {"image": "x.jpg"},
    {"\ud800": 1},
)  # fmt: skip
_ODD_JSON_TEXTS = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "-" + "9" * 5000,
    "0." + "1" * 5000,
    "1e-999999", "[" * 2000, "[" * 100_000, "[" * 2000 + "]" * 2000,
    '{"a":' * 2000 + "1" + "}" * 2000, '{"a":1,"a":2}',
    "-", "01", "1.", "nul", "'x'", '"\\x"', '"\\ud800"', '"\\ud83d\\ude00"', '"a', '"\t"', "[1,]",
    "{1:2}",
    "/**/1",
)  # fmt: skip
# Each stands for nine of the one before.
_MULTIPLYING_ALIASES = [
    "&a0 [1]",
    *(f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)),
]
_ODD_YAML_TEXTS = (
    ".nan", ".inf", "-.inf", "1e999", "9" * 5000, "1:_", "0x", "0b", "0o", "1_000", "190:20:30",
    "!!bool foo",
    "!!int x", "!!float x", "!!null x", "!!timestamp x", "2001-13-45", "2001-01-01", "!!binary '%'",
    "!!set {a}", "!!omap [a]", "!!pairs [a]", "!!str", "!!python/object/apply:os.getpid []", "!x y",
    "*nowhere", "&a [*a]",
    "[&a [1, 1], &b [*a, *a], &c [*b, *b], &d [*c, *c], *d, *d]", "[" * 2000, "[" * 400 + "]" * 400,
    "{<<: 3}",
    "{<<: [1]}", "{[1]: 2}", "{a: 1, a: 2}", "@", "`", "%", "'a", '"\\ud800"', '"\\q"', "\t", "? a",
    "- a",
    "|", ">", "~", "yes", "1e5", "=", "<<",
    f"[{', '.join(_MULTIPLYING_ALIASES)}]",
)  # fmt: skip
_ODD_JSON = tuple(Raw(text) for text in _ODD_JSON_TEXTS)
_ODD_YAML = tuple(Raw(text) for text in _ODD_YAML_TEXTS)


def _mutate_tree(document: Any, rng: random.Random, odd_texts: tuple[Raw, ...]) -> Any:
    """A document with one change at one place of it; the document given is changed, too."""
    holder = [document]
    parent, key = rng.choice(_places(holder))
    value = parent[key]
    change = rng.randrange(10)
    if change < 4:
        parent[key] = rng.choice(_ODD_VALUES)
    elif change < 6:
        parent[key] = rng.choice(odd_texts)
    elif change == 6 and parent is not holder:
        del parent[key]
    elif change == 7 and isinstance(parent, dict):
        new_key = rng.choice(
            ("", "x", f"{key}x", str(key)[:-1], str(key).upper(), "\ud800", "a\0b", "__class__")
        )
        parent[new_key] = parent.pop(key)
    elif change == 8:
        other_parent, other_key = rng.choice(_places(holder))
        parent[key] = json.loads(json.dumps(other_parent[other_key]))
    elif isinstance(value, list) and value:
        value.insert(rng.randint(0, len(value)), rng.choice(value))
    elif isinstance(value, str):
        parent[key] = _mutated_text(value, rng)
    elif isinstance(value, (int, float)):
        parent[key] = rng.choice(
            (value + 1, -value, value * 1000, value / 2, float(value), str(value), [value])
        )
    else:
        parent[key] = rng.choice(([value], {"x": value}, rng.choice(_ODD_VALUES)))
    return holder[0]


def _mutated_text(text: str, rng: random.Random) -> str:
    place = rng.randint(0, len(text))
    inserted = rng.choice(
        (
            "",
            " ",
            "\0",
            "\n",
            "/",
            "../",
            "\ud800",
            "x" * 5000,
            "é",
            '"',
            "\\",
            "\ufeff",
            "0",
            "-",
            ".",
        )
    )
    return text[:place] + inserted + text[place + rng.randint(0, 2) :]


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    """Every container of a tree with each of its keys."""
    places: list[tuple[Any, Any]] = []
    waiting: list[Any] = [root]
    while waiting:
        container = waiting.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            places.append((container, key))
            if isinstance(container[key], (dict, list)):
                waiting.append(container[key])
    return places


def _dump_json(document: Any, indent: int | None = None) -> bytes:
    """Write a tree as JSON, texts of :class:`Raw` as they stand."""
    raw_texts: list[str] = []

    def marked(value: Any) -> Any:
        if isinstance(value, Raw):
            raw_texts.append(value)
            return f"@raw{len(raw_texts) - 1}@"
        if isinstance(value, dict):
            return {key: marked(item) for key, item in value.items()}
        if isinstance(value, list):
            return [marked(item) for item in value]
        return value

    text = json.dumps(marked(document), indent=indent)
    for number, raw_text in enumerate(raw_texts):
        text = text.replace(f'"@raw{number}@"', raw_text)
    return text.encode("utf-8", "surrogatepass")


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Change one value, key or list of a JSON document."""
    document = json.loads(content)
    return _dump_json(
        _mutate_tree(document, rng, _ODD_JSON), 1 if b"\n" in content.strip() else None
    )


def mutate_json_lines(content: bytes, rng: random.Random) -> bytes:
    """Change one line of JSON Lines, within or as a whole."""
    lines = content.split(b"\n")
    number = rng.randrange(len(lines))
    change = rng.randrange(8)
    if change == 0:
        del lines[number]
    elif change == 1:
        lines.insert(number, lines[number])
    elif change == 2:
        lines.insert(
            number,
            rng.choice((b"", b" ", b"\r", b"{}", b"[]", b"null", b"x", b"\xef\xbb\xbf", b"\0")),
        )
    elif change == 3 and number:
        lines[number - 1 : number + 1] = [lines[number - 1] + lines[number]]
    else:
        lines[number] = mutate_json(lines[number] or b"null", rng).replace(b"\n", b" ")
    return b"\n".join(lines)


def mutate_yaml(content: bytes, rng: random.Random) -> bytes:
    """Change one value, key or list of a YAML document; it is written in YAML's inline form, a key
    a line.
    """
    if b"*" in content:
        raise ValueError(
            "aliases, which an earlier mutation made, may stand for billions of values"
        )
    document = yaml.safe_load(content)
    mutated = _mutate_tree(document, rng, _ODD_YAML)
    if not isinstance(mutated, dict):
        return _dump_json(mutated)
    lines = [_dump_json(key) + b": " + _dump_json(value) + b"\n" for key, value in mutated.items()]
    return b"".join(lines)


# --- tables --------------------------------------------------------------------------------------

_ODD_CELLS = (
    "", " ", "\t", '"', "'", ",", "\0", "x", "nan", "null", "-1", "1e999", "9" * 5000,
    "x" * 200_000, "a\nb", "a\r\nb",
    "a\rb", "\ufeff", "../x", "/", "é", "=1+1", "train", "test", "nowhere",
)  # fmt: skip


def mutate_table(delimiter: str = ",") -> Mutator:
    """A mutator of a table of CSV: a cell, a row, a column or the header changes."""

    def mutate_csv(content: bytes, rng: random.Random) -> bytes:
        rows = list(csv.reader(io.StringIO(content.decode(), newline=""), delimiter=delimiter))
        _mutate_rows(rows, rng)
        out = io.StringIO(newline="")
        line_end = rng.choice(("\n", "\n", "\r\n", "\r"))
        quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
        csv.writer(out, delimiter=delimiter, lineterminator=line_end, quoting=quoting).writerows(
            rows
        )
        return out.getvalue().encode("utf-8", "surrogatepass")

    return mutate_csv


def _mutate_rows(rows: list[list[str]], rng: random.Random) -> None:
    row = rng.choice([row for row in rows if row])
    column = rng.randrange(len(row))
    change = rng.randrange(9)
    if change == 0:
        del row[column]
    elif change == 1:
        row.insert(column, rng.choice(_ODD_CELLS))
    elif change == 2:
        rows.remove(row)
    elif change == 3:
        rows.insert(rng.randint(0, len(rows)), list(row))
    elif change == 4:
        header = rows[0]
        if header:
            header[rng.randrange(len(header))] = rng.choice(
                (*_ODD_CELLS, *header, header[0].upper())
            )
    elif change == 5:
        for other in rows:
            if column < len(other):
                del other[column]
    elif change == 6:
        row[column] = _mutated_text(row[column], rng)
    else:
        row[column] = rng.choice(_ODD_CELLS)


# --- arrays --------------------------------------------------------------------------------------

_ODD_DTYPES = (
    "'|O'", "'<f2'", "'<f4'", "'>f4'", "'<f8'", "'<i8'", "'|b1'", "'|u1'", "'<c16'", "'<U9'",
    "'|S3'", "'|S0'", "'<U0'",
    "'|V8'", "'<M8[s]'", "'<f128'", "'x'", "''", "[('a', '<f4')]", "('<f4', (3,))", "None", "1",
    "'<U999999999'", "{}",
)  # fmt: skip
_ODD_SHAPES = (
    "()", "(0,)", "(1,)", "(2, 2)", "(-1,)", "(-2, -3)", "(10**12,)", "(1000000000000,)",
    "(9223372036854775807, 2)",
    "(18446744073709551616,)", "(0, 9223372036854775807)", "(2.5,)", "(True,)", "('x',)",
    "7", "None", "[4, 3]", "(3, 4)",
    "(1,) * 99", "(" + "1, " * 40 + ")", "(" + "9" * 5000 + ",)",
)  # fmt: skip
_ODD_HEADERS = (
    "", "{", "{}", "[]", "None", "1", "'x'", "{'descr': '<f4'}", "{1: 2}", "(" * 300,
    "-" * 5000 + "1", "__import__('os')",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}", "\0", "é", "x" * 70_000,
)  # fmt: skip


def mutate_npy(content: bytes, rng: random.Random) -> bytes:
    """Change what the header of a .npy file says: its dtype, shape, order, length or version."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    values = content[stream.tell() :]
    fields = {"descr": repr(dtype.str), "fortran_order": str(is_fortran), "shape": repr(shape)}
    change = rng.randrange(6)
    if change < 2:
        fields["descr"] = rng.choice(_ODD_DTYPES)
    elif change < 4:
        fields["shape"] = rng.choice(_ODD_SHAPES)
    else:
        fields["fortran_order"] = rng.choice(("True", "None", "1", "'x'"))
    if change == 5 and rng.random() < 0.5:
        del fields[rng.choice(list(fields))]
    header = "{" + "".join(f"'{name}': {value}, " for name, value in fields.items()) + "}"
    if rng.random() < 0.1:
        header = rng.choice(_ODD_HEADERS)
    if rng.random() < 0.1:
        version = rng.choice(((1, 0), (2, 0), (3, 0), (0, 0), (255, 255)))
    size_bytes = 2 if version[0] <= 1 else 4
    encoded = header.encode("utf-8") + b"\n"
    size = rng.choice((len(encoded),) * 9 + (2**16 - 1,)) % 256**size_bytes
    return b"\x93NUMPY" + bytes(version) + size.to_bytes(size_bytes, "little") + encoded + values


def mutate_zip(mutate_member: Mutator) -> Mutator:
    """A mutator of a zip archive, such as a .npz file: a member is changed, renamed, repeated,
    removed or inflated.
    """

    def mutate_archive(content: bytes, rng: random.Random) -> bytes:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
        number = rng.randrange(len(members))
        name, member = members[number]
        change = rng.randrange(9)
        if change == 0:
            del members[number]
        elif change == 1:
            members.append(members[number])
        elif change == 2:
            odd_names = (
                "",
                "x",
                "../x.npy",
                "/x.npy",
                "a" * 60_000,
                "é.npy",
                "a\nb.npy",
                name.upper(),
                name + "/",
            )
            members[number] = (rng.choice(odd_names), member)
        elif change == 3:
            members[number] = (name, member + b"\0" * rng.choice((1, 1000, 4_000_000)))
        else:
            members[number] = (name, mutate_member(member, rng))
        method = rng.choice(
            (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
        )
        return _zipped(members, method)

    return mutate_archive


def _zipped(members: list[tuple[str, bytes]], method: int) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, member in members:
            archive.writestr(zipfile.ZipInfo(name), member, method)
    return out.getvalue()


def mutate_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Change what the header of a safetensors file says: a name, dtype, shape, offset, or its own
    length.
    """
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    values = content[8 + size :]
    tensors = (
        [name for name in header if isinstance(header[name], dict)]
        if isinstance(header, dict)
        else []
    )
    change = rng.randrange(6)
    if change == 0 and tensors:
        header[rng.choice(tensors)]["dtype"] = rng.choice(
            ("F64", "F16", "BF16", "I8", "I64", "BOOL", "F8_E4M3", "x", "", 1)
        )
    elif change == 1 and tensors:
        odd_shapes = ([], [0], [1], [-1], [2**40], [2**63, 2], [1] * 70, [1.5], ["x"], None, [2, 2])
        header[rng.choice(tensors)]["shape"] = rng.choice(odd_shapes)
    elif change == 2 and tensors:
        odd_offsets = (
            [0, 0],
            [0, 4],
            [4, 0],
            [-4, 4],
            [0, 2**40],
            [2**63, 2**64],
            [0],
            [],
            None,
            [0, len(values) + 4],
        )
        header[rng.choice(tensors)]["data_offsets"] = rng.choice(odd_offsets)
    else:
        header = _mutate_tree(header, rng, _ODD_JSON)
    encoded = _dump_json(header)
    size = rng.choice((len(encoded),) * 9 + (len(encoded) + 1, len(content), 2**40, 2**63)) % 2**64
    return size.to_bytes(8, "little") + encoded + values


# --- HDF5 ----------------------------------------------------------------------------------------

_ODD_ATTRIBUTES: tuple[Any, ...] = (
    0, 1, -1, 2**63 - 1, 1.5, float("nan"), True, "", "x", "é", "a\nb", "x" * 30_000,
    b"x", b"\xff\xfe", np.bytes_(b"\xff"),
    [], [1, 2], [2, 1, 0], ["a", "b"], np.zeros((0,)), np.zeros((3, 3)), np.array([b"x"]),
    np.uint8(3), np.float16(1),
    np.array((1, 2.0), [("a", "i4"), ("b", "f8")]), h5py.Empty("f4"),
    h5py.Empty(h5py.string_dtype()),
    '{"a": 1}', "[" * 3000, "9" * 5000, "/", "../x", "/etc", "null",
)  # fmt: skip
_ODD_ELEMENTS = (
    0,
    1,
    -1,
    2,
    255,
    2**31,
    2**62,
    -(2**63),
    2**63 - 1,
    0.5,
    float("nan"),
    float("inf"),
    1e300,
)


def _mutate_hdf5_file(path: Path, rng: random.Random) -> None:
    with h5py.File(path, "r+", locking=False) as file:
        items: list[str] = []
        file.visit(items.append)
        name = rng.choice(items) if items else ""
        change = rng.randrange(10)
        if change < 3 or not name:
            _mutate_attribute(file[rng.choice(("/", *items))], rng)
        elif change == 3:
            del file[name]
        elif change == 4:
            other = rng.choice((rng.choice(items), "new", name + "/new", name + "é", name.upper()))
            content = file[rng.choice(items)]
            if other not in file:
                file[other] = content
        elif change == 5:
            del file[name]
            _link(file, name, rng)
        elif change < 8 and isinstance(file[name], h5py.Dataset):
            _mutate_elements(file[name], rng)
        else:
            _replace_item(file, name, rng)


def _mutate_attribute(item: Any, rng: random.Random) -> None:
    """Set, remove or rename an attribute, or add one."""
    name = rng.choice((*item.attrs, "new"))
    change = rng.randrange(6)
    if change == 0 and name in item.attrs:
        del item.attrs[name]
    elif change == 1 and name in item.attrs:
        item.attrs[name + "x"] = item.attrs[name]
        del item.attrs[name]
    else:
        value = rng.choice(_ODD_ATTRIBUTES)
        old = item.attrs.get(name)
        if isinstance(old, str) and rng.random() < 0.5:
            text = (
                mutate_json(old.encode(), rng)
                if old[:1] in "{["
                else _mutated_text(old, rng).encode("utf-8", "replace")
            )
            value = text.replace(b"\0", b"").decode("utf-8", "replace")
        item.attrs[name] = value


def _link(file: h5py.File, name: str, rng: random.Random) -> None:
    file[name] = rng.choice(
        (
            h5py.SoftLink("/"),
            h5py.SoftLink(f"/{name}"),
            h5py.SoftLink("/nowhere"),
            h5py.ExternalLink("/etc/hostname", "/"),
            file["/"],
            np.dtype("f4"),
        )
    )


def _mutate_elements(dataset: h5py.Dataset, rng: random.Random) -> None:
    """Change one value of a dataset, or exchange two."""
    if (
        not dataset.size
        or dataset.dtype.kind not in "iufb"
        or dataset.compression
        or not dataset.shape
    ):
        return
    place, other = (tuple(rng.randrange(length) for length in dataset.shape) for _ in range(2))
    if rng.random() < 0.3:
        dataset[place], dataset[other] = dataset[other], dataset[place]
        return
    value = rng.choice((*_ODD_ELEMENTS, float(dataset[place]) + 1, float(dataset[place]) - 1))
    if dataset.dtype.kind == "f":
        dataset[place] = value
    elif value == value and abs(value) != float("inf"):
        limits = np.iinfo(dataset.dtype) if dataset.dtype.kind in "iu" else np.iinfo("u1")
        dataset[place] = min(max(int(value), limits.min), limits.max)


def _replace_item(file: h5py.File, name: str, rng: random.Random) -> None:
    """Put another dataset or a group in the place of an item."""
    item = file[name]
    values = item[()] if isinstance(item, h5py.Dataset) else np.arange(3)
    is_plain = isinstance(values, np.ndarray) and values.dtype.kind in "iufb" and values.ndim > 0
    del file[name]
    change = rng.randrange(14)
    if change == 0:
        file.create_group(name)
    elif change == 1:
        file[name] = rng.choice(("text", b"bytes", 3, 1.5, np.zeros(0), h5py.Empty("f4")))
    elif change == 2:
        file.create_dataset(name, data=["a", "bb"], dtype=h5py.string_dtype())
    elif change == 3:
        file.create_dataset(name, shape=(2**40,), dtype="f4", chunks=(1024,))
    elif change == 4:
        file.create_dataset(
            name, shape=(10**6, 10**5), dtype="f4", chunks=(100, 100), compression="gzip"
        )
    elif change == 5:
        file.create_dataset(name, data=np.zeros(3, [("a", "i4"), ("b", "f8")]))
    elif change == 6:
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource("/nowhere.h5", "x", (4,))
        file.create_virtual_dataset(name, layout)
    elif not is_plain:
        file[name] = np.arange(rng.randrange(9)).astype(rng.choice(("i4", "i8", "f4", "u1")))
    elif change == 7:
        file.create_dataset(
            name, data=values, chunks=True, compression=rng.choice((None, "gzip", "lzf"))
        )
    elif change == 8:
        file.create_dataset(
            name,
            data=values.astype(rng.choice(("i1", "i4", ">i8", "f2", "f4", "f8", "u1", "u8", "c8"))),
        )
    elif change == 9:
        file.create_dataset(name, data=values[: rng.randint(0, len(values))])
    elif change == 10:
        file.create_dataset(name, data=np.concatenate([values, values]))
    elif change == 11:
        file.create_dataset(
            name, data=rng.choice((values[None], values.reshape(-1), values[..., None], values[0]))
        )
    elif change == 12:
        file.create_dataset(name, data=values[::-1])
    else:
        outside = [("/etc/passwd", 0, values.nbytes)]
        file.create_dataset(name, shape=values.shape, dtype=values.dtype, external=outside)


# Changes one attribute, dataset, group or link; the file stays one that HDF5 can read.
mutate_hdf5 = on_path(_mutate_hdf5_file)

# --- pickles -------------------------------------------------------------------------------------

_ODD_OPCODES = (
    b".", b"(", b"0", b"1", b"2", b"N", b"\x88", b"\x89", b"]", b"}", b")", b"\x8f",
    b"R", b"b", b"s", b"u", b"a", b"e", b"t",
    b"\x85", b"\x86", b"\x87", b"\x81", b"\x92", b"\x93", b"\x94", b"Q", b"Pnowhere\n",
    b"J\xff\xff\xff\x7f", b"h\x00",
    b"j\xff\xff\xff\xff", b"r\xff\xff\xff\x7f", b"cos\nsystem\n", b"cnumpy\nndarray\n",
    b"cbuiltins\neval\n",
    b"X\xff\xff\xff\xff", b"X\x01\x00\x00\x00x", b"B\xff\xff\xff\x7f", b"\x8a\xff",
    b"\x8b\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8,
    b"\x95" + b"\xff" * 8, b"\x80\x05", b"\x80\xff", b"L" + b"9" * 5000 + b"L\n",
    b"I01\n", b"Fnan\n", b"S'x'\n", b"Vx\\ud800\n",
    b"ios\nsystem\n", b"\x82\x01", b"2\x86" * 200, b"(" * 3000,
    b"\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R",
)  # fmt: skip


def mutate_pickle(content: bytes, rng: random.Random) -> bytes:
    """Insert, remove, exchange or repeat opcodes of the first pickle in a file, which may lie
    behind a header.
    """
    start = max(0, content.find(b"\x80"))
    starts = [start + place for _, _, place in pickletools.genops(content[start:])]
    first, second = sorted(rng.sample(starts, 2))
    change = rng.randrange(6)
    if change < 3:
        return content[:first] + rng.choice(_ODD_OPCODES) + content[first:]
    if change == 3:
        return content[:first] + content[second:]
    if change == 4:
        return content[:second] + content[first:second] * rng.choice((1, 2, 50)) + content[second:]
    end = starts[starts.index(first) + 1]
    return content[:first] + rng.choice(_ODD_OPCODES) + content[end:]
