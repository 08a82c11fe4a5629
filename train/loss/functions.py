"""The losses of CUSA (Huang et al., AAAI 2024) on similarity matrices: pure functions, for any host.

Notation, for n queries and m candidates: ``similarity`` is ``[n, m]``, row i the similarities of
query i with every candidate j; a temperature divides it. Soft labels are softmax distributions over
the teacher's similarities. Those, and image ids, may be numpy arrays: they go to where the
student's similarities are, float16 as float32.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from cusa.train.loss.arrays import Rows, as_ids, as_rows
from cusa.train.loss.config import Divergence, Scaling, Source, check_option


def soft_labels(teacher_similarity: Rows, tau: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Soft labels ``P_ij = softmax_j(teacher_similarity_ij / tau)`` (paper, section 3.2).

    Args:
        teacher_similarity: float ``[n, m]``, cosine similarities of the teacher's embeddings.
        tau: Temperature.

    Returns:
        ``[n, m]``; every row sums to one.
    """
    return F.softmax(_teacher_similarity(teacher_similarity, tau) / tau, dim=-1)


def fuse_similarities(
    image_similarity: Rows, text_similarity: Rows, source: Source
) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher similarities that serve CSA's two directions (paper, ablation of the soft-label source).

    Args:
        image_similarity: float ``[n, m]`` of the image teacher.
        text_similarity: float ``[n, m]`` of the text teacher.
        source: ``"each"``: images for image-to-text, texts for text-to-image; ``"add"``: the mean of both for both;
            ``"dot"``: ``sqrt(max(s_I, 0) * max(s_T, 0))`` for both.

    Returns:
        Similarities for image-to-text and for text-to-image, ``[n, m]`` each.

    Raises:
        ValueError: If the two are not of one size.
    """
    check_option("source", source, Source)
    image = _teacher_similarity(image_similarity, text_similarity)
    text = _teacher_similarity(text_similarity, image)
    _check_size("text_similarity", text, image)
    if source == "each":
        return image, text
    if source == "add":
        both = (image + text) / 2
    else:
        both = (image.clamp_min(0) * text.clamp_min(0)).sqrt()
    return both, both


def soft_label_loss(
    similarity: torch.Tensor,
    teacher_similarity: Rows,
    tau: torch.Tensor | float,
    tau_soft: torch.Tensor | float = 1.0,
    divergence: Divergence = "kl",
    scaling: Scaling = "infonce",
) -> torch.Tensor:
    """Divergence of the student's distributions from the soft labels: one direction of CSA or USA.

    ``"kl"`` is ``KL(P || softmax_j(similarity_ij / tau))`` with ``P = soft_labels(teacher_similarity, tau_soft)``,
    summed over j and averaged over i (paper, equations for L_CSA and L_USA); ``"cross_entropy"`` leaves out P's
    entropy.

    Args:
        similarity: float ``[n, m]`` of the student.
        teacher_similarity: float ``[n, m]`` of the teacher.
        tau: The student's temperature.
        tau_soft: The soft labels' temperature.
        divergence: ``"kl"`` or ``"cross_entropy"``.
        scaling: For ``"cross_entropy"`` alone: ``"paper"`` divides by m once more, as the published code does.

    Returns:
        Scalar.

    Raises:
        ValueError: If the two are not of one size.
    """
    check_option("divergence", divergence, Divergence)
    check_option("scaling", scaling, Scaling)
    teacher = _teacher_similarity(teacher_similarity, similarity)
    _check_size("teacher_similarity", teacher, similarity)
    n, m = similarity.shape
    again = m if divergence == "cross_entropy" and scaling == "paper" else 1
    return soft_label_sum(similarity, teacher, tau, tau_soft, divergence) / (n * again)


def contrastive_loss(
    similarity: torch.Tensor,
    tau: torch.Tensor | float,
    image_ids: Rows | None = None,
    scaling: Scaling = "infonce",
) -> torch.Tensor:
    """Cross entropy with every pair of the same image as a positive: one direction of L_con (DESIGN, section 2).

    Args:
        similarity: float ``[B, B]``: image-to-text, or its transpose.
        tau: Temperature.
        image_ids: integers ``[B]``, the image of each pair; ``None``: all different.
        scaling: ``"infonce"``, or ``"paper"``, which divides by B once more, as the published code does.

    Returns:
        Scalar.

    Raises:
        ValueError: If the similarities are not square, or there is not one id for each row.
    """
    check_option("scaling", scaling, Scaling)
    b = len(similarity)
    if similarity.shape != (b, b):
        raise ValueError(f"similarity must be [B, B], got {list(similarity.shape)}")
    ids = None if image_ids is None else as_ids(image_ids, similarity.device, "image_ids", (b,))
    loss = F.cross_entropy(similarity / tau, positives(ids, slice(0, b), similarity))
    return loss / (b if scaling == "paper" else 1)


def soft_label_sum(
    similarity: torch.Tensor,
    teacher_similarity: Rows,
    tau: torch.Tensor | float,
    tau_soft: torch.Tensor | float = 1.0,
    divergence: Divergence = "kl",
) -> torch.Tensor:
    """The divergence of :func:`soft_label_loss`, summed over queries."""
    log_q = F.log_softmax(similarity / tau, dim=-1)
    log_p = F.log_softmax(_teacher_similarity(teacher_similarity, similarity) / tau_soft, dim=-1)
    return (log_p.exp() * (log_p - log_q if divergence == "kl" else -log_q)).sum()


def _teacher_similarity(similarity: Rows, like: Rows | float) -> torch.Tensor:
    """Take a teacher's similarities as a tensor; those of an array in float32 or wider.

    Args:
        similarity: A tensor, which stays as it is, or an array.
        like: Where an array goes, if it is a tensor.
    """
    if isinstance(similarity, torch.Tensor):
        return similarity
    device = like.device if isinstance(like, torch.Tensor) else torch.device("cpu")
    rows = as_rows(similarity, device, "teacher similarities", (None, None))
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _check_size(name: str, matrix: torch.Tensor, other: torch.Tensor) -> None:
    """Refuse what torch would broadcast: one row for all queries, say."""
    if matrix.ndim != 2 or matrix.shape != other.shape:
        raise ValueError(
            f"{name} must be {list(other.shape)}, as the other, got {list(matrix.shape)}"
        )


def positives(image_ids: torch.Tensor | None, rows: slice, like: torch.Tensor) -> torch.Tensor:
    """Targets of the contrastive loss, as ``cross_entropy`` takes them.

    Args:
        image_ids: int64 ``[m]``; ``None``: all different.
        rows: The n queries, as positions among the m candidates.
        like: A tensor of the device and dtype wanted.

    Returns:
        int64 ``[n]``, the query's own candidate, or ``[n, m]`` of :func:`hard_targets`.
    """
    if image_ids is None:
        return torch.arange(rows.start, rows.stop, device=like.device)
    return hard_targets(image_ids, rows, like.dtype)


def hard_targets(image_ids: torch.Tensor, rows: slice, dtype: torch.dtype) -> torch.Tensor:
    """``[n, m]``: row i spreads one evenly over the candidates of query i's image.

    Args:
        image_ids: int64 ``[m]``.
        rows: The n queries, as positions in image_ids.
        dtype: Of the result.
    """
    same = (image_ids[rows, None] == image_ids).to(dtype)
    return same / same.sum(dim=-1, keepdim=True)
