"""A rule for hosts with a sigmoid loss: pairs are judged one by one, not against each other."""

from __future__ import annotations

import torch
from torch import Tensor

from cusa.train.loss.config import LossConfig
from cusa.train.loss.rules.soft_labels import CLIP_TAU
from cusa.train.loss.rules.tile import Tile

SIGLIP_BIAS = -10.0  # with which SigLIP's training begins


def sigmoid_signs(
    tile: Tile,
    loss_config: LossConfig,
) -> Tensor:
    """Return the soft signs ``c_ij = 2 sigmoid(Z_T,ij) - 1`` of ``dr-sigmoid``.

    The loss of a row is ``sum_j -log sigmoid(c_ij Z_ij)``: SigLIP's (Zhai et al., ICCV 2023),
    with a cross-modal teacher's probability that two belong together in place of the label, 1
    or -1. ``Z_T`` are the teacher's cosines over its temperature plus ``dr_sigmoid.teacher_bias``,
    Z the student's over ``tau`` plus its own bias, which is trained. Several teachers' signs are
    averaged. Needs a cross-modal teacher. This is to ``dr`` what SigLIP's loss is to CLIP's.

    Returns:
        ``[n, M]`` from -1 to 1; 0 for empty slots.
    """
    teachers = tile.cross
    teacher_bias = loss_config.dr_sigmoid.teacher_bias
    if teacher_bias is None:
        teacher_bias = SIGLIP_BIAS
    signs = torch.zeros_like(teachers.cosines[0](1.0))
    for weight, logits in zip(teachers.weights, teachers.logits(CLIP_TAU), strict=True):
        probabilities = torch.sigmoid(logits + teacher_bias)
        signs = signs + weight * (2 * probabilities - 1)
    return signs if tile.mask is None else signs.masked_fill(~tile.mask, 0)
