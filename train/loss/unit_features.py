"""Features of length one, with lengths in float64 and fewer steps backwards than torch's."""

from __future__ import annotations

from typing import Any

import torch


def unit_features(features: torch.Tensor) -> torch.Tensor:
    """L2-normalise features.

    Lengths are taken in float64: float32 has no square above 3e38, and none below 1e-45. It may not
    hold a length itself, of features near either end, but it holds the length's square root.

    Args:
        features: float32 or float64 ``[n, d]``.

    Returns:
        Same dtype, ``[n, d]``; zeros stay zeros, with a finite gradient.
    """
    unit: torch.Tensor = _UnitFeatures.apply(features)
    return unit


class _UnitFeatures(torch.autograd.Function):
    """Autograd's own backward pass would take the steps of the length one by one, in float64."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor) -> torch.Tensor:
        roots = _roots_of_lengths(features)
        ctx.save_for_backward(features, roots)
        return features / roots / roots

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        features, roots = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the lengths must have a gradient, too
            roots = _roots_of_lengths(features)
        unit = features / roots / roots
        along_length = unit * (unit * gradient).sum(dim=-1, keepdim=True)
        return (gradient - along_length) / roots / roots


def _roots_of_lengths(features: torch.Tensor) -> torch.Tensor:
    """Square root of each row's length, 1 of zeros: ``[n, 1]``."""
    lengths = torch.linalg.vector_norm(features, dim=-1, keepdim=True, dtype=torch.float64)
    return torch.where(lengths > 0, lengths, 1.0).sqrt().to(features.dtype)
