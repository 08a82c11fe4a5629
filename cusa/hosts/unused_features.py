"""Features that a loss leaves out, under DDP."""

from __future__ import annotations

from torch import Tensor


def with_gradients_of(loss: Tensor, *features: Tensor | None) -> Tensor:
    """Return a loss of the same value that gives all features a gradient, of zero if it has none.

    DDP fails if a head whose features were returned gets no gradient, as that of a modality whose
    soft labels USA does not use.

    Args:
        loss: float scalar.
        *features: float ``[B, d]`` each; ``None`` for those that there are not.
    """
    for rows in features:
        if rows is not None:
            # The sum of no rows is 0, also where features are not finite.
            loss = loss + rows[:0].sum()
    return loss
