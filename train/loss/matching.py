"""Soft labels for the image-text-matching head of a fusion encoder (ALBEF, X2-VLM).

Such a head predicts whether an image and a caption match, after the two went through the fusion
encoder together: it scores pairs one by one. It is trained on the B pairs and on 2 B hard
negatives: a caption for each image, and an image for each caption, drawn by the similarities of the
batch (Li et al. 2021, "Align before Fuse", section 3.2). Many of these are not true negatives. With
soft labels, the target of a drawn pair is its soft label instead of 0; that of a true pair stays 1.
At a temperature of 1, every soft label is near 1/B, hardly more than 0; a lower one (``tau`` of
0.1, say) tells pairs apart.
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
    """Draw a candidate of another image for each query, with ``softmax_j(similarity_ij / tau)``.

    Args:
        similarity: float ``[B, B]``: image-to-text, or its transpose.
        image_ids: integers ``[B]``, a tensor or an array: the image of each pair; ``None``: all
            different.
        tau: Temperature.
        generator: Random number generator; ``None``: torch's own.

    Returns:
        int64 ``[B]``: the position of each query's negative.

    Raises:
        EmbeddingsError: If a query has no candidate of another image; ``location`` is its row.
    """
    n_pairs = len(similarity)
    if image_ids is None:
        image_ids = torch.arange(n_pairs, device=similarity.device)
    ids = as_ids(image_ids, similarity.device, "image_ids", (n_pairs,))
    # Other captions of the query's image are not negatives.
    is_same_image = ids[:, None] == ids
    has_no_negative = is_same_image.all(dim=1)
    if has_no_negative.any():
        location = rows_in_words(has_no_negative.nonzero().flatten().tolist())
        raise EmbeddingsError(
            f"{location} have no negative: every pair of the batch is of the same image",
            location=location,
            name="image_ids",
        )

    # Half precision would round small probabilities to zero.
    dtype = torch.promote_types(similarity.dtype, torch.float32)
    logits = (similarity.to(dtype) / tau).masked_fill(is_same_image, -torch.inf)
    return torch.multinomial(F.softmax(logits, dim=1), 1, generator=generator).squeeze(1)


def matching_targets(
    soft_labels: Tensor,
    negatives: Tensor,
) -> Tensor:
    """Return the targets of drawn pairs: the soft labels ``P[i, negatives[i]]``.

    Args:
        soft_labels: float ``[B, B]`` from :func:`cusa.soft_labels`: the image
            teacher's if images are the queries, the text teacher's if captions are.
        negatives: int64 ``[B]`` from :func:`hard_negatives`.

    Returns:
        float ``[B]``, from 0 to 1.
    """
    return soft_labels.gather(1, negatives[:, None]).squeeze(1)


def matching_loss(
    logits: Tensor,
    targets: Tensor,
) -> Tensor:
    """Return the cross entropy of matching scores and targets from 0 to 1, averaged over M pairs.

    With targets of 0 and 1 only, this is the usual image-text-matching loss.

    Args:
        logits: float ``[M]``, the logits of a match; or ``[M, 2]``, those of no match and of a
            match.
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
