"""Matching of a host code base's own captions to the rows of a split, by text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np

from cusa.data.captions import normalize_caption
from cusa.data.errors import DataError
from cusa.data.host_rows import HostPair, read_host_pairs
from cusa.data.lines import read_lines
from cusa.data.parsing import described


class CaptionedImages(Protocol):
    """The part of a split that is needed here."""

    @property
    def name(self) -> str:
        """Return the split's name."""

    @property
    def captions(self) -> Sequence[str]:
        """Return the caption of each caption row, as written."""

    @property
    def caption_image(self) -> np.ndarray:
        """Return the image row of each caption: int64 ``[n_captions]``."""

    def find_images(self, ids_or_paths: Sequence[str]) -> np.ndarray:
        """Return the image row of each id or path: int64 ``[n]``; -1 for unknown ones."""


def rows_of_annotations(
    split: CaptionedImages,
    annotations: str | Path | Sequence[Mapping[str, Any]],
) -> np.ndarray:
    """Return the caption row of each caption of a host's annotations, in order.

    See :meth:`cusa.data.store.mapped_split.Split.rows_of`.
    """
    pairs = read_host_pairs(annotations)
    image_rows = split.find_images([pair.image_id for pair in pairs])
    unknown = np.flatnonzero(image_rows < 0)
    paths = [pairs[number].image_path for number in unknown.tolist()]
    image_rows[unknown] = split.find_images(paths)

    unused = _CaptionsOfImages(split)
    caption_rows = np.empty(len(pairs), np.int64)
    for number, (pair, image_row) in enumerate(zip(pairs, image_rows.tolist(), strict=True)):
        if image_row < 0:
            _refuse(pair, f"split {split.name!r} has no image {described(pair.image_path)}")
        caption_row = unused.take(image_row, pair.caption)
        if caption_row is None:
            _refuse(
                pair,
                f"image {described(pair.image_path)} of split {split.name!r} does not have the "
                f"caption {described(pair.caption)}",
            )
        caption_rows[number] = caption_row
    return caption_rows


def _refuse(
    pair: HostPair,
    problem: str,
) -> NoReturn:
    raise DataError(
        f"{pair.path} {pair.location}: {problem}; is this the file that the store was made from?",
        path=pair.path,
        location=pair.location,
        name=pair.image_id,
    )


class _CaptionsOfImages:
    """The captions of each image by text, so that repeated captions get different rows."""

    def __init__(self, split: CaptionedImages) -> None:
        self._split = split
        self._rows_of_text: dict[int, dict[str, list[int]]] = {}

    def take(
        self,
        image_row: int,
        caption: str,
    ) -> int | None:
        """Return the next row of an image's caption with this text, or ``None``.

        Texts are compared after normalisation.
        """
        if image_row not in self._rows_of_text:
            self._rows_of_text[image_row] = self._read(image_row)
        rows = self._rows_of_text[image_row].get(normalize_caption(caption))
        if not rows:
            return None
        # The last row is kept: a host's file may repeat a caption more often than the store.
        if len(rows) > 1:
            return rows.pop(0)
        return rows[0]

    def _read(self, image_row: int) -> dict[str, list[int]]:
        first, last = np.searchsorted(
            self._split.caption_image, (image_row, image_row + 1)
        ).tolist()
        rows_of_text: dict[str, list[int]] = defaultdict(list)
        for caption_row in range(first, last):
            rows_of_text[normalize_caption(self._split.captions[caption_row])].append(caption_row)
        return rows_of_text


def _images_with(
    captions: Sequence[str],
    images_of_text: Mapping[str, set[int]],
) -> set[int]:
    """Return the images that have all of these captions."""
    candidates: set[int] | None = None
    for caption in captions:
        images = images_of_text.get(normalize_caption(caption), set())
        if candidates is None:
            candidates = set(images)
        candidates &= images
    return candidates or set()


def rows_of_caption_lines(
    split: CaptionedImages,
    path: Path,
    per_image: int,
) -> np.ndarray:
    """Return the caption row of each line of a file that has ``per_image`` lines for each image.

    See :meth:`cusa.data.store.mapped_split.Split.rows_of_captions`.
    """
    lines = read_lines(path)
    if len(lines) % per_image:
        raise DataError(
            f"{path} has {len(lines):,} lines, which is not a multiple of {per_image} captions per "
            "image; pass per_image",
            path=path,
            name="per_image",
        )
    images_of_text: dict[str, set[int]] = defaultdict(set)
    for caption, image_row in zip(split.captions, split.caption_image.tolist(), strict=True):
        images_of_text[normalize_caption(caption)].add(image_row)

    unused = _CaptionsOfImages(split)
    taken_images: set[int] = set()
    caption_rows = []
    for first in range(0, len(lines), per_image):
        block = lines[first : first + per_image]
        candidates = _images_with(block, images_of_text)
        # Images with the same captions are assigned in the order of the store.
        untaken = sorted(candidates - taken_images)
        if not untaken:
            location = f"line {first + 1}"
            raise DataError(
                f"{path} {location}: no image of split {split.name!r} has these {per_image} "
                f"captions, the first {described(block[0])}; is this the file of that split, with "
                f"{per_image} captions per image?",
                path=path,
                location=location,
            )
        taken_images.add(untaken[0])
        for line in block:
            caption_row = unused.take(untaken[0], line)
            assert caption_row is not None
            caption_rows.append(caption_row)
    return np.array(caption_rows, np.int64)
