"""Pairs of a host's own files, in their order: to find the rows of a store that belong to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cusa.data.readers import Source, memory, read_annotations
from cusa.data.readers.forms import Annotations


@dataclass(frozen=True)
class HostPair:
    """A caption as a host has it.

    Attributes:
        image_id: Id of its image.
        image_path: Path of its image.
        caption: The caption.
        path: The file that it stands in.
        location: Where in it.
    """

    image_id: str
    image_path: str
    caption: str
    path: Path
    location: str


def read_host_pairs(annotations: str | Path | Sequence[Mapping[str, Any]]) -> list[HostPair]:
    """Read a host's captions in their order: of an entry with several, one after the other.

    Args:
        annotations: An annotation file of any form, or its rows.

    Raises:
        DataError: If it cannot be read; names file and entry.
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
