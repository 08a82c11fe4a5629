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
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    source_texts = [_as_utf8(os.fspath(source), "--dataset") for source in sources]
    given_root = None
    if image_root is not None:
        given_root = Path(_as_utf8(os.fspath(image_root), "--image-root"))
    if not source_texts:
        raise DataError(
            "no data set given; pass --dataset coco, flickr30k, demo or the path of an annotation "
            "file"
        )

    if source_texts == ["demo"]:
        from cusa.data.demo_set.make import make_demo

        return make_demo(Path(data_root) / "demo")
    if len(source_texts) == 1 and source_texts[0] in _ANNOTATIONS:
        return _load_named(source_texts[0], given_root, Path(data_root))
    paths_by_split = [_parse_source(text) for text in source_texts]
    return _load_files(paths_by_split, given_root)


def _as_utf8(name: str, option: str) -> str:
    """Return a path that can be written down; others are refused before anything is computed."""
    try:
        name.encode()
    except UnicodeEncodeError:
        message = f"{option} {name!r}: the name is not UTF-8; rename it"
        raise DataError(message, name=option) from None
    return name


def _parse_source(text: str) -> tuple[str | None, Path]:
    """Split ``train=PATH`` into the split and the path; of ``PATH`` alone, the split is ``None``.

    A file whose own name holds "=" wins.
    """
    split_name, equals, path = text.partition("=")
    if equals and not Path(text).exists():
        split = canonical_split(split_name, location=f"--dataset {text}")
        return split, Path(path)
    return None, Path(text)


def _load_files(
    paths_by_split: Sequence[tuple[str | None, Path]],
    image_root: Path | None,
) -> Dataset:
    """Read a data set from annotation files, each with its split or ``None``."""
    _, first_path = paths_by_split[0]
    folders = [first_path.parent, first_path.parent.parent]
    if image_root is not None:
        folders = [image_root]
    return _read_files([Source(path, split, folders) for split, path in paths_by_split])


def _load_named(name: str, image_root: Path | None, data_root: Path) -> Dataset:
    """Read COCO or Flickr30k from their usual places under the data root."""
    folder = data_root / name
    file_name = _ANNOTATIONS[name]
    path = folder / file_name
    if not path.is_file():
        path = folder / "annotations" / file_name
    if not path.is_file():
        raise DataError(
            f"{folder / file_name} does not exist; put Karpathy's {file_name} and the images under "
            f"{folder}/, or pass --data-root, or --dataset PATH --image-root FOLDER",
            path=folder / file_name,
            name=name,
        )

    folders = [
        folder,
        folder / "images",
        folder / f"{name}-images",
        folder / f"{name}_images",
    ]
    if image_root is not None:
        folders = [image_root]
    return _read_files([Source(path, None, folders)], name)


def _folder_of_images(folders: Sequence[Path], splits: Mapping[str, Records]) -> Path | None:
    """Return the first folder that has the first image, or ``None``."""
    first_record = next(chain.from_iterable(splits.values()))
    for folder in folders:
        # Path.is_file raises on names that are too long.
        if os.path.isfile(folder / first_record.image_path):
            return folder
    return None


def _size_notes(name: str, splits: Mapping[str, Sequence[Record]]) -> tuple[str, ...]:
    """Describe how a data set differs from the known sizes of the one of that name."""
    notes = []
    for split, expected in KNOWN_SIZES.get(name, {}).items():
        n_images = len(splits.get(split, ()))
        if n_images != expected:
            note = f"{name} {split} has {n_images:,} images, the Karpathy split has {expected:,}"
            notes.append(note)
    return tuple(notes)


def _read_files(sources: Sequence[Source], name: str | None = None) -> Dataset:
    """Read a data set from annotation files.

    Args:
        sources: The files; the first one's folders are where the images may lie.
        name: Name of the data set; ``None``: as the first file says.
    """
    annotations = [read_annotations(source) for source in sources]
    files = []
    for source, content in zip(sources, annotations, strict=True):
        files.append(AnnotationFile(source.path, content.location_format))
    splits = group_rows(_positioned_rows(annotations), files)

    name = name or annotations[0].dataset_name
    folders = sources[0].image_folders
    return Dataset(
        name,
        image_root=_folder_of_images(folders, splits) or folders[0],
        splits=splits,
        notes=_size_notes(name, splits),
        files=tuple(files),
    )


def _positioned_rows(
    annotations: Iterable[Annotations],
) -> Iterator[tuple[int, AnnotationRow]]:
    """Yield the rows of all files, each with its position."""
    for file_number, content in enumerate(annotations):
        for row in content.rows:
            yield entry_position(file_number, row.number), row


@dataclass(slots=True)
class _ImageGroup:
    """The rows of one image that were read so far."""

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

        caption_ids = row.caption_ids or _numbered_ids(row, len(group.captions))
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


def _numbered_ids(row: AnnotationRow, first_number: int) -> list[str]:
    """Return an id for each caption of a row: its image's id and its number."""
    numbers = range(first_number, first_number + len(row.captions))
    return [f"{row.image_id}#{number}" for number in numbers]


def _records_by_split(
    groups: dict[str, _ImageGroup],
    files: Sequence[AnnotationFile],
) -> dict[str, Records]:
    """Turn groups into records by split.

    Each group is taken out of the dictionary: not all are in memory twice.
    """
    records: dict[str, list[Record]] = {}
    for image_id in list(groups):
        group = groups.pop(image_id)
        if not group.captions:
            path, location = entry_location(files, group.positions[0])
            raise DataError(
                f"{path} {location}: image {described(image_id)} ({described(group.image_path)}) "
                "has no caption; remove it or caption it",
                path=path,
                location=location,
                name=image_id,
            )
        record = Record(
            image_id=image_id,
            image_path=group.image_path,
            captions=tuple(group.captions),
            caption_ids=tuple(group.caption_ids),
            positions=tuple(group.positions),
        )
        records.setdefault(group.split, []).append(record)
    return {split: tuple(records[split]) for split in SPLITS if split in records}


def _refuse_image(
    row: AnnotationRow,
    position: int,
    group: _ImageGroup,
    files: Sequence[AnnotationFile],
) -> NoReturn:
    """Raise the error of an image id that stands for two files or two splits."""
    path, location = entry_location(files, position)
    if row.image_path != group.image_path:
        both_paths = f"{described(group.image_path)} and {described(row.image_path)}"
        problem = f"stands for two files, {both_paths}"
    else:
        problem = f"is used twice, in the splits {group.split} and {row.split}"
    before = _location_text(files, group.positions[0])
    message = (
        f"{path} {location}: image id {described(row.image_id)} {problem} (before: {before}); "
        "give each image one id and one split"
    )
    raise DataError(message, path=path, location=location, name=row.image_id)


def _refuse_caption(
    caption_id: str,
    position: int,
    groups: Mapping[str, _ImageGroup],
    files: Sequence[AnnotationFile],
) -> NoReturn:
    """Raise the error of a caption id that is used twice."""
    path, location = entry_location(files, position)
    before = ""
    for group in groups.values():
        if caption_id in group.caption_ids:
            first_position = group.positions[group.caption_ids.index(caption_id)]
            before = f" (before: {_location_text(files, first_position)})"
    message = (
        f"{path} {location}: caption id {described(caption_id)} is used twice{before}; caption ids "
        "must be unique"
    )
    raise DataError(message, path=path, location=location, name=caption_id)


def _location_text(files: Sequence[AnnotationFile], position: int) -> str:
    path, location = entry_location(files, position)
    return f"{path} {location}"


def _listing(files: Sequence[AnnotationFile]) -> str:
    return ", ".join(str(file.path) for file in files)
