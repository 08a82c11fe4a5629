"""Annotation files to records: Karpathy json, ALBEF json, flat json, and a user's own JSONL or CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cusa.data.errors import CusaError
from cusa.data.records import SPLITS, Dataset, Record, check_splits

# Images per split of the Karpathy splits; COCO's train includes restval.
KNOWN_SIZES = {
    "coco": {"train": 113_287, "val": 5_000, "test": 5_000},
    "flickr30k": {"train": 29_000, "val": 1_000, "test": 1_000},
}
_ANNOTATIONS = {"coco": "dataset_coco.json", "flickr30k": "dataset_flickr30k.json"}
_SPLIT_ALIASES = {"restval": "train", "valid": "val", "validation": "val", "dev": "val"}


def load_dataset(sources: Sequence[str], image_root: Path | None = None, data_root: Path = Path("data")) -> Dataset:
    """Read a data set by name or from annotation files.

    Args:
        sources: ``["coco"]``, ``["flickr30k"]`` (annotations and images under ``data_root/<name>``), ``["demo"]``
            (rendered there on first use), or paths of annotation files. A file of a form without splits (ALBEF, flat)
            takes its split from its name (``…_train.json``) or from ``train=PATH``; several files make one data set.
        image_root: Folder that the image paths are relative to; by default the annotation file's own folder.
        data_root: Where named data sets lie.

    Returns:
        The data set, its splits in the order train, val, test.

    Raises:
        CusaError: If a file is missing or malformed, or ids cannot be joined; says which and what to do.
    """
    if not sources:
        raise CusaError("no data set given; pass --dataset coco, flickr30k, demo or the path of an annotation file")
    if len(sources) == 1 and sources[0] == "demo":
        from cusa.data.demo import make_demo

        return make_demo(data_root / "demo")
    if len(sources) == 1 and sources[0] in _ANNOTATIONS:
        return _load_named(sources[0], image_root, data_root)
    rows: list[_Row] = []
    name = ""
    for source in sources:
        split, path = _parse_source(source)
        file_name, file_rows = read_annotations(path, split)
        rows.extend(file_rows)
        name = name or file_name
    first = _parse_source(sources[0])[1]
    splits = group_rows(rows, ", ".join(sources))
    root = image_root if image_root is not None else first.parent
    return Dataset(name, root, splits, notes=_size_notes(name, splits))


@dataclass(frozen=True, slots=True)
class _Row:
    """One or more captions of one image, as an annotation file has them."""

    split: str
    image_path: str
    image_id: str
    captions: tuple[str, ...]
    caption_ids: tuple[str, ...] = field(default=())  # empty: numbered by image


def _load_named(name: str, image_root: Path | None, data_root: Path) -> Dataset:
    folder = data_root / name
    candidates = [folder / _ANNOTATIONS[name], folder / "annotations" / _ANNOTATIONS[name]]
    path = next((c for c in candidates if c.is_file()), None)
    if path is None:
        raise CusaError(
            f"{candidates[0]} does not exist; put Karpathy's {_ANNOTATIONS[name]} and the images under {folder}/, or "
            "pass --data-root, or --dataset PATH --image-root FOLDER"
        )
    _, rows = read_annotations(path, None)
    splits = group_rows(rows, str(path))
    if image_root is None:
        probe = next(r.image_path for records in splits.values() for r in records)
        roots = [folder, folder / "images", folder / f"{name}-images", folder / f"{name}_images"]
        image_root = next((r for r in roots if (r / probe).is_file()), folder)
    return Dataset(name, image_root, splits, notes=_size_notes(name, splits))


def _size_notes(name: str, splits: Mapping[str, Sequence[Record]]) -> tuple[str, ...]:
    """Differences from the known sizes of a data set of that name."""
    found = {split: len(splits.get(split, ())) for split in KNOWN_SIZES.get(name, ())}
    return tuple(
        f"{name} {split} has {n:,} images, the Karpathy split has {KNOWN_SIZES[name][split]:,}"
        for split, n in found.items()
        if n != KNOWN_SIZES[name][split]
    )


def _parse_source(source: str) -> tuple[str | None, Path]:
    """``train=PATH`` or ``PATH``; a file whose own name holds "=" wins."""
    head, equals, tail = source.partition("=")
    if equals and not Path(source).exists():
        return _split_name(head, f"--dataset {source}"), Path(tail)
    return None, Path(source)


def _split_name(raw: str, where: str) -> str:
    name = _SPLIT_ALIASES.get(raw, raw)
    if name not in SPLITS:
        raise CusaError(f"{where}: unknown split {raw!r}; legal: {', '.join(SPLITS)} (or restval, valid, dev)")
    return name


def read_annotations(path: Path, split: str | None) -> tuple[str, Iterable[_Row]]:
    """Read one annotation file of any known form.

    Args:
        path: A ``.json``, ``.jsonl`` or ``.csv`` file.
        split: Split of all its rows; ``None`` takes it from the rows or, failing that, from the file's name.

    Returns:
        The data set's name and the rows.
    """
    try:
        if path.is_dir():
            raise CusaError(f"{path} is a folder; pass an annotation file (.json, .jsonl or .csv)")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise CusaError(
            f"annotation file {path} does not exist; legal names: coco, flickr30k, demo, or a path"
        ) from None
    except UnicodeDecodeError as error:
        raise CusaError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    if path.suffix == ".jsonl":
        return path.stem, list(_manifest_rows(_read_jsonl(text, path), path, split))
    if path.suffix == ".csv":
        return path.stem, list(_manifest_rows(_read_csv(text, path), path, split))
    if path.suffix != ".json":
        raise CusaError(f"{path}: unknown annotation form {path.suffix!r}; legal: .json, .jsonl, .csv")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise CusaError(
            f"{path} is not valid json (line {error.lineno}: {error.msg}); repair or re-download it"
        ) from None
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        return str(content.get("dataset", path.stem)), list(_karpathy_rows(content["images"], path, split))
    if isinstance(content, list):
        return path.stem, list(_list_rows(content, path, split))
    raise CusaError(
        f"{path}: neither Karpathy's form ({{'images': [...]}}) nor a list of {{image, caption}} (ALBEF) or "
        "{image_path, caption, image_id}"
    )


def _karpathy_rows(images: list[Any], path: Path, split: str | None) -> Iterator[_Row]:
    for i, image in enumerate(images):
        where = f"{path}: images[{i}]"
        fields = _mapping(image, where)
        file_name = _text(fields, "filename", where)
        folder = fields.get("filepath") or ""
        sentences = fields.get("sentences")
        if not isinstance(sentences, list):
            raise CusaError(f"{where}: has no list 'sentences'; is this Karpathy's json?")
        sentences = [_mapping(s, f"{where}.sentences") for s in sentences]
        caption_ids = tuple(str(s["sentid"]) for s in sentences if "sentid" in s)
        yield _Row(
            split=split or _split_name(str(fields.get("split", "train")), where),
            image_path=f"{folder}/{file_name}" if folder else file_name,
            image_id=str(file_name if fields.get("cocoid") is None else fields["cocoid"]),
            captions=tuple(_text(s, "raw", where) for s in sentences),
            caption_ids=caption_ids if len(caption_ids) == len(sentences) else (),
        )


def _list_rows(content: list[Any], path: Path, split: str | None) -> Iterator[_Row]:
    """ALBEF's ``{image, caption(s)[, image_id]}`` and the flat ``{image_path, caption, image_id}``."""
    split = split or _split_from_name(path)
    for i, item in enumerate(content):
        where = f"{path}: entry {i}"
        fields = _mapping(item, where)
        image_path = _text(fields, "image_path" if "image_path" in fields else "image", where)
        caption = fields.get("caption")
        captions: list[Any] = caption if isinstance(caption, list) else [caption]
        if not all(isinstance(c, str) for c in captions):
            raise CusaError(f"{where}: 'caption' must be a text or a list of texts")
        yield _Row(
            split,
            image_path,
            str(image_path if fields.get("image_id") is None else fields["image_id"]),
            tuple(captions),
        )


def _manifest_rows(rows: Iterable[tuple[str, Mapping[str, Any]]], path: Path, split: str | None) -> Iterator[_Row]:
    """A user's own ``image,caption[,image_id][,split]``."""
    default = split
    for where, fields in rows:
        image_path = _text(fields, "image", where)
        row_split = fields.get("split") or default or _split_from_name(path, default="train")
        image_id = fields.get("image_id")
        yield _Row(
            split=split or _split_name(str(row_split), where),
            image_path=image_path,
            image_id=str(image_id) if image_id not in (None, "") else image_path,
            captions=(_text(fields, "caption", where),),
        )


def _read_jsonl(text: str, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{path} line {number}", _mapping(json.loads(line), f"{path} line {number}")
        except json.JSONDecodeError as error:
            raise CusaError(f"{path} line {number} is not valid json ({error.msg}); repair or remove it") from None


def _read_csv(text: str, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    missing = {"image", "caption"} - set(reader.fieldnames or ())
    if missing:
        raise CusaError(
            f"{path}: the header row lacks {', '.join(sorted(missing))}; legal: image,caption[,image_id][,split]"
        )
    try:
        for row in reader:
            where = f"{path} line {reader.line_num}"
            if None in row or None in row.values():
                raise CusaError(f"{where}: not as many fields as the header; a caption with a comma needs quotes")
            yield where, row
    except csv.Error as error:
        raise CusaError(f"{path} line {reader.line_num} is not valid csv ({error}); repair or remove it") from None


def _split_from_name(path: Path, default: str | None = None) -> str:
    for token in re.split(r"[^a-z0-9]+", path.stem.lower()):
        name = _SPLIT_ALIASES.get(token, token)
        if name in SPLITS:
            return name
    if default is None:
        raise CusaError(f"{path}: its name tells no split; pass --dataset train={path} (or val=, test=)")
    return default


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise CusaError(f"{where}: expected an object with named fields, found {type(value).__name__}")
    return value


def _text(fields: Mapping[str, Any], key: str, where: str) -> str:
    value = fields.get(key)
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise CusaError(f"{where}: field {key!r} holds half a character (a lone surrogate); repair it") from None
    if isinstance(value, str) and "\0" in value:
        raise CusaError(f"{where}: field {key!r} holds a NUL character; repair it")
    if not isinstance(value, str) or (key != "caption" and key != "raw" and not value):
        raise CusaError(f"{where}: field {key!r} must be a text, found {value!r}")
    return value


def group_rows(rows: Iterable[_Row], source: str) -> dict[str, tuple[Record, ...]]:
    """Group rows by image id, in order of first appearance, into records per split.

    Raises:
        CusaError: If an image id stands for two files or two splits, or ids are not unique.
    """
    grouped: dict[str, dict[str, Record]] = {}
    for row in rows:
        of_split = grouped.setdefault(row.split, {})
        old = of_split.get(row.image_id)
        if old is None:
            ids = row.caption_ids or tuple(f"{row.image_id}#{k}" for k in range(len(row.captions)))
            of_split[row.image_id] = Record(row.image_id, row.image_path, row.captions, ids)
        elif old.image_path != row.image_path:
            raise CusaError(
                f"{source}: image id {row.image_id!r} stands for two files, {old.image_path} and {row.image_path}; "
                "give each image its own id"
            )
        else:
            captions = old.captions + row.captions
            ids = old.caption_ids + (
                row.caption_ids or tuple(f"{row.image_id}#{k}" for k in range(len(old.captions), len(captions)))
            )
            of_split[row.image_id] = replace(old, captions=captions, caption_ids=ids)
    splits = {name: tuple(grouped[name].values()) for name in SPLITS if name in grouped}
    check_splits(splits, source)
    return splits
