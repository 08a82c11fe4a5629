"""Refusal of embeddings that cannot be ranked."""

from __future__ import annotations

import numpy as np

from cusa.data.embeddings import Rows
from cusa.data.errors import FORWARD_PASS, EmbeddingsError


def unusable_rows(rows: np.ndarray) -> tuple[np.ndarray, str]:
    """Find rows that cannot be ranked: NaN compares as false, and zeros tie with everything.

    Args:
        rows: float ``[n, d]``.

    Returns:
        The positions of the rows that are not finite, or if there are none, of those that are all
        zeros, int64, ascending; and the problem in words.
    """
    is_not_finite = ~np.isfinite(rows).all(axis=1)
    if is_not_finite.any():
        return np.flatnonzero(is_not_finite), "not finite"
    is_zero = ~rows.any(axis=1)
    return np.flatnonzero(is_zero), "all zeros"


def refuse_unusable(rows: Rows, model_name: str, first_item: int) -> None:
    """Refuse a batch with rows that :func:`unusable_rows` finds.

    Args:
        rows: The rows of one batch, float32 ``[n, d]``, by head.
        model_name: Name of the model.
        first_item: Number of the batch's first item.

    Raises:
        EmbeddingsError: If a row is not finite or all zeros; the message names the item and head.
    """
    for head, head_rows in rows.items():
        positions, problem = unusable_rows(head_rows)
        if len(positions):
            item = first_item + int(positions[0])
            raise EmbeddingsError(
                f"{model_name}: the embedding ({head} head) of item {item} is {problem}; leave "
                "the item out, or check the model's weights and the settings of its image "
                "processor",
                location=FORWARD_PASS,
                name=model_name,
            )
