"""Seeded mutators: each takes a file's bytes and a random generator, and gives other bytes.

Mutators of bytes suit every file. Those of a form (JSON, YAML, CSV, HDF5, .npy, safetensors, pickle) change
what the file says and leave it well-formed, so that the reader's checks are reached and not its parser's alone.
A mutator of a form that cannot parse its input, which another one has damaged, falls back on bytes.
"""

from __future__ import annotations

import csv
import io
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    return content[:place] + number.to_bytes(size, rng.choice(("little", "big"))) + content[place + size :]


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


def splice_with(other: bytes) -> Mutator:
    """A mutator that puts the end of another file behind the beginning of this one."""

    def splice_two(content: bytes, rng: random.Random) -> bytes:
        return content[: rng.randint(0, len(content))] + other[rng.randint(0, len(other)) :]

    return splice_two


def on_path(mutate: Callable[[Path, random.Random], None]) -> Mutator:
    """A mutator of bytes from a function that changes a file in place, as libraries such as HDF5 need."""

    def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
        with tempfile.NamedTemporaryFile() as file:
            path = Path(file.name)
            path.write_bytes(content)
            mutate(path, rng)
            return path.read_bytes()

    mutate_bytes.__name__ = getattr(mutate, "__name__", "on_path")
    return mutate_bytes


# --- trees of JSON and YAML ----------------------------------------------------------------------


class Raw(str):
    """Text that takes the place of a value as it stands, such as a number of 5,000 digits."""


_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1.5, -0.0, 3.0, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**70, 1e300, 1e-300,
    "", " ", "0", "1", "x", "NaN", "null", "train", "../x", "/", "/dev/null", "a/../../b", "~", "a\0b", "\0", "\n",
    "a\nb", "\r", "\u2028", "\ufeff", "\x1b[31m", "\U0001f600", "\ud83d", "a\udc00b", "x" * 300, "x" * 100_000,
    "é" * 70, "%s%n{0}", "1:30", "1e5", "01", "yes",
    [], {}, [[]], [None], [{}], {"": None}, {"a": 1}, [1, 2], ["x"], ["x", 1], {"image": "x.jpg"}, {"\ud800": 1},
)  # fmt: skip
_ODD_JSON: tuple[Raw, ...] = tuple(
    map(
        Raw,
        (
            "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "-" + "9" * 5000, "0." + "1" * 5000,
            "1e-999999", "[" * 2000, "[" * 100_000, "[" * 2000 + "]" * 2000, '{"a":' * 2000 + "1" + "}" * 2000, '{"a":1,"a":2}',
            "-", "01", "1.", "nul", "'x'", '"\\x"', '"\\ud800"', '"\\ud83d\\ude00"', '"a', '"\t"', "[1,]", "{1:2}",
            "/**/1",
        ),
    )
)  # fmt: skip
_ODD_YAML: tuple[Raw, ...] = tuple(
    map(
        Raw,
        (
            ".nan", ".inf", "-.inf", "1e999", "9" * 5000, "1:_", "0x", "0b", "0o", "1_000", "190:20:30", "!!bool foo",
            "!!int x", "!!float x", "!!null x", "!!timestamp x", "2001-13-45", "2001-01-01", "!!binary '%'",
            "!!set {a}", "!!omap [a]", "!!pairs [a]", "!!str", "!!python/object/apply:os.getpid []", "!x y", "*nowhere", "&a [*a]",
            "[&a [1, 1], &b [*a, *a], &c [*b, *b], &d [*c, *c], *d, *d]", "[" * 2000, "[" * 400 + "]" * 400, "{<<: 3}",
            "{<<: [1]}", "{[1]: 2}", "{a: 1, a: 2}", "@", "`", "%", "'a", '"\\ud800"', '"\\q"', "\t", "? a", "- a",
            "|", ">", "~", "yes", "1e5", "=", "<<",
            "[" + ", ".join(f"&a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 1}]" for n in range(12)) + "]",
        ),
    )
)  # fmt: skip


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
        new_key = rng.choice(("", "x", f"{key}x", str(key)[:-1], str(key).upper(), "\ud800", "a\0b", "__class__"))
        parent[new_key] = parent.pop(key)
    elif change == 8:
        other_parent, other_key = rng.choice(_places(holder))
        parent[key] = json.loads(json.dumps(other_parent[other_key]))
    elif isinstance(value, list) and value:
        value.insert(rng.randint(0, len(value)), rng.choice(value))
    elif isinstance(value, str):
        parent[key] = _mutated_text(value, rng)
    elif isinstance(value, (int, float)):
        parent[key] = rng.choice((value + 1, -value, value * 1000, value / 2, float(value), str(value), [value]))
    else:
        parent[key] = rng.choice(([value], {"x": value}, rng.choice(_ODD_VALUES)))
    return holder[0]


def _mutated_text(text: str, rng: random.Random) -> str:
    place = rng.randint(0, len(text))
    inserted = rng.choice(
        ("", " ", "\0", "\n", "/", "../", "\ud800", "x" * 5000, "é", '"', "\\", "\ufeff", "0", "-", ".")
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
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return rng.choice(BYTE_MUTATORS)(content, rng)
    return _dump_json(_mutate_tree(document, rng, _ODD_JSON), 1 if b"\n" in content.strip() else None)


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
        lines.insert(number, rng.choice((b"", b" ", b"\r", b"{}", b"[]", b"null", b"x", b"\xef\xbb\xbf", b"\0")))
    elif change == 3 and number:
        lines[number - 1 : number + 1] = [lines[number - 1] + lines[number]]
    else:
        lines[number] = mutate_json(lines[number], rng).replace(b"\n", b" ")
    return b"\n".join(lines)


def mutate_yaml(content: bytes, rng: random.Random) -> bytes:
    """Change one value, key or list of a YAML document; it is written in YAML's inline form, a key a line."""
    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        return rng.choice(BYTE_MUTATORS)(content, rng)
    mutated = _mutate_tree(document, rng, _ODD_YAML)
    if not isinstance(mutated, dict):
        return _dump_json(mutated)
    lines = [_dump_json(key) + b": " + _dump_json(value) + b"\n" for key, value in mutated.items()]
    return b"".join(lines)


# --- tables --------------------------------------------------------------------------------------

_ODD_CELLS = (
    "", " ", "\t", '"', "'", ",", "\0", "x", "nan", "null", "-1", "1e999", "9" * 5000, "x" * 200_000, "a\nb", "a\r\nb",
    "a\rb", "\ufeff", "../x", "/", "é", "=1+1", "train", "test", "nowhere",
)  # fmt: skip


def mutate_table(delimiter: str = ",") -> Mutator:
    """A mutator of a table of CSV: a cell, a row, a column or the header changes."""

    def mutate_csv(content: bytes, rng: random.Random) -> bytes:
        try:
            rows = list(csv.reader(io.StringIO(content.decode(), newline=""), delimiter=delimiter))
        except (ValueError, csv.Error):
            rows = []
        if not rows or not any(rows):
            return rng.choice(BYTE_MUTATORS)(content, rng)
        _mutate_rows(rows, rng)
        out = io.StringIO(newline="")
        line_end = rng.choice(("\n", "\n", "\r\n", "\r"))
        quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
        csv.writer(out, delimiter=delimiter, lineterminator=line_end, quoting=quoting).writerows(rows)
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
            header[rng.randrange(len(header))] = rng.choice((*_ODD_CELLS, *header, header[0].upper()))
    elif change == 5:
        for other in rows:
            if column < len(other):
                del other[column]
    elif change == 6:
        row[column] = _mutated_text(row[column], rng)
    else:
        row[column] = rng.choice(_ODD_CELLS)
