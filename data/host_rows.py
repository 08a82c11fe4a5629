"""The pairs of a host code base's own annotations, in order, so that their rows can be found."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cusa.data.errors import DataError
from cusa.data.readers import Source, memory, read_annotations
from cusa.data.readers.forms import Annotations


@dataclass(frozen=True)
class HostPair:
    """A caption of a host's annotations, with its image.

    Attributes:
        image_id: Id of the image.
        image_path: Path of the image.
        caption: The caption, as written.
        path: The annotation file.
        location: The entry of that file, such as ``"line 3"``.
    """

    image_id: str
    image_path: str
    caption: str
    path: Path
    location: str


def read_host_pairs(
    annotations: str | Path | Sequence[Mapping[str, Any]], split: str
) -> list[HostPair]:
    """Read a host's captions in their order: of an entry with several, one after the other.

    Args:
        annotations: An annotation file of any form, or its rows.
        split: The split that they are of.

    Raises:
        DataError: If it cannot be read, or holds no caption; names file and entry.
    """
    source = Source(memory.PATH, split, [Path()])
    contents: list[Annotations]
    if memory.is_rows(annotations):
        contents = memory.read_rows(annotations, source)
    elif isinstance(annotations, str | os.PathLike):
        path = Path(annotations)
        source = Source(path, split, [path.parent])
        contents = [read_annotations(source)]
    else:
        problem = f"annotations cannot be of type {type(annotations).__name__}"
        if isinstance(annotations, Sequence) and not annotations:
            problem = "annotations are empty"
        message = f"{problem}; pass the path of an annotation file, or {memory.LEGAL_ROWS}"
        raise DataError(message, name="annotations")
    pairs: list[HostPair] = []
    for content in contents:
        pairs.extend(_pairs(content, source.path))
    if not pairs:
        message = f"{source.path}: no image-caption pair in it; give it at least one"
        raise DataError(message, path=source.path)
    return pairs


def _pairs(content: Annotations, path: Path) -> Iterator[HostPair]:
    for row in content.rows:
        location = content.location_format.format(row.number)
        for caption in row.captions:
            yield HostPair(row.image_id, row.image_path, caption, path, location)
