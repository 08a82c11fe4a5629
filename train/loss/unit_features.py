"""Features of length one: lengths are taken in float64, and the backward pass is short."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def unit_features(features: Tensor) -> Tensor:
    """L2-normalise features.

    Lengths are taken in float64: float32 has no square above 3e38, and none below 1e-45. It may not
    hold a length itself, of features near either end, but it holds the length's square root.

    Args:
        features: float32 or float64 ``[n, d]``.

    Returns:
        Same dtype, ``[n, d]``; zeros stay zeros, with a finite gradient.
    """
    normalized: Tensor = _UnitFeatures.apply(features)
    return normalized


class _UnitFeatures(torch.autograd.Function):
    """Autograd's own backward pass would take the steps of the length one by one, in float64."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
    ) -> Tensor:
        roots = _roots_of_lengths(features)
        ctx.save_for_backward(features, roots)
        return features / roots / roots

    @staticmethod
    def backward(
        ctx: Any,
        gradient: Tensor,
    ) -> Tensor:
        features, roots = ctx.saved_tensors
        if torch.is_grad_enabled():
            # With create_graph=True the lengths must have a gradient, too.
            roots = _roots_of_lengths(features)
        normalized = features / roots / roots
        # What points along the features would change their length alone.
        projection = (normalized * gradient).sum(dim=-1, keepdim=True)
        along_length = normalized * projection
        return (gradient - along_length) / roots / roots


def _roots_of_lengths(features: Tensor) -> Tensor:
    """Return the square root of each row's length, 1 for zeros: ``[n, 1]``."""
    lengths = torch.linalg.vector_norm(
        features,
        dim=-1,
        keepdim=True,
        dtype=torch.float64,
    )
    return torch.where(lengths > 0, lengths, 1.0).sqrt().to(features.dtype)
