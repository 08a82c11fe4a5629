"""Data sets by name, or from annotation files, as records grouped by image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NoReturn

from cusa.data.errors import DataError
from cusa.data.readers import AnnotationRow, Annotations, Source, canonical_split, read_annotations
from cusa.data.readers.forms import described
from cusa.data.records import (
    SPLITS,
    AnnotationFile,
    Dataset,
    Record,
    Records,
    entry_location,
    entry_position,
)

# Images per split of the Karpathy splits; COCO's train includes restval.
KNOWN_SIZES = {
    "coco": {"train": 113_287, "val": 5_000, "test": 5_000},
    "flickr30k": {"train": 29_000, "val": 1_000, "test": 1_000},
}
_ANNOTATIONS = {"coco": "dataset_coco.json", "flickr30k": "dataset_flickr30k.json"}

Sources = str | Path | Sequence[str | Path]


def load_dataset(
    sources: Sources, image_root: Path | str | None = None, data_root: Path | str = "data"
) -> Dataset:
    """Read a data set by name or from annotation files.

    Args:
        sources: ``"coco"``, ``"flickr30k"`` (annotations and images under ``data_root/<name>``),
            ``"demo"`` (rendered there on first use), or the path of an annotation file; or several
            paths, which make one data set. A file of a form without splits (ALBEF, flat, COCO's
            own) takes its split from its name (``…_train.json``) or from ``train=PATH``.
        image_root: Folder that the image paths are relative to; by default the first annotation
            file's own folder, or the one above where the first image lies there instead.
        data_root: Where named data sets lie.

    Returns:
        The data set, its splits in the order train, val, test.

    Raises:
        DataError: If a file is missing, or ids cannot be joined; says which and what to do.
        FileFormatError: If a file is of no known form, or an entry of it is malformed; names the
            entry.
    """
    names = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    texts = [_as_utf8(os.fspath(name), "--dataset") for name in names]
    root = None if image_root is None else Path(_as_utf8(os.fspath(image_root), "--image-root"))
    if not texts:
        raise DataError(
            "no data set given; pass --dataset coco, flickr30k, demo or the path of an annotation file"
        )
    if texts == ["demo"]:
        from cusa.data.demo_set.make import make_demo

        return make_demo(Path(data_root) / "demo")
    if len(texts) == 1 and texts[0] in _ANNOTATIONS:
        return _load_named(texts[0], root, Path(data_root))
    return _load_files([_parse_source(text) for text in texts], root)


def _as_utf8(name: str, option: str) -> str:
    """A path that can be written down; others are refused before anything is computed."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{option} {name!r}: the name is not UTF-8; rename it", name=option
        ) from None
    return name


def _parse_source(text: str) -> tuple[str | None, Path]:
    """``train=PATH`` or ``PATH``; a file whose own name holds "=" wins."""
    head, equals, tail = text.partition("=")
    if equals and not Path(text).exists():
        return canonical_split(head, location=f"--dataset {text}"), Path(tail)
    return None, Path(text)


def _load_files(sources: Sequence[tuple[str | None, Path]], image_root: Path | None) -> Dataset:
    own_folder = sources[0][1].parent
    folders = [own_folder, own_folder.parent] if image_root is None else [image_root]
    name, splits, files = _read_files([Source(path, split, folders) for split, path in sources])
    root = _folder_of_images(folders, splits) or folders[0]
    return Dataset(name, root, splits, notes=_size_notes(name, splits), files=files)


def _load_named(name: str, image_root: Path | None, data_root: Path) -> Dataset:
    folder = data_root / name
    candidates = [folder / _ANNOTATIONS[name], folder / "annotations" / _ANNOTATIONS[name]]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise DataError(
            f"{candidates[0]} does not exist; put Karpathy's {_ANNOTATIONS[name]} and the images under {folder}/, or "
            "pass --data-root, or --dataset PATH --image-root FOLDER",
            path=candidates[0],
            name=name,
        )
    folders = [folder, folder / "images", folder / f"{name}-images", folder / f"{name}_images"]
    if image_root is not None:
        folders = [image_root]
    _, splits, files = _read_files([Source(path, None, folders)])
    root = _folder_of_images(folders, splits) or folders[0]
    return Dataset(name, root, splits, notes=_size_notes(name, splits), files=files)


def _folder_of_images(folders: Sequence[Path], splits: Mapping[str, Records]) -> Path | None:
    """The first of some folders that has the first image."""
    first = next(record for records in splits.values() for record in records)
    for folder in folders:
        if os.path.isfile(
            folder / first.image_path
        ):  # Path.is_file raises on names that are too long
            return folder
    return None


def _size_notes(name: str, splits: Mapping[str, Sequence[Record]]) -> tuple[str, ...]:
    """Differences from the known sizes of a data set of that name."""
    notes = []
    for split, expected in KNOWN_SIZES.get(name, {}).items():
        n_images = len(splits.get(split, ()))
        if n_images != expected:
            notes.append(
                f"{name} {split} has {n_images:,} images, the Karpathy split has {expected:,}"
            )
    return tuple(notes)


def _read_files(
    sources: Sequence[Source],
) -> tuple[str, dict[str, Records], tuple[AnnotationFile, ...]]:
    """The first file's name for the data set, the records of all files by split, and the files."""
    contents = [read_annotations(source) for source in sources]
    pairs = list(zip(sources, contents, strict=True))
    files = tuple(AnnotationFile(source.path, content.place) for source, content in pairs)
    rows = chain.from_iterable(
        _positioned(number, content) for number, content in enumerate(contents)
    )
    return contents[0].dataset_name, group_rows(rows, files), files


def _positioned(file_number: int, content: Annotations) -> Iterator[tuple[int, AnnotationRow]]:
    """A file's rows, each with its position."""
    for row in content.rows:
        yield entry_position(file_number, row.number), row


@dataclass(slots=True)
class _ImageGroup:
    """What the rows of one image have said so far."""

    split: str
    image_path: str
    captions: list[str] = field(default_factory=list)
    caption_ids: list[str] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)


def group_rows(
    rows: Iterable[tuple[int, AnnotationRow]], files: Sequence[AnnotationFile]
) -> dict[str, Records]:
    """Group rows by image id, in order of first appearance, into records per split.

    Args:
        rows: Each row with its position; see :func:`cusa.data.records.entry_position`.
        files: The files that they come from.

    Returns:
        Records by split, in the order train, val, test; splits without an image are left out.

    Raises:
        DataError: If there is no row, an image has no caption, an image id stands for two files or
            two splits, or a caption id is used twice; names the entries.
    """
    groups: dict[str, _ImageGroup] = {}
    all_caption_ids: set[str] = set()
    for position, row in rows:
        group = groups.get(row.image_id)
        if group is None:
            group = groups[row.image_id] = _ImageGroup(row.split, row.image_path)
        elif (group.split, group.image_path) != (row.split, row.image_path):
            _refuse_image(row, position, group, files)
        n_captions = len(group.captions)
        numbers = range(n_captions, n_captions + len(row.captions))
        caption_ids = row.caption_ids or [f"{row.image_id}#{number}" for number in numbers]
        for caption_id in caption_ids:
            if caption_id in all_caption_ids:
                _refuse_caption(caption_id, position, groups, files)
            all_caption_ids.add(caption_id)
        group.captions.extend(row.captions)
        group.caption_ids.extend(caption_ids)
        group.positions.extend([position] * max(1, len(row.captions)))
    if not groups:
        raise DataError(f"{_listing(files)}: holds no image-caption pair", path=files[0].path)
    return _records_by_split(groups, files)


def _records_by_split(
    groups: dict[str, _ImageGroup], files: Sequence[AnnotationFile]
) -> dict[str, Records]:
    """The groups as records, each taken out of the dictionary: not all are in memory twice."""
    records: dict[str, list[Record]] = {}
    for image_id in list(groups):
        group = groups.pop(image_id)
        if not group.captions:
            path, location = entry_location(files, group.positions[0])
            raise DataError(
                f"{path} {location}: image {described(image_id)} ({described(group.image_path)}) has no "
                "caption; remove it or caption it",
                path=path,
                location=location,
                name=image_id,
            )
        record = Record(
            image_id,
            group.image_path,
            tuple(group.captions),
            tuple(group.caption_ids),
            tuple(group.positions),
        )
        records.setdefault(group.split, []).append(record)
    return {split: tuple(records[split]) for split in SPLITS if split in records}


def _refuse_image(
    row: AnnotationRow, position: int, group: _ImageGroup, files: Sequence[AnnotationFile]
) -> NoReturn:
    """Say that an image id stands for two files or two splits."""
    path, location = entry_location(files, position)
    if row.image_path != group.image_path:
        problem = (
            f"stands for two files, {described(group.image_path)} and {described(row.image_path)}"
        )
    else:
        problem = f"is used twice, in the splits {group.split} and {row.split}"
    message = (
        f"{path} {location}: image id {described(row.image_id)} {problem} (before: "
        f"{_place(files, group.positions[0])}); give each image one id and one split"
    )
    raise DataError(message, path=path, location=location, name=row.image_id)


def _refuse_caption(
    caption_id: str,
    position: int,
    groups: Mapping[str, _ImageGroup],
    files: Sequence[AnnotationFile],
) -> NoReturn:
    """Say that a caption id is used twice."""
    path, location = entry_location(files, position)
    before = ""
    for group in groups.values():
        if caption_id in group.caption_ids:
            before = (
                f" (before: {_place(files, group.positions[group.caption_ids.index(caption_id)])})"
            )
    message = f"{path} {location}: caption id {described(caption_id)} is used twice{before}; caption ids must be unique"
    raise DataError(message, path=path, location=location, name=caption_id)


def _place(files: Sequence[AnnotationFile], position: int) -> str:
    return " ".join(map(str, entry_location(files, position)))


def _listing(files: Sequence[AnnotationFile]) -> str:
    return ", ".join(str(file.path) for file in files)
