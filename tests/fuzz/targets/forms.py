"""Data sets of files and folders beyond annotations of text alone: Flickr's captions with their
split lists, texts beside images, Parquet, and what ``datasets`` saves; each against a second
reading.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from cusa.data.datasets import load_dataset
from cusa.data.readers.columns import CAPTION_NAMES
from tests.fuzz.harness import Target
from tests.fuzz.mutations import BYTE_MUTATORS, Mutator, mutate_json, mutate_table

Value = dict[str, dict[str, list[str]]]  # captions by split and image id

_SPLIT_OF_LIST = {"train": "train", "dev": "val", "test": "test"}


def _read(source: Path) -> Value:
    dataset = load_dataset(source, data_root=source.parent / "data")
    value: Value = {}
    for split, records in dataset.splits.items():
        value[split] = {record.image_id: list(record.captions) for record in records}
    return value


def _text(path: Path) -> str:
    text = path.read_bytes().decode("utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


# --- Flickr's captions ---------------------------------------------------------------------------


def _make_tokens(folder: Path) -> Path:
    names = ["a.jpg", "b é.jpg", "c.jpg", "d.jpg"]
    lines = []
    for name in names:
        lines += [f"{name}#{number}\tcaption {number} of {name} .\n" for number in range(2)]
    path = folder / "Flickr8k.token.txt"
    path.write_text("".join(lines), encoding="utf-8")
    for split, name in zip(_SPLIT_OF_LIST, names, strict=False):
        (folder / f"Flickr_8k.{split}Images.txt").write_text(f"{name}\n", encoding="utf-8")
    return path


def _make_split_list(folder: Path) -> Path:
    _make_tokens(folder)
    return folder / "Flickr_8k.trainImages.txt"


def _read_beside(split_list: Path) -> Value:
    return _read(split_list.with_name("Flickr8k.token.txt"))


def _tokens_agree(_: Value, value: Value, path: Path) -> bool:
    split_of_image = {}
    for name, split in _SPLIT_OF_LIST.items():
        listed = re.split(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", _text_of_list(path, name))
        for line in filter(None, map(str.strip, listed)):
            split_of_image[f"{line}.jpg" if line.isdigit() else line] = split
    expected: Value = {}
    for line in filter(str.strip, _text(path.with_name("Flickr8k.token.txt")).split("\n")):
        head, _, caption = line.partition("\t")
        name, _, _ = head.rpartition("#")
        split = split_of_image.get(name.strip()) if split_of_image else "train"
        if split is not None:
            captions = expected.setdefault(split, {}).setdefault(name.strip(), [])
            captions.append(caption.strip(" \t\r"))
    return value == expected


def _text_of_list(path: Path, name: str) -> str:
    return _text(path.with_name(f"Flickr_8k.{name}Images.txt"))


# --- texts beside images -------------------------------------------------------------------------


def _make_sidecar(suffix: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for name in ("a", "b"):
            (folder / f"{name}.jpg").write_bytes(b"")
        (folder / "a.txt").write_text("A cat.\n")
        path = folder / f"b{suffix}"
        path.write_text(content, encoding="utf-8")
        return path

    return make


def _read_folder(sidecar: Path) -> Value:
    return _read(sidecar.parent)


def _sidecar_agrees(_: Value, value: Value, path: Path) -> bool:
    if path.suffix == ".json":
        content = json.loads(_text(path))
        if isinstance(content, dict):
            content = content[_caption_field(content)]
        captions = content
        captions = captions if isinstance(captions, list) else [captions]
    else:
        captions = [line.strip(" \t\r") for line in _text(path).split("\n")]
        captions = list(filter(None, captions))
    return value == {"train": {"a.jpg": ["A cat."], "b.jpg": captions}}


def _caption_field(fields: dict[str, Any]) -> str:
    """The one field whose name is that of a caption, in any case and with spaces."""
    names = {name: "_".join(re.split(r"[\s-]+", name.strip().lower())) for name in fields}
    usual = [name for name in names if names[name] in CAPTION_NAMES]
    return next((name for name in usual if names[name] == "caption"), usual[0])


# --- Parquet, and what datasets saves ------------------------------------------------------------


def _picture(shade: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def _entries(holds_pictures: bool) -> list[dict[str, Any]]:
    entries = []
    for number in range(5):
        path = f"{number}.png"
        image = {"bytes": _picture(40 * number), "path": path} if holds_pictures else path
        entry = {"image": image, "caption": [f"picture {number}", "ein Löwe"], "image_id": number}
        entries.append(entry)
    return entries


def _make_parquet(holds_pictures: bool) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import pandas

        path = folder / "pairs.parquet"
        pandas.DataFrame(_entries(holds_pictures)).to_parquet(path)
        return path

    return make


def _parquet_agrees(_: Value, value: Value, path: Path) -> bool:
    """Of a file without checksums, captions may be others; they are what the file says."""
    from pyarrow.parquet import ParquetFile

    expected: dict[str, list[str]] = {}
    for row in ParquetFile(path).read(columns=["caption", "image_id"]).to_pylist():
        expected.setdefault(str(row["image_id"]), []).extend(row["caption"])
    return value == {"train": expected}


def _make_saved(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import datasets

        datasets.disable_progress_bars()
        dataset = datasets.Dataset.from_list(_entries(holds_pictures=True))
        dataset.save_to_disk(folder / "saved")
        return next((folder / "saved").glob(name))

    return make


def _saved_agrees(valid: Value, value: Value, path: Path) -> bool:
    if path.suffix == ".json":
        return value == valid
    import pyarrow

    with path.open("rb") as file:
        table = pyarrow.ipc.open_stream(file).read_all().to_pylist()
    expected: dict[str, list[str]] = {}
    for row in table:
        expected.setdefault(str(row["image_id"]), []).extend(row["caption"])
    return value == {"train": expected}


def _mutate_lines(content: bytes, rng: random.Random) -> bytes:
    """Change a cell of a table of tabs, as an editor would."""
    return mutate_table("\t")(content, rng)


def _target(
    name: str,
    make: Callable[[Path], Path],
    read: Callable[[Path], Value],
    agrees: Callable[[Value, Value, Path], bool],
    mutators: tuple[Mutator, ...] = (),
) -> Target:
    return Target(f"forms/{name}", make, mutators + BYTE_MUTATORS, read, agrees, weight=2)


TARGETS = (
    _target("tokens", _make_tokens, _read, _tokens_agree, (_mutate_lines,) * 8),
    _target("split-list", _make_split_list, _read_beside, _tokens_agree),
    _target(
        "sidecar-txt", _make_sidecar(".txt", "Ein Löwe 🦁\na lion\n"), _read_folder, _sidecar_agrees
    ),
    _target(
        "sidecar-json",
        _make_sidecar(".json", '{"caption": ["Ein Löwe", "a lion"]}'),
        _read_folder,
        _sidecar_agrees,
        (mutate_json,) * 8,
    ),
    _target("parquet", _make_parquet(holds_pictures=False), _read, _parquet_agrees),
    _target("parquet-pictures", _make_parquet(holds_pictures=True), _read, _parquet_agrees),
    _target("saved-arrow", _make_saved("*.arrow"), lambda path: _read(path.parent), _saved_agrees),
    _target(
        "saved-info",
        _make_saved("dataset_info.json"),
        lambda path: _read(path.parent),
        _saved_agrees,
        (mutate_json,) * 8,
    ),
)
