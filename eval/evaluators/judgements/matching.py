"""Which images and captions of a split the pairs of a file of judgements are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.errors import DataError
from cusa.data.records import SplitView
from cusa.eval.evaluators.judgements.data import JudgedPair, JudgementFile
from cusa.eval.evaluators.splits import EvaluatedSplit
from cusa.eval.metrics.relevance import positions_of_rows


@dataclass(frozen=True)
class SplitJudgements:
    """The judged pairs of a split that has embeddings.

    Attributes:
        images: int64 ``[pairs]``: position of each image among the embeddings.
        captions: int64 ``[pairs]``: position of each caption.
        scores: float64 ``[pairs]``: people's.
        is_positive: bool ``[pairs]``: whether they say that the caption describes the image.
        notes: What a reader of figures should know, such as pairs that were left out.
    """

    images: np.ndarray
    captions: np.ndarray
    scores: np.ndarray
    is_positive: np.ndarray
    notes: tuple[str, ...]


def match_judgements(
    file: JudgementFile, split: EvaluatedSplit, embeddings: SplitEmbeddings
) -> SplitJudgements:
    """Find the judged images and captions among embeddings.

    Args:
        file: The judgements.
        split: The split; its images are known by their file names, its captions by their number
            within their image.
        embeddings: Embeddings of the split.

    Raises:
        DataError: If none of the pairs is among them, or an image's name stands for several.
    """
    check_is_of_split(file, split)
    image_position = positions_of_rows(embeddings.image_rows, split.view.n_images)
    caption_position = positions_of_rows(embeddings.text_rows, split.view.n_captions)
    elsewhere: list[JudgedPair] = []
    n_skipped = 0
    images, captions, scores, is_positive = [], [], [], []
    for pair, rows in zip(file.pairs, _rows_in_split(file, split), strict=True):
        if rows is None:
            elsewhere.append(pair)
            continue
        image, caption = image_position[rows[0]], caption_position[rows[1]]
        if image < 0 or caption < 0:
            n_skipped += 1
            continue
        images.append(image)
        captions.append(caption)
        scores.append(pair.score)
        is_positive.append(pair.is_positive)
    return SplitJudgements(
        np.array(images, np.int64),
        np.array(captions, np.int64),
        np.array(scores, np.float64),
        np.array(is_positive, bool),
        tuple(_notes(file, split, elsewhere, n_skipped)),
    )


def _notes(
    file: JudgementFile, split: EvaluatedSplit, elsewhere: Sequence[JudgedPair], n_skipped: int
) -> Iterator[str]:
    """Say which pairs are left out."""
    if elsewhere:
        first = elsewhere[0]
        yield (
            f"{len(elsewhere):,} of {len(file.pairs):,} pairs are not in {split.dataset} "
            f"{split.view.name} and are left out, first {first.image_name} with "
            f"{first.caption_of}#{first.caption_number}"
        )
    if n_skipped:
        yield f"{n_skipped:,} pairs have no embedding and are left out"


def check_is_of_split(file: JudgementFile, split: EvaluatedSplit) -> None:
    """Refuse judgements of another split before anything is embedded.

    Raises:
        DataError: If none of the pairs is in the split, or an image's name stands for several.
    """
    if not any(_rows_in_split(file, split)):
        raise DataError(
            f"none of the {len(file.pairs):,} pairs of {file.path} is in {split.dataset} "
            f"{split.view.name}; judgements go with the split that they were made on, under the "
            "images' file names",
            path=file.path,
        )


def _rows_in_split(file: JudgementFile, split: EvaluatedSplit) -> list[tuple[int, int] | None]:
    """Find the image row and the caption row of each pair; ``None`` for one that is elsewhere."""
    row_of_name = _image_rows_by_name(split.view)
    captions_of_image = _caption_rows_by_image(split.view)
    rows: list[tuple[int, int] | None] = []
    for pair in file.pairs:
        for name in (pair.image_name, pair.caption_of):
            if row_of_name.get(name, 0) < 0:
                raise DataError(
                    f"{file.path} judges {name}, and several images of {split.dataset} "
                    f"{split.view.name} are called so; rename them",
                    path=file.path,
                    name=name,
                )
        image_row = row_of_name.get(pair.image_name)
        writer_row = row_of_name.get(pair.caption_of)
        if image_row is None or writer_row is None:
            rows.append(None)
            continue
        own_captions = captions_of_image[writer_row]
        if pair.caption_number < len(own_captions):
            rows.append((image_row, int(own_captions[pair.caption_number])))
        else:
            rows.append(None)
    return rows


def _image_rows_by_name(view: SplitView) -> dict[str, int]:
    """Map file names to image rows; -1 where several images have the name."""
    row_of_name: dict[str, int] = {}
    for row in range(view.n_images):
        name = PurePosixPath(view.image_paths[row]).name
        row_of_name[name] = -1 if name in row_of_name else row
    return row_of_name


def _caption_rows_by_image(view: SplitView) -> list[np.ndarray]:
    """List the caption rows of each image row, in order."""
    caption_image = np.asarray(view.caption_image)
    in_order = np.argsort(caption_image, kind="stable")
    stops = np.searchsorted(caption_image[in_order], np.arange(1, view.n_images))
    return np.split(in_order, stops)
