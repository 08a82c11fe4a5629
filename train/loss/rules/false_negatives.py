"""Rules that take likely false negatives out of the contrastive loss: masks, not labels."""

from __future__ import annotations

from torch import Tensor

from cusa.train.loss.config import LossConfig
from cusa.train.loss.rules.settings import GuideConfig
from cusa.train.loss.rules.tile import Tile

# Cosines that are equal but for rounding, such as those of two copies of a caption, are not greater
# than each other.
_ROUNDING = 1e-6


def guide_mask(
    tile: Tile,
    config: LossConfig,
) -> Tensor:
    """GISTEmbed (Solatorio, arXiv 2402.16829): candidates that the guide finds too alike leave.

    Candidate j of query i leaves the softmax where ``s_ij > s_ii - margin``, or ``s_ij >
    s_ii (1 - margin)`` with a relative one; the paper's margin is 0. Teachers of one modality
    compare pairs by it in both directions, and ``s_ii`` is 1: with a margin of 0, nothing leaves.
    Candidates of the query's own image stay. Needs the teachers of ``guide.teacher``. Where
    ``xclr`` and CSA call a false negative partly right, this says nothing of it.

    Returns:
        bool ``[n, M]``: which candidates stay.
    """
    guide = config.guide
    if guide.teacher == "cross":
        is_alike = _is_alike(tile.cross.mean_cosines(), tile, guide)
    elif guide.teacher in ("image", "text"):
        teachers = tile.uni[("image", "text").index(guide.teacher)]
        is_alike = _is_alike(teachers.mean_cosines(), tile, guide)
    else:
        by_image, by_text = (
            _is_alike(teachers.mean_cosines(), tile, guide) for teachers in tile.uni
        )
        is_alike = by_image & by_text if guide.teacher == "both" else by_image | by_text
    return ~is_alike | (tile.hard_labels() > 0)


def self_guide_mask(
    tile: Tile,
    config: LossConfig,
) -> Tensor:
    """Return ``guide``'s mask by the student's own cosines, without a gradient: no teacher.

    Returns:
        bool ``[n, M]``: which candidates stay.
    """
    assert tile.student is not None, "the caller gives the student's cosines"
    is_alike = _is_alike(tile.student, tile, config.guide)
    return ~is_alike | (tile.hard_labels() > 0)


def _is_alike(
    cosines: Tensor,
    tile: Tile,
    guide: GuideConfig,
) -> Tensor:
    """Return where a candidate is more alike than the true pair less the margin: ``[n, M]``."""
    own = cosines.diagonal(tile.queries.start)[:, None]
    threshold = own * (1 - guide.margin) if guide.relative else own - guide.margin
    return cosines > threshold + _ROUNDING
