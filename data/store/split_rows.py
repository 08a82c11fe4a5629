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

_MAX_SHOWN_IMAGES = 3


class CaptionedImages(Protocol):
    """The part of a split that is needed here."""

    @property
    def name(self) -> str:
        """Return the split's name."""

    @property
    def image_ids(self) -> Sequence[str]:
        """Return the id of each image row."""

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
    pairs = read_host_pairs(annotations, split.name)
    rows_by_id = split.find_images([pair.image_id for pair in pairs]).tolist()
    image_paths = _without_folder(split, [pair.image_path for pair in pairs])
    rows_by_path = split.find_images(image_paths).tolist()

    unused = _CaptionsOfImages(split)
    caption_rows = np.empty(len(pairs), np.int64)
    for number, pair in enumerate(pairs):
        # A host may count images in its own way: then its ids stand for other images here.
        image_rows = (rows_by_path[number], rows_by_id[number])
        if max(image_rows) < 0:
            _refuse(pair, f"split {split.name!r} has no image {described(pair.image_path)}")
        caption_row = None
        for image_row in image_rows:
            if caption_row is None and image_row >= 0:
                caption_row = unused.take(image_row, pair.caption)
        if caption_row is None:
            _refuse(
                pair,
                f"image {described(pair.image_path)} of split {split.name!r} does not have the "
                f"caption {described(pair.caption)}",
            )
        caption_rows[number] = caption_row
    return caption_rows


def _without_folder(
    split: CaptionedImages,
    paths: Sequence[str],
) -> Sequence[str]:
    """Return a host's image paths without the folder that they have before those of the split.

    The folder is what the first path has before the longest ending that the split has.
    """
    ending = paths[0]
    while split.find_images([ending])[0] < 0:
        _, slash, ending = ending.partition("/")
        if not slash:
            return paths
    folder = paths[0].removesuffix(ending)
    return [path.removeprefix(folder) for path in paths]


def _comparable(caption: str) -> str:
    """Return a caption after the paper's normaliser; as written, where that leaves nothing."""
    try:
        return normalize_caption(caption)
    except DataError:  # a store keeps captions that its text teacher skipped
        return caption.strip()


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
        rows = self._rows_of_text[image_row].get(_comparable(caption))
        if not rows:
            return None
        # The last row is kept: a host's file may repeat a caption more often than the store.
        if len(rows) > 1:
            return rows.pop(0)
        return rows[0]

    def texts(self, image_row: int) -> list[str]:
        """Return all captions of an image as they are compared, sorted."""
        first, last = self._caption_bounds(image_row)
        return sorted(_comparable(caption) for caption in self._split.captions[first:last])

    def _caption_bounds(self, image_row: int) -> tuple[int, int]:
        bounds = np.searchsorted(self._split.caption_image, (image_row, image_row + 1))
        return int(bounds[0]), int(bounds[1])

    def _read(self, image_row: int) -> dict[str, list[int]]:
        first, last = self._caption_bounds(image_row)
        rows_of_text: dict[str, list[int]] = defaultdict(list)
        for caption_row in range(first, last):
            rows_of_text[_comparable(self._split.captions[caption_row])].append(caption_row)
        return rows_of_text


def _images_with(
    texts: Sequence[str],
    images_of_text: Mapping[str, set[int]],
) -> set[int]:
    """Return the images that have all of these captions."""
    candidates = set(images_of_text.get(texts[0], ()))
    for text in texts[1:]:
        candidates &= images_of_text.get(text, set())
    return candidates


def rows_of_caption_lines(
    split: CaptionedImages,
    path: Path,
    per_image: int,
) -> np.ndarray:
    """Return the caption row of each line of a file that has ``per_image`` lines for each image.

    See :meth:`cusa.data.store.mapped_split.Split.rows_of_captions`.
    """
    if isinstance(per_image, bool) or not isinstance(per_image, int) or per_image < 1:
        raise DataError(
            f"per_image must be a whole number from 1, not {per_image!r}", name="per_image"
        )
    if not path.exists():
        raise DataError(f"{path} does not exist; pass a file with a caption a line", path=path)
    lines = read_lines(path)
    if not lines:
        raise DataError(f"{path} is empty; it must hold a caption a line", path=path)
    if len(lines) % per_image:
        raise DataError(
            f"{path} has {len(lines):,} lines, which is not a multiple of {per_image} captions per "
            "image; pass per_image",
            path=path,
            name="per_image",
        )
    images_of_text: dict[str, set[int]] = defaultdict(set)
    for caption, image_row in zip(split.captions, split.caption_image.tolist(), strict=True):
        images_of_text[_comparable(caption)].add(image_row)

    unused = _CaptionsOfImages(split)
    taken_images: set[int] = set()
    caption_rows = []
    for first in range(0, len(lines), per_image):
        block = lines[first : first + per_image]
        texts = sorted(map(_comparable, block))
        candidates = _images_with(texts, images_of_text)
        untaken = sorted(candidates - taken_images)
        if len(untaken) > 1:
            # Images with the same captions are taken in the order of the store.
            equal = [row for row in untaken if unused.texts(row) == texts]
            if not equal:
                _refuse_block(split, path, first, untaken)
            untaken = equal
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


def _refuse_block(
    split: CaptionedImages,
    path: Path,
    first: int,
    image_rows: Sequence[int],
) -> NoReturn:
    """Raise the error of lines that are captions of several images, which have others, too."""
    location = f"line {first + 1}"
    image_ids = [split.image_ids[row] for row in image_rows[:_MAX_SHOWN_IMAGES]]
    images = ", ".join(map(described, image_ids))
    raise DataError(
        f"{path} {location}: the images {images} of split {split.name!r} each have these captions "
        "and others; pass per_image as it is there, or annotations that name the images (rows_of)",
        path=path,
        location=location,
    )
