"""L2 normalisation with lengths in float64 and a short backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def unit_features(features: Tensor) -> Tensor:
    """L2-normalise features.

    Lengths are computed in float64, because float32 holds no square above 3e38 or below 1e-45. It
    may not even hold the length of very large or small features, but always its square root.

    Args:
        features: float32 or float64 ``[n, d]``.

    Returns:
        ``[n, d]`` of the same dtype; rows of zeros stay zeros, with a finite gradient.
    """
    normalized: Tensor = _UnitFeatures.apply(features)
    return normalized


class _UnitFeatures(torch.autograd.Function):
    """Autograd's own backward pass would repeat each step of the length, in float64."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
    ) -> Tensor:
        inverse_roots = _inverse_roots_of_lengths(features)
        normalized = (features * inverse_roots).mul_(inverse_roots)
        ctx.save_for_backward(features, inverse_roots, normalized)
        return normalized

    @staticmethod
    def backward(
        ctx: Any,
        gradient: Tensor,
    ) -> Tensor:
        features, inverse_roots, normalized = ctx.saved_tensors
        if torch.is_grad_enabled():
            # create_graph=True: the lengths need a gradient, too.
            inverse_roots = _inverse_roots_of_lengths(features)
            normalized = features * inverse_roots * inverse_roots
        # The component along the features changes only their length, so it is removed.
        projection = (normalized * gradient).sum(dim=-1, keepdim=True)
        across_length = torch.addcmul(gradient, normalized, projection, value=-1)
        return across_length * inverse_roots * inverse_roots


def _inverse_roots_of_lengths(features: Tensor) -> Tensor:
    """Return one over the square root of each row's length, 1 for rows of zeros: ``[n, 1]``."""
    lengths = torch.linalg.vector_norm(
        features,
        dim=-1,
        keepdim=True,
        dtype=torch.float64,
    )
    return torch.where(lengths > 0, lengths, 1.0).rsqrt().to(features.dtype)
