"""Rules that give soft labels: each returns logits ``[n, M]``, whose softmax is the targets.

The student's distribution of query i is ``q_ij = softmax_j(cosine_ij / tau)``, across modalities
(within one in USA). With the targets P, a row's loss is ``-sum_j P_ij log q_ij`` (cross entropy)
or ``sum_j P_ij (log P_ij - log q_ij)`` (KL); they differ in a constant of the student. a_i is the
teacher row of image i, b_j that of caption j, all of length one. Every rule is averaged over its
two directions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cusa.train.loss.config import MODALITIES, LossConfig, Term
from cusa.train.loss.rules.tile import HIDDEN, Teachers, Tile

# What CLIP's own temperature is at the end of its training.
CLIP_TAU = 0.01
# Logits that are within so many times their dtype's precision (1e-4 in float32) are equal up to the
# rounding of cosines, divided by a temperature of 0.01.
_ROUNDINGS = 1000


def own_teachers(
    tile: Tile,
    loss_config: LossConfig,
) -> Teachers:
    """Return the teachers of the queries' modality; none if ``soft_label_modalities`` lacks it."""
    if MODALITIES[tile.modality] in loss_config.soft_label_modalities:
        return tile.uni[tile.modality]
    return Teachers()


def csa_labels(
    tile: Tile,
    loss_config: LossConfig,
    tau_soft: Tensor,
) -> Tensor | None:
    """CSA (Huang et al., AAAI 2024, section 3.2): ``P_ij = softmax_j(s_ij / tau_soft)``.

    ``s_ij`` is ``a_i.a_j`` for images as queries and ``b_i.b_j`` for captions, one of them for
    both, both fused, or ``a_i.b_j`` of cross-modal teachers, by ``soft_label_source``. Needs the
    teacher of the queries' modality, or the one that is named; ``"add"`` and ``"dot"`` both;
    ``"cross"`` a cross-modal teacher, which makes it ``dr`` with temperatures of its own for the
    labels and the student. ``"text"`` is ``xclr`` with one for the student.
    """
    source = loss_config.soft_label_source
    if source == "cross":
        logits = tile.mean_label_logits(_at_own_tau(tile.cross), tau_soft)
        return keep_greatest(logits, loss_config.top_k)
    if source == "each":
        return usa_labels(tile, loss_config, tau_soft)
    if source in MODALITIES:
        teachers = tile.uni[MODALITIES.index(source)]
        return keep_greatest(tile.mean_label_logits(teachers, tau_soft), loss_config.top_k)
    return keep_greatest(_fused_logits(tile, source, tau_soft), loss_config.top_k)


def usa_labels(
    tile: Tile,
    loss_config: LossConfig,
    tau_soft: Tensor,
) -> Tensor | None:
    """USA (the same section): CSA's labels of ``"each"``, for comparisons within a modality.

    Without a teacher of the queries' modality, or without this in ``soft_label_modalities``, there
    are none.
    """
    teachers = own_teachers(tile, loss_config)
    if not teachers.cosines:
        return None
    return keep_greatest(tile.mean_label_logits(teachers, tau_soft), loss_config.top_k)


def label_slope(
    tile: Tile,
    loss_config: LossConfig,
    term: Term,
    tau_soft: Tensor,
) -> Tensor:
    """Return ``tau_soft`` times the derivative of CSA's or USA's logits by it: ``[n, M]``."""
    source = loss_config.soft_label_source if term == "csa" else "each"
    if source == "cross":
        return tile.label_slope(_at_own_tau(tile.cross), tau_soft)
    if source == "each":
        return tile.label_slope(own_teachers(tile, loss_config), tau_soft)
    if source in MODALITIES:
        return tile.label_slope(tile.uni[MODALITIES.index(source)], tau_soft)
    return -_fused_logits(tile, source, tau_soft)


def _at_own_tau(cross_teachers: Teachers) -> Teachers:
    """Return cross-modal teachers without the temperatures of their logits, which are a rule's."""
    return cross_teachers._replace(taus=())


def _fused_logits(
    tile: Tile,
    source: str,
    tau_soft: Tensor,
) -> Tensor:
    cosines = [teachers.mean_cosines() for teachers in tile.uni]
    return tile.hide_absent(fused(cosines[0], cosines[1], source) / tau_soft)


def fused(
    image_cosines: Tensor,
    text_cosines: Tensor,
    source: str,
) -> Tensor:
    """Return one similarity of two: their mean (``"add"``) or their geometric mean (``"dot"``)."""
    if source == "add":
        return (image_cosines + text_cosines) / 2
    # Two negative similarities must not multiply to a positive one.
    return (image_cosines.clamp_min(0) * text_cosines.clamp_min(0)).sqrt()


def cwcl_labels(
    tile: Tile,
    loss_config: LossConfig,
) -> Tensor:
    """CWCL (Srinivasa et al., NeurIPS 2023): ``P_ij = w_ij / sum_k w_ik``, ``w = (s + 1) / 2``.

    ``s_ij`` is ``a_i.a_j`` for images as queries, ``b_i.b_j`` for captions. In the paper, one
    pre-trained model weighs its own modality's direction, and the other direction is the usual
    contrastive loss; so is here a direction without a teacher, or without its modality in
    ``soft_label_modalities``. Needs an image or a text teacher.
    The weights are linear in the cosines where ``xclr`` and CSA are exponential: nearly flat,
    unless ``top_k`` cuts them.
    """
    teachers = own_teachers(tile, loss_config)
    if not teachers.cosines:
        return _log(tile.hard_labels())
    weights = (teachers.mean_cosines() + 1) / 2
    return keep_greatest(tile.hide_absent(_log(weights)), loss_config.top_k)


def xclr_labels(
    tile: Tile,
    loss_config: LossConfig,
) -> Tensor:
    """X-CLR (Sobal et al., arXiv 2407.18134): ``P_ij = softmax_j(b_i.b_j / tau_s)``, both ways.

    The captions' similarities are the targets of images, too. Needs a text teacher. This is CSA
    with the text teacher's labels in both directions, cross entropy, and the contrastive
    temperature for the student.
    """
    logits = tile.mean_label_logits(tile.uni[1], loss_config.xclr.tau)
    return keep_greatest(logits, loss_config.top_k)


def hycd_labels(
    tile: Tile,
    loss_config: LossConfig,
) -> Tensor:
    """HyCD (CLIP-Refine, Yamaguchi et al., CVPR 2025): ``P = a I + (1 - a) softmax(Z_T / T)``.

    ``Z_T`` are a cross-modal teacher's cosines over its own temperature; I is shared evenly by the
    positives of a query. The loss is ``T^2 KL(P || softmax(Z / T))`` with the student's logits Z.
    Needs a cross-modal teacher, in the paper the student before training. With a = 0 and T = 1 it
    is ``dr``, with a = 1 the contrastive loss, but for constants.
    """
    settings = loss_config.hycd
    taus = [tau * settings.temperature for tau in tile.cross.taus]
    teachers = tile.cross._replace(taus=taus)
    logits = tile.mean_label_logits(teachers, CLIP_TAU * settings.temperature)
    soft = F.softmax(keep_greatest(logits, loss_config.top_k), dim=-1)
    hard = tile.hard_labels()
    mixed = torch.lerp(soft, hard, settings.alpha)
    return tile.hide_absent(_log(mixed))


def dr_labels(
    tile: Tile,
    loss_config: LossConfig,
) -> Tensor:
    """MobileCLIP's distillation (Vasu et al., CVPR 2024): a mean of teachers' softmaxes.

    ``P_ij = mean_t softmax_j(a^t_i.b^t_j / tau_t)``, with each cross-modal teacher's own
    temperature. The paper averages the teachers' KL divergences, which is this cross entropy but
    for a constant. Needs a cross-modal teacher. Beside the contrastive term it is ``hycd``.
    """
    return keep_greatest(tile.mean_label_logits(tile.cross, CLIP_TAU), loss_config.top_k)


def interactive_labels(
    tile: Tile,
    loss_config: LossConfig,
) -> Tensor:
    """Return the labels of :mod:`cusa.train.loss.features` themselves: the positives, evenly."""
    return tile.hard_labels()


def keep_greatest(
    logits: Tensor,
    k: int | None,
) -> Tensor:
    """Hide all logits but the k greatest of each row and those that equal the last of them.

    Args:
        logits: ``[n, M]``.
        k: How many; ``None``: all.
    """
    if k is None or k >= logits.shape[1]:
        return logits
    least = logits.detach().topk(k, dim=1).values[:, -1:]
    tolerance = _ROUNDINGS * torch.finfo(logits.dtype).eps
    return logits.masked_fill(logits < least - tolerance, HIDDEN)


def _log(weights: Tensor) -> Tensor:
    """Return the logarithm, and :data:`HIDDEN` for a weight of zero."""
    is_zero = weights <= 0
    return weights.masked_fill(is_zero, 1).log().masked_fill(is_zero, HIDDEN)
