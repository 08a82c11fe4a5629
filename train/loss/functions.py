"""The losses of CUSA (Huang et al., AAAI 2024) as pure functions of similarity matrices.

With n queries and m candidates, ``similarity`` is ``[n, m]``: row i holds the similarities of query
i and every candidate j, and a temperature divides them. Soft labels are softmax distributions over
a teacher's similarities. A teacher's similarities and image ids may be numpy arrays: they are moved
to the device of the student's similarities, float16 as float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cusa.data.errors import EmbeddingsError
from cusa.train.loss.arrays import Rows, as_ids, as_rows
from cusa.train.loss.config import Divergence, Fusion, Scaling, check_option, column_divisor
from cusa.train.loss.rules.soft_labels import fused
from cusa.train.loss.rules.tile import same_image_labels


def soft_labels(
    teacher_similarity: Rows,
    tau: Tensor | float = 1.0,
) -> Tensor:
    """Return soft labels ``P_ij = softmax_j(teacher_similarity_ij / tau)`` (paper, section 3.2).

    Args:
        teacher_similarity: float ``[n, m]``, cosine similarities of the teacher's embeddings.
        tau: Temperature.

    Returns:
        ``[n, m]``; every row sums to one.
    """
    return F.softmax(_teacher_similarity(teacher_similarity, tau) / tau, dim=-1)


def fuse_similarities(
    image_similarity: Rows,
    text_similarity: Rows,
    source: Fusion,
) -> tuple[Tensor, Tensor]:
    """Return the teacher similarities behind the soft labels of CSA's two directions.

    The three sources are those of the paper's ablation.

    Args:
        image_similarity: float ``[n, m]`` of the image teacher; tensors may have any shape.
        text_similarity: float ``[n, m]`` of the text teacher, likewise.
        source: ``"each"``: the image teacher for image-to-text, the text teacher for text-to-image;
            ``"add"``: the mean of the two for both; ``"dot"``: ``sqrt(max(s_I, 0) * max(s_T, 0))``
            for both.

    Returns:
        Similarities for image-to-text and for text-to-image, ``[n, m]`` each.

    Raises:
        SettingError: If ``source`` is none of these.
        EmbeddingsError: If the two differ in shape.
    """
    check_option("source", source, Fusion)
    image_teacher = _teacher_similarity(image_similarity, text_similarity)
    text_teacher = _teacher_similarity(text_similarity, image_teacher)
    _check_size("text_similarity", text_teacher, image_teacher)
    if source == "each":
        return image_teacher, text_teacher
    similarity = fused(image_teacher, text_teacher, source)
    return similarity, similarity


def soft_label_loss(
    similarity: Tensor,
    teacher_similarity: Rows,
    tau: Tensor | float,
    tau_soft: Tensor | float = 1.0,
    divergence: Divergence = "kl",
    scaling: Scaling = "infonce",
) -> Tensor:
    """Return the divergence of the student's distributions from the soft labels.

    This is one direction of CSA or USA. ``"kl"`` is ``KL(P || softmax_j(similarity_ij / tau))``
    with ``P = soft_labels(teacher_similarity, tau_soft)``, summed over j and averaged over i
    (paper, equations for L_CSA and L_USA); ``"cross_entropy"`` leaves out P's entropy.

    Args:
        similarity: float ``[n, m]`` of the student.
        teacher_similarity: float ``[n, m]`` of the teacher.
        tau: The student's temperature, a scalar.
        tau_soft: The soft labels' temperature, a scalar.
        divergence: ``"kl"`` or ``"cross_entropy"``.
        scaling: For ``"cross_entropy"`` only: ``"paper"`` divides by m once more, as published.

    Returns:
        Scalar.

    Raises:
        SettingError: If ``divergence`` or ``scaling`` is illegal.
        EmbeddingsError: If the two differ in shape, or ``similarity`` is not a matrix.
    """
    check_option("divergence", divergence, Divergence)
    check_option("scaling", scaling, Scaling)
    if similarity.ndim != 2:
        raise EmbeddingsError(
            f"similarity must be [n, m], got {list(similarity.shape)}", name="similarity"
        )
    teacher = _teacher_similarity(teacher_similarity, similarity)
    _check_size("teacher_similarity", teacher, similarity)
    n_queries, n_candidates = similarity.shape
    divisor = n_queries * column_divisor(divergence, scaling, n_candidates)
    return soft_label_sum(similarity, teacher, tau, tau_soft, divergence) / divisor


def contrastive_loss(
    similarity: Tensor,
    tau: Tensor | float,
    image_ids: Rows | None = None,
    scaling: Scaling = "infonce",
) -> Tensor:
    """Return the cross entropy in which every pair of a query's image is a positive.

    This is one direction of L_con. The positives of a query share its target evenly.

    Args:
        similarity: float ``[B, B]``: image-to-text, or its transpose.
        tau: Temperature.
        image_ids: integers ``[B]``, the image of each pair; ``None``: all different.
        scaling: ``"infonce"``, or ``"paper"``, which divides by B once more, as the published code
            does.

    Returns:
        Scalar.

    Raises:
        SettingError: If ``scaling`` is illegal.
        EmbeddingsError: If the similarities are not square, or an array of ids is not ``[B]``.
    """
    check_option("scaling", scaling, Scaling)
    n_pairs = len(similarity)
    if similarity.shape != (n_pairs, n_pairs):
        raise EmbeddingsError(
            f"similarity must be [B, B], got {list(similarity.shape)}", name="similarity"
        )
    ids = None
    if image_ids is not None:
        ids = as_ids(image_ids, similarity.device, "image_ids", (n_pairs,))
    targets = contrastive_targets(ids, slice(0, n_pairs), similarity)
    loss = F.cross_entropy(similarity / tau, targets)
    return loss / column_divisor("cross_entropy", scaling, n_pairs)


def soft_label_sum(
    similarity: Tensor,
    teacher_similarity: Rows,
    tau: Tensor | float,
    tau_soft: Tensor | float = 1.0,
    divergence: Divergence = "kl",
) -> Tensor:
    """Return the divergence of :func:`soft_label_loss`, summed over queries: a scalar."""
    teacher = _teacher_similarity(teacher_similarity, similarity)
    return divergence_sum(similarity / tau, distributions(teacher / tau_soft), divergence)


def over(
    similarity: Tensor,
    tau: Tensor,
) -> Tensor:
    """Return similarities ``[n, m]`` over a temperature, a scalar that may be learnable."""
    # Autograd would divide a whole matrix twice more to differentiate a division.
    return similarity * tau.reciprocal()


class Distributions(NamedTuple):
    """Soft labels, and their logarithms: ``[n, m]`` each."""

    labels: Tensor
    logarithms: Tensor


def distributions(logits: Tensor) -> Distributions:
    """Return the softmax of each row of ``[n, m]``."""
    # By way of logarithms: a small probability would underflow, and its logarithm be infinite.
    logarithms = F.log_softmax(logits, dim=-1)
    return Distributions(logarithms.exp(), logarithms)


def divergence_sum(
    logits: Tensor,
    targets: Distributions,
    divergence: Divergence,
) -> Tensor:
    """Return the divergence of softmax distributions from targets, summed over queries: a scalar.

    Args:
        logits: float ``[n, m]`` of the student.
        targets: Their targets.
        divergence: ``"kl"`` or ``"cross_entropy"``.
    """
    log_student = F.log_softmax(logits, dim=-1)
    if divergence == "kl":
        return (targets.labels * (targets.logarithms - log_student)).sum()
    return -(targets.labels * log_student).sum()


def _teacher_similarity(
    similarity: Rows,
    reference: Rows | float,
) -> Tensor:
    """Convert a teacher's similarities to a tensor; an array becomes float32 or wider.

    Args:
        similarity: A tensor, which is returned as it is, or an array ``[n, m]``.
        reference: If it is a tensor, an array is moved to its device.
    """
    if isinstance(similarity, Tensor):
        return similarity
    device = reference.device if isinstance(reference, Tensor) else torch.device("cpu")
    rows = as_rows(similarity, device, "teacher similarities", (None, None))
    # float16 keeps three digits, and soft labels are closer together than that.
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _check_size(
    name: str,
    matrix: Tensor,
    reference: Tensor,
) -> None:
    """Refuse shapes that torch would broadcast, such as one row for all queries."""
    if matrix.shape != reference.shape:
        raise EmbeddingsError(
            f"{name} must be {list(reference.shape)}, like the other, got {list(matrix.shape)}",
            name=name,
        )


def contrastive_targets(
    image_ids: Tensor | None,
    queries: slice,
    reference: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Return targets of the contrastive loss, as ``cross_entropy`` takes them.

    Args:
        image_ids: int64 ``[m]``; ``None``: all different.
        queries: The n queries, as positions among the m candidates.
        reference: A tensor of the device and dtype that the targets are to have.
        mask: bool ``[m]``: which candidates there are; ``None``: all.

    Returns:
        int64 ``[n]``, the position of each query's own candidate; with ids, the ``[n, m]`` of
        :func:`cusa.train.loss.rules.tile.same_image_labels`.
    """
    if image_ids is None:
        # Positions are cheaper than a matrix of targets.
        return torch.arange(queries.start, queries.stop, device=reference.device)
    return same_image_labels(image_ids, queries, reference.dtype, mask)
