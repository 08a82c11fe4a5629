"""The pairs of a host code base's own annotations, in order, so that their rows can be found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def read_host_pairs(annotations: str | Path | Sequence[Mapping[str, Any]]) -> list[HostPair]:
    """Read a host's captions in file order, one pair for each caption of an entry.

    Args:
        annotations: An annotation file of any known form, or its rows.

    Raises:
        DataError: If there is no such file, or it is empty.
        FileFormatError: If the file has no known form, or an entry is malformed; names the entry.
    """
    source = Source(memory.PATH, "train", [Path()])
    content: Annotations
    if memory.is_rows(annotations):
        content = memory.read_rows(annotations, source)
    else:
        source = Source(Path(str(annotations)), "train", [Path(str(annotations)).parent])
        content = read_annotations(source)
    pairs = []
    for row in content.rows:
        location = content.location_format.format(row.number)
        for caption in row.captions:
            pairs.append(HostPair(row.image_id, row.image_path, caption, source.path, location))
    return pairs
