"""Annotation files of every form, against a second reading of each by the rules that
the docs state.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cusa.data.datasets import load_dataset
from tests.fuzz.harness import Target
from tests.fuzz.mutations import (
    BYTE_MUTATORS,
    Mutator,
    mutate_json,
    mutate_json_lines,
    mutate_table,
)

_ALIASES = {
    "train": ("train", "restval"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test",),
}
_SPLIT_NAMES = {alias: split for split, aliases in _ALIASES.items() for alias in aliases}

_IMAGE_NAMES = ("image", "image_path", "file_name", "filename", "filepath", "file_path")
_IMAGE_NAMES += ("image_name", "image_file", "img", "img_path", "path")
_CAPTION_NAMES = ("caption", "captions", "text", "texts", "title", "comment", "sentence")
_CAPTION_NAMES += ("sentences", "description", "txt")

_NUMBERED = re.compile(r"(?:caption|text|sentence|comment|description)_?(\d+)", re.IGNORECASE)


class Pair(NamedTuple):
    """One caption of one image; an id that is ``None`` was not written down."""

    split: str
    image_path: str
    image_id: str
    caption: str
    caption_id: str | None


Value = dict[
    tuple[str, str, str], list[tuple[str, str]]
]  # captions with ids, by split, path and id of the image


def _read(path: Path) -> Value:
    dataset = load_dataset(path, image_root=path.parent)
    value: Value = {}
    for split, records in dataset.splits.items():
        for record in records:
            captions = list(zip(record.captions, record.caption_ids, strict=True))
            value[split, record.image_path, record.image_id] = captions
    return value


def _agrees(_: Value, value: Value, path: Path) -> bool:
    return value == _grouped(_pairs_of_file(path))


def _grouped(pairs: Iterator[Pair]) -> Value:
    value: Value = {}
    for pair in pairs:
        captions = value.setdefault((pair.split, pair.image_path, pair.image_id), [])
        captions.append((pair.caption, pair.caption_id or f"{pair.image_id}#{len(captions)}"))
    return value


def _pairs_of_file(path: Path) -> Iterator[Pair]:
    text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    if text.lstrip()[:1] not in ("{", "[") and path.suffix not in (".json", ".jsonl"):
        return _pairs_of_lines(_table(text), path)
    try:
        document = json.loads(text)
    except ValueError:
        return _pairs_of_lines(
            [json.loads(line) for line in text.split("\n") if line.strip()], path
        )
    if isinstance(document, list):
        return _pairs_of_list(document, path)
    if "images" in document and "annotations" in document:
        return _pairs_of_coco(document, path)
    if "images" in document:
        return _pairs_of_karpathy(document)
    return _pairs_of_lines([document], path)


def _pairs_of_lines(lines: list[dict[str, Any]], path: Path) -> Iterator[Pair]:
    for line in lines:
        yield from _pairs_of_entry(line, _split_of(path))


def _pairs_of_entry(line: dict[str, Any], default_split: str) -> Iterator[Pair]:
    """The pairs of an entry, by the names of columns that docs/data.md lists."""
    image_path = line[_column(line, _IMAGE_NAMES)]
    image_id = _written_id(line.get(_column(line, ("image_id",)))) or image_path
    split = _SPLIT_NAMES[line.get(_column(line, ("split",))) or default_split]
    caption_column = _column(line, _CAPTION_NAMES)
    if caption_column is None:
        numbered = {int(m[1]): line[name] for name in line if (m := _NUMBERED.fullmatch(name))}
        captions = [numbered[number] for number in sorted(numbered)]
        captions = captions if len(captions) == 1 else list(filter(None, captions))
    else:
        captions = line[caption_column]
    for caption in captions if isinstance(captions, list) else [captions]:
        yield Pair(split, image_path, image_id, caption, None)


def _column(line: dict[str, Any], usual_names: tuple[str, ...]) -> str | None:
    spellings: dict[str, str] = {}
    for name in line:
        spellings.setdefault("_".join(re.split(r"[\s-]+", name.strip().lower())), name)
    present = [spellings[name] for name in usual_names if name in spellings]
    if len(present) > 1 and usual_names[0] not in spellings:
        raise KeyError(present)
    return present[0] if present else None


def _table(text: str) -> list[dict[str, str]]:
    """The rows of CSV text by the names of the header, white space at the ends of cells dropped."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    stripped = [[cell.strip(" \t\r\n") for cell in row] for row in rows]
    header, *lines = [row for row in stripped if any(row) or len(row) > 1]
    assert len(set(filter(None, header))) == len(list(filter(None, header)))
    return [dict(zip(header, line, strict=True)) for line in lines]


def _pairs_of_list(entries: list[dict[str, Any]], path: Path) -> Iterator[Pair]:
    for entry in entries:
        yield from _pairs_of_entry(entry, _split_of(path))


def _pairs_of_coco(document: dict[str, Any], path: Path) -> Iterator[Pair]:
    file_names = {_written_id(image["id"]): image["file_name"] for image in document["images"]}
    assert len(file_names) == len(document["images"])
    for annotation in document["annotations"]:
        image_id = _written_id(annotation["image_id"])
        caption_id = _written_id(annotation.get("id"))
        yield Pair(
            _split_of(path), file_names[image_id], image_id, annotation["caption"], caption_id
        )


def _pairs_of_karpathy(document: dict[str, Any]) -> Iterator[Pair]:
    for image in document["images"]:
        folder, file_name = image.get("filepath"), image["filename"]
        caption_ids = [_written_id(sentence.get("sentid")) for sentence in image["sentences"]]
        has_all_ids = None not in caption_ids
        for sentence, caption_id in zip(image["sentences"], caption_ids, strict=True):
            yield Pair(
                _SPLIT_NAMES[image.get("split") or "train"],
                f"{folder}/{file_name}" if folder else file_name,
                _written_id(image.get("cocoid")) or file_name,
                sentence["raw"],
                caption_id if has_all_ids else None,
            )


def _written_id(value: Any) -> str | None:
    """An id as a text; a whole number may be written as a float."""
    if value is None or value == "":
        return None
    assert type(value) in (str, int, float)
    return str(int(value)) if isinstance(value, float) else str(value)


def _split_of(path: Path) -> str:
    """The split that the end of a file's name tells, else train."""
    return _SPLIT_NAMES.get(path.stem.rsplit("_", 1)[-1], "train")


_COCO = {
    "info": {"year": 2014},
    "images": [
        {
            "id": 1,
            "file_name": "a.jpg",
            "height": 4,
            "width": 4,
            "coco_url": "http://x/val2017/a.jpg",
        },
        {"id": 2, "file_name": "b.jpg"},
        {"id": 30, "file_name": "c é.jpg"},
    ],
    "annotations": [
        {"id": 7, "image_id": 1, "caption": "A cat, on a mat."},
        {"id": 8, "image_id": 2, "caption": "a dog"},
        {"id": 9, "image_id": 30, "caption": "Ein Löwe 🦁"},
        {"id": 10, "image_id": 1, "caption": "the same cat"},
    ],
}
_KARPATHY = {
    "dataset": "tiny",
    "images": [
        {
            "filename": "a.jpg",
            "filepath": "val2014",
            "cocoid": 1,
            "split": "restval",
            "sentences": [
                {"raw": "A cat.", "sentid": 1, "tokens": ["a", "cat"]},
                {"raw": "a mat", "sentid": 2},
            ],
        },
        {"filename": "b.jpg", "split": "val", "sentences": [{"raw": "Ein Löwe 🦁"}]},
        {
            "filename": "c.jpg",
            "imgid": 3,
            "split": "test",
            "sentids": [7],
            "sentences": [{"raw": "a dog", "sentid": 7}],
        },
    ],
}
_ALBEF = [
    {"image": "a.jpg", "caption": ["A cat.", "a mat"], "image_id": 1},
    {"image": "b/b.jpg", "caption": "Ein Löwe 🦁"},
    {"image_path": "c.jpg", "caption": "a dog"},
]
_LINES = [
    {"image": "a.jpg", "caption": "A cat.", "image_id": "one", "split": "train"},
    {"image": "a.jpg", "caption": ["a mat", "the cat"], "image_id": "one", "split": "train"},
    {"image": "b.jpg", "caption": "Ein Löwe 🦁", "split": "test"},
    {"image": "c.jpg", "caption": "a dog", "image_id": 3},
]
_IMAGE_FOLDER_LINES = [
    {"file_name": "a.jpg", "text": "A cat."},
    {"file_name": "b.jpg", "text": "a dog", "n": 1.5},
]
_CSV = """image,caption,image_id,split
a.jpg,"A cat, on a mat.",1,train
a.jpg,the same cat,1,train
b.jpg,"Ein ""Löwe"" 🦁",2,val
c.jpg,"a dog
in two lines",3.0,test
"""
_PANDAS_CSV = """,file_name,text
0,a.jpg,A cat.
1,b.jpg,"a dog, running"
"""


def _target(name: str, file_name: str, content: str, mutator: Mutator) -> Target:
    return Target(
        name=f"annotations/{name}",
        make=_writer(file_name, content),
        mutators=(mutator,) * 16 + BYTE_MUTATORS,
        read=_read,
        agrees=_agrees,
        weight=4,
    )


def _writer(file_name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / file_name
        path.write_text(content, encoding="utf-8")
        return path

    return make


def _as_lines(entries: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


TARGETS = (
    _target("coco", "captions_val.json", json.dumps(_COCO, indent=1), mutate_json),
    _target("karpathy", "dataset.json", json.dumps(_KARPATHY), mutate_json),
    _target("caption-list", "flickr_test.json", json.dumps(_ALBEF), mutate_json),
    _target("json-lines", "pairs.jsonl", _as_lines(_LINES), mutate_json_lines),
    _target("csv", "pairs.csv", _CSV, mutate_table()),
    _target(
        "image-folder-json-lines",
        "metadata.jsonl",
        _as_lines(_IMAGE_FOLDER_LINES),
        mutate_json_lines,
    ),
    _target("image-folder-csv", "metadata.csv", _PANDAS_CSV, mutate_table()),
)
