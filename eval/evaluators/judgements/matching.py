"""Matching of judged pairs with the images and captions of a split."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.errors import DataError
from cusa.eval.evaluators.judgements.data import JudgementFile
from cusa.eval.evaluators.splits import EvaluatedSplit
from cusa.eval.metrics.relevance import group_members, positions_of_rows


@dataclass(frozen=True)
class SplitJudgements:
    """The judged pairs of a split that have embeddings.

    Attributes:
        images: int64 ``[pairs]``: position of each pair's image among the embeddings.
        captions: int64 ``[pairs]``: position of each pair's caption.
        scores: float64 ``[pairs]``: the human score of each pair.
        is_positive: bool ``[pairs]``: whether people say that the caption describes the image.
        notes: Remarks on the figures, such as pairs that were left out.
    """

    images: np.ndarray
    captions: np.ndarray
    scores: np.ndarray
    is_positive: np.ndarray
    notes: tuple[str, ...]


def rows_in_split(file: JudgementFile, split: EvaluatedSplit) -> np.ndarray:
    """Find the judged images in a split by file name, and the captions by their number.

    Args:
        file: The judgements.
        split: The split.

    Returns:
        int64 ``[pairs, 2]``: the image row and the caption row of each pair; -1 for both if the
        pair is not in the split.

    Raises:
        DataError: If no pair is in the split, or several images have a judged file name.
    """
    view = split.view
    row_of_name = _rows_by_file_name(file, split)
    caption_rows = group_members(np.asarray(view.caption_image), np.arange(view.n_images))
    rows = np.full((len(file.pairs), 2), -1)
    for number, pair in enumerate(file.pairs):
        judged_row = row_of_name.get(pair.image_name)
        described_row = row_of_name.get(pair.caption_of)
        if judged_row is None or described_row is None:
            continue
        captions = caption_rows[described_row]
        if pair.caption_number < len(captions):
            rows[number] = judged_row, captions[pair.caption_number]
    if (rows < 0).all():
        raise DataError(
            f"none of the {len(file.pairs):,} pairs of {file.path} is in {split.dataset} "
            f"{view.name}; pass the split that people judged, with the images' original file names",
            path=file.path,
        )
    return rows


def _rows_by_file_name(file: JudgementFile, split: EvaluatedSplit) -> dict[str, int]:
    """Return the image row of each file name; refuse a judged name that several images have."""
    view = split.view
    names = [PurePosixPath(view.image_paths[row]).name for row in range(view.n_images)]
    n_images = Counter(names)
    for pair in file.pairs:
        for name in (pair.image_name, pair.caption_of):
            if n_images[name] > 1:
                raise DataError(
                    f"{file.path} judges {name}, but several images of {split.dataset} "
                    f"{view.name} have that name; rename them",
                    path=file.path,
                    name=name,
                )
    return dict(zip(names, range(view.n_images), strict=True))


def match_judgements(
    file: JudgementFile, split: EvaluatedSplit, rows: np.ndarray, embeddings: SplitEmbeddings
) -> SplitJudgements:
    """Find the judged images and captions among a split's embeddings.

    Args:
        file: The judgements.
        split: The split.
        rows: int64 ``[pairs, 2]``, as :func:`rows_in_split` returns them.
        embeddings: Embeddings of the split.
    """
    in_split = rows[:, 0] >= 0
    image_rows, caption_rows = rows[in_split].T
    images = positions_of_rows(embeddings.image_rows, split.view.n_images)[image_rows]
    captions = positions_of_rows(embeddings.text_rows, split.view.n_captions)[caption_rows]
    is_embedded = (images >= 0) & (captions >= 0)
    notes = []
    n_elsewhere = int(np.count_nonzero(~in_split))
    if n_elsewhere:
        first = file.pairs[int(in_split.argmin())]
        notes.append(
            f"{n_elsewhere:,} of {len(file.pairs):,} pairs are not in {split.dataset} "
            f"{split.view.name} and are left out, first {first.image_name} with "
            f"{first.caption_of}#{first.caption_number}"
        )
    n_skipped = int(np.count_nonzero(~is_embedded))
    if n_skipped:
        notes.append(f"{n_skipped:,} pairs have no embedding and are left out")
    scores = np.array([pair.score for pair in file.pairs], np.float64)
    is_positive = np.array([pair.is_positive for pair in file.pairs], bool)
    return SplitJudgements(
        images[is_embedded],
        captions[is_embedded],
        scores[in_split][is_embedded],
        is_positive[in_split][is_embedded],
        tuple(notes),
    )
