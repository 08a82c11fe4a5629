"""Embeddings that no ranking may see."""

from __future__ import annotations

import numpy as np

from cusa.data.embeddings import Rows
from cusa.data.errors import FORWARD_PASS, EmbeddingsError


def refuse_unusable(rows: Rows, model: str, first: int) -> None:
    """Refuse embeddings that would rank anyhow: NaN compares as false, and zeros are as near to all.

    Args:
        rows: By head, float32 ``[n, d]``: of one batch.
        model: Name of the model.
        first: Number of the batch's first item.

    Raises:
        EmbeddingsError: If a row is not finite or all zeros; says of which item and head.
    """
    for head, head_rows in rows.items():
        is_finite, has_direction = np.isfinite(head_rows).all(axis=1), head_rows.any(axis=1)
        for is_wrong, problem in ((~is_finite, "not finite"), (~has_direction, "all zeros")):
            if is_wrong.any():
                number = first + int(np.argmax(is_wrong))
                message = (
                    f"{model}: the embedding ({head} head) of item {number} is {problem}; leave the item out, "
                    "or check the model's weights and the settings of its image processor"
                )
                raise EmbeddingsError(message, location=FORWARD_PASS, name=model)
