"""Soft labels for the image-text-matching head of a fusion encoder (ALBEF, X2-VLM).

Such a head tells, of an image and a caption that went through the fusion encoder together, whether
they match: pairs are scored one by one. It is trained on the B pairs and on 2 B hard negatives: for
each image a caption, and for each caption an image, drawn by the similarities of the batch (Li et
al. 2021, "Align before Fuse", section 3.2). Many of those are no negatives. With soft labels, the
target of a drawn pair is what the teacher calls it instead of 0; that of a true pair stays 1. At a
temperature of 1 every soft label is near 1/B, hardly more than 0; sharper ones (``tau`` of 0.1,
say) tell pairs apart.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cusa.data.errors import EmbeddingsError
from cusa.train.loss.arrays import Rows, as_ids, rows_in_words


@torch.no_grad()
def hard_negatives(
    similarity: Tensor,
    image_ids: Rows | None = None,
    tau: Tensor | float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw for each query one candidate of another image, with ``softmax_j(similarity_ij / tau)``.

    Args:
        similarity: float ``[B, B]``: image-to-text, or its transpose.
        image_ids: integers ``[B]``, a tensor or an array: the image of each pair; ``None``: all
            different.
        tau: Temperature.
        generator: Source of chance.

    Returns:
        int64 ``[B]``.

    Raises:
        EmbeddingsError: If a query has no candidate of another image; names the rows.
    """
    n_pairs = len(similarity)
    if image_ids is None:
        image_ids = torch.arange(n_pairs, device=similarity.device)
    ids = as_ids(image_ids, similarity.device, "image_ids", (n_pairs,))
    # Other captions of the query's image are no negatives.
    is_same_image = ids[:, None] == ids
    has_no_negative = is_same_image.all(dim=1)
    if has_no_negative.any():
        location = rows_in_words(has_no_negative.nonzero().flatten().tolist())
        raise EmbeddingsError(
            f"{location} have no negative: every pair of the batch is of the same image",
            location=location,
            name="image_ids",
        )

    # In float32 or wider: half precision would round small chances to nothing.
    dtype = torch.promote_types(similarity.dtype, torch.float32)
    logits = (similarity.to(dtype) / tau).masked_fill(is_same_image, -torch.inf)
    return torch.multinomial(F.softmax(logits, dim=1), 1, generator=generator).squeeze(1)


def matching_targets(
    soft_labels: Tensor,
    negatives: Tensor,
) -> Tensor:
    """Return targets of drawn pairs: the soft labels ``P[i, negatives[i]]``.

    Args:
        soft_labels: float ``[B, B]``, of :func:`cusa.train.loss.cusa_loss.soft_labels`: the image
            teacher's where images are the queries, the text teacher's where captions are.
        negatives: int64 ``[B]``, of :func:`hard_negatives`.

    Returns:
        ``[B]``, in [0, 1].
    """
    return soft_labels.gather(1, negatives[:, None]).squeeze(1)


def matching_loss(
    logits: Tensor,
    targets: Tensor,
) -> Tensor:
    """Return the cross entropy of matching scores against targets from 0 to 1, averaged over pairs.

    With targets of 0 and 1 this is the usual image-text-matching loss.

    Args:
        logits: float ``[M]``, the logit of "they match"; or ``[M, 2]``, of "they do not" and "they
            do".
        targets: float ``[M]``: 1 for true pairs, :func:`matching_targets` for drawn ones.

    Returns:
        Scalar.

    Raises:
        EmbeddingsError: If the shapes do not fit, or a target is not between 0 and 1.
    """
    n_pairs = len(targets)
    if logits.shape not in ((n_pairs,), (n_pairs, 2)) or targets.ndim != 1:
        raise EmbeddingsError(
            f"logits must be [M] or [M, 2] and targets [M], got {list(logits.shape)} and "
            f"{list(targets.shape)}",
            name="logits",
        )
    if not ((targets >= 0) & (targets <= 1)).all():
        least, greatest = targets.min(), targets.max()
        raise EmbeddingsError(
            f"targets must be between 0 and 1, got {least:g} to {greatest:g}", name="targets"
        )
    scores = logits
    if logits.ndim == 2:
        scores = logits[:, 1] - logits[:, 0]
    wide_dtype = torch.promote_types(scores.dtype, torch.float32)
    return F.binary_cross_entropy_with_logits(scores.to(wide_dtype), targets.to(wide_dtype))
