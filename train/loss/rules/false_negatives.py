"""Rules that take likely false negatives out of the contrastive loss: masks, not labels."""

from __future__ import annotations

import torch
from torch import Tensor

from cusa.train.loss.config import LossConfig
from cusa.train.loss.rules.settings import GuideConfig, SelfGuideConfig
from cusa.train.loss.rules.tile import Tile

# Cosines that are equal but for rounding, such as those of two copies of a caption, are not greater
# than each other: those within so many times their dtype's precision, 1e-6 in float32.
_ROUNDINGS = 10


def guide_mask(
    tile: Tile,
    loss_config: LossConfig,
) -> Tensor:
    """GISTEmbed (Solatorio, arXiv 2402.16829): candidates that the guide finds too alike leave.

    Candidate j of query i leaves the softmax where ``s_ij > s_ii - margin``, or ``s_ij > s_ii -
    margin |s_ii|`` with a relative one; the paper's margin is 0. Teachers of one modality compare
    pairs by it in both directions, and ``s_ii`` is 1: with a margin of 0, nothing leaves.
    Candidates of the query's own image stay. Needs the teachers of ``guide.teacher``. Where
    ``xclr`` and CSA call a false negative partly right, this says nothing of it.

    Returns:
        bool ``[n, M]``: which candidates stay.
    """
    guide = loss_config.guide
    image_teachers, text_teachers = tile.uni
    match guide.teacher:
        case "image":
            return _stays(image_teachers.mean_cosines(), tile, guide)
        case "text":
            return _stays(text_teachers.mean_cosines(), tile, guide)
        case "cross":
            return _stays(tile.cross.mean_cosines(), tile, guide)
    stays_by_image = _stays(image_teachers.mean_cosines(), tile, guide)
    stays_by_text = _stays(text_teachers.mean_cosines(), tile, guide)
    if guide.teacher == "both":
        return stays_by_image | stays_by_text
    return stays_by_image & stays_by_text


def self_guide_mask(
    tile: Tile,
    loss_config: LossConfig,
) -> Tensor:
    """Return ``guide``'s mask by the student's own cosines, without a gradient: no teacher.

    ``s_ii`` is then the student's cosine of the true pair. The settings are ``loss.self_guide``.

    Returns:
        bool ``[n, M]``: which candidates stay.
    """
    assert tile.student is not None, "the caller gives the student's cosines"
    return _stays(tile.student, tile, loss_config.self_guide)


def _stays(
    cosines: Tensor,
    tile: Tile,
    guide: GuideConfig | SelfGuideConfig,
) -> Tensor:
    """Return which candidates are positives, or not too much like the true pair: ``[n, M]``."""
    true_pairs = cosines.diagonal(tile.queries.start)
    threshold = true_pairs - guide.margin
    if guide.relative:
        threshold = true_pairs - guide.margin * true_pairs.abs()
    greatest = threshold[:, None] + _ROUNDINGS * torch.finfo(cosines.dtype).eps
    is_positive = tile.hard_labels() > 0
    return (cosines <= greatest) | is_positive
