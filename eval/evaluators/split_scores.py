"""A model's scores of a split: which row is which image, and which column which caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cusa.data.errors import EmbeddingsError
from cusa.eval.evaluators.splits import EvaluatedSplit
from cusa.eval.metrics.relevance import group_members, positions_of_rows
from cusa.eval.metrics.score_matrix import ScoreMatrix
from cusa.eval.models.embedding_providers import positions_of_ids
from cusa.eval.models.scores import ScoresProvider

_CAPTIONS_PER_IMAGE = 5  # that evaluations of COCO count, whose images may have more


@dataclass(frozen=True)
class SplitScores:
    """Scores of a split's images and captions.

    Attributes:
        similarities: The scores.
        image_rows: int64 ``[n_images]``: the split's row of each image.
        text_rows: int64 ``[n_captions]``: the split's row of each caption.
        caption_image: int64 ``[n_captions]``: index of each caption's image, -1 where it has no
            scores.
        note: What was taken for granted; empty if nothing was.
    """

    similarities: ScoreMatrix
    image_rows: np.ndarray
    text_rows: np.ndarray
    caption_image: np.ndarray
    note: str


def split_scores(provider: ScoresProvider, split: EvaluatedSplit) -> SplitScores:
    """Find the rows and columns of a split's images and captions; no score is read.

    Args:
        provider: The scores, by ids or in the split's order.
        split: The split; its skipped images and captions are left out.

    Raises:
        EmbeddingsError: If ids are missing, or there are none and the matrix has another shape.
    """
    view = split.view
    image_rows = np.setdiff1d(np.arange(view.n_images), split.skipped_images)
    text_rows = np.setdiff1d(np.arange(view.n_captions), split.skipped_captions)
    n_rows, n_columns = provider.scores.shape
    images = _positions(provider.image_ids, view.image_ids, image_rows, n_rows, "images")
    captions = _positions(provider.text_ids, view.caption_ids, text_rows, n_columns, "captions")
    note = ""
    if captions is None:
        captions, text_rows = _first_captions(split, n_columns)
        note = (
            f"{provider.path}: its columns are taken for the first {_CAPTIONS_PER_IMAGE} captions "
            "of each image in the split's order; --text-ids names them"
        )
    if images is None or captions is None:
        raise _wrong_shape(provider, split)
    image_position = positions_of_rows(image_rows, view.n_images)
    return SplitScores(
        ScoreMatrix(provider.scores, images, captions),
        image_rows,
        text_rows,
        image_position[np.asarray(view.caption_image)[text_rows]],
        note,
    )


def _positions(
    file_ids: Sequence[str] | None,
    split_ids: Sequence[str],
    kept_rows: np.ndarray,
    n_in_file: int,
    items_name: str,
) -> np.ndarray | None:
    """Return the position in the file of each of the split's rows that are kept.

    Without ids, the file has all of the split's rows in order, or those that are kept; ``None`` if
    it has another number.
    """
    if file_ids is not None:
        kept_ids = [split_ids[row] for row in kept_rows.tolist()]
        return positions_of_ids(file_ids, kept_ids, items_name)
    if n_in_file == len(split_ids):
        return kept_rows
    if n_in_file == len(kept_rows):
        return np.arange(n_in_file)
    return None


def _first_captions(split: EvaluatedSplit, n_columns: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Take columns for the first captions of each image, as evaluations of COCO count them.

    Returns:
        The position of each kept caption in the file, ``None`` if the number of columns is another;
        and the split's row of each.
    """
    all_images = np.arange(split.view.n_images)
    members = group_members(np.asarray(split.view.caption_image), all_images)
    first = np.concatenate([captions[:_CAPTIONS_PER_IMAGE] for captions in members])
    kept = np.flatnonzero(~np.isin(first, split.skipped_captions))
    is_convention = len(first) == _CAPTIONS_PER_IMAGE * len(all_images)
    if not is_convention or n_columns != len(first):
        return None, first
    return kept, first[kept]


def _wrong_shape(provider: ScoresProvider, split: EvaluatedSplit) -> EmbeddingsError:
    view = split.view
    shape = list(provider.scores.shape)
    advice = "give [images, captions] in the split's order, or pass --image-ids and --text-ids"
    if shape == [view.n_captions, view.n_images]:
        advice = "transpose it"
    return EmbeddingsError(
        f"{provider.path} holds scores {shape}, but {split.title} has {view.n_images:,} images and "
        f"{view.n_captions:,} captions; {advice}",
        path=provider.path,
        name="scores",
    )
