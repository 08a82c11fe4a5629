"""Features of length one: lengths are taken in float64, and the backward pass is short."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def unit_features(features: Tensor) -> Tensor:
    """L2-normalise features.

    Lengths are taken in float64: float32 has no square above 3e38, and none below 1e-45.

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
    def forward(ctx: Any, features: Tensor) -> Tensor:
        lengths = _lengths(features)
        ctx.save_for_backward(features, lengths)
        return features / lengths

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        features, lengths = ctx.saved_tensors
        if torch.is_grad_enabled():
            # With create_graph=True the lengths must have a gradient, too.
            lengths = _lengths(features)
        normalized = features / lengths
        # What points along the features would change their length alone.
        along_features = normalized * (normalized * gradient).sum(dim=-1, keepdim=True)
        return (gradient - along_features) / lengths


def _lengths(features: Tensor) -> Tensor:
    """Return the length of each row, 1 for zeros: ``[n, 1]``."""
    lengths = torch.linalg.vector_norm(
        features,
        dim=-1,
        keepdim=True,
        dtype=torch.float64,
    )
    return torch.where(lengths > 0, lengths, 1.0).to(features.dtype)
