"""Grouping of annotation rows by image, into records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from cusa.data.errors import DataError
from cusa.data.parsing import described
from cusa.data.readers.forms import AnnotationRow
from cusa.data.records import SPLITS, AnnotationFile, Record, Records, entry_location


@dataclass(slots=True)
class _ImageGroup:
    """What the rows read so far say of one image."""

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
        files: The files that the rows come from.

    Returns:
        Records by split, in the order train, val, test; splits without an image are left out.

    Raises:
        DataError: If there is no row, an image has no caption, an image id is used for two files or
            in two splits, or a caption id is used twice; names the entries.
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
        paths = ", ".join(str(file.path) for file in files)
        message = f"{paths}: no image-caption pair in it; give it at least one"
        raise DataError(message, path=files[0].path)
    return _records_by_split(groups, files)


def _numbered_ids(row: AnnotationRow, first_number: int) -> list[str]:
    """Return an id for each caption of a row: the image's id and the caption's number."""
    numbers = range(first_number, first_number + len(row.captions))
    return [f"{row.image_id}#{number}" for number in numbers]


def _records_by_split(
    groups: dict[str, _ImageGroup], files: Sequence[AnnotationFile]
) -> dict[str, Records]:
    """Turn groups into records by split.

    Each group is popped from the dictionary, so that the captions are not in memory twice.
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
    row: AnnotationRow, position: int, group: _ImageGroup, files: Sequence[AnnotationFile]
) -> NoReturn:
    """Raise the error of an image id that is used for two files or in two splits."""
    path, location = entry_location(files, position)
    if row.image_path != group.image_path:
        image_paths = f"{described(group.image_path)} and {described(row.image_path)}"
        problem = f"is used for two files, {image_paths}"
    else:
        problem = f"is used twice, in the splits {group.split} and {row.split}"
    first_path, first_location = entry_location(files, group.positions[0])
    message = (
        f"{path} {location}: image id {described(row.image_id)} {problem} (first used: "
        f"{first_path} {first_location}); give each image one id and one split"
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
    first_use = ""
    for group in groups.values():
        if caption_id in group.caption_ids:
            first_position = group.positions[group.caption_ids.index(caption_id)]
            first_path, first_location = entry_location(files, first_position)
            first_use = f" (first used: {first_path} {first_location})"
    message = (
        f"{path} {location}: caption id {described(caption_id)} is used twice{first_use}; caption "
        "ids must be unique"
    )
    raise DataError(message, path=path, location=location, name=caption_id)
