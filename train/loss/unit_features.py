"""L2 normalisation of features of any length, with a short backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Of such lengths float32 holds the squares, and those of the numbers that matter in them.
_LEAST_USUAL = 1e-15
_GREATEST_USUAL = 1e15


def unit_features(features: Tensor) -> Tensor:
    """L2-normalise features.

    Args:
        features: float32 or float64 ``[n, d]``.

    Returns:
        ``[n, d]`` of the same dtype; rows of zeros stay zeros, with a finite gradient.
    """
    lengths = _row_lengths(features.detach())
    if not _are_usual(lengths):
        # No row may depend on the others, to the last bit: those of usual length stay as they are.
        is_usual = (lengths > _LEAST_USUAL) & (lengths < _GREATEST_USUAL)
        features = features / torch.where(is_usual, 1.0, _positive(_peaks(features)))
        lengths = _positive(_row_lengths(features.detach()))
    normalized: Tensor = _UnitFeatures.apply(features, lengths)
    return normalized


def _row_lengths(features: Tensor) -> Tensor:
    """Return the L2 norm of each row of ``[n, d]`` in its dtype: ``[n, 1]``.

    It may be infinite or zero where the length is not; see :func:`_are_usual`.
    """
    lengths: Tensor = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return lengths


def _are_usual(lengths: Tensor) -> bool:
    """Tell whether all lengths are known to be far from what float32 cannot hold or square.

    On a GPU, the answer would have to be waited for, and in a compiled graph, nothing may depend on
    it; nothing is known there.
    """
    if lengths.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if len(lengths) == 0:
        return True
    least, greatest = lengths.aminmax()
    # False for NaN, too.
    return least.item() > _LEAST_USUAL and greatest.item() < _GREATEST_USUAL


def _peaks(features: Tensor) -> Tensor:
    """Return the greatest magnitude in each row of ``[n, d]``, without a gradient: ``[n, 1]``."""
    return features.detach().abs().amax(dim=-1, keepdim=True)


def _positive(lengths: Tensor) -> Tensor:
    """Return the lengths, and 1 for rows of zeros."""
    return torch.where(lengths > 0, lengths, 1.0)


class _UnitFeatures(torch.autograd.Function):
    """Divides rows by their lengths; autograd's own backward pass goes over the rows more often."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        lengths: Tensor,
    ) -> Tensor:
        normalized = features / lengths
        ctx.save_for_backward(features, lengths, normalized)
        return normalized

    @staticmethod
    def backward(
        ctx: Any,
        gradient: Tensor,
    ) -> tuple[Tensor, None]:
        features, lengths, normalized = ctx.saved_tensors
        if torch.is_grad_enabled():
            # create_graph=True: the lengths need a gradient, too.
            lengths = _positive(_row_lengths(features))
            normalized = features / lengths
        # The component along the features changes only their length, so it is removed.
        projection = (normalized * gradient).sum(dim=-1, keepdim=True)
        across_length = torch.addcmul(gradient, normalized, projection, value=-1)
        return across_length.div_(lengths), None
