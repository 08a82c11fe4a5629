"""Embeddings that no ranking may see."""

from __future__ import annotations

import numpy as np

from cusa.data.embeddings import Rows
from cusa.data.errors import FORWARD_PASS, EmbeddingsError


def refuse_unusable(
    rows: Rows,
    model_name: str,
    first_item: int,
) -> None:
    """Refuse rows that would rank anyhow: NaN compares as false, and zeros are as near to all.

    Args:
        rows: By head, float32 ``[n, d]``: the rows of one batch.
        model_name: Name of the model.
        first_item: Number of the batch's first item.

    Raises:
        EmbeddingsError: If a row is not finite or all zeros; says of which item and head.
    """
    for head, head_rows in rows.items():
        is_not_finite = ~np.isfinite(head_rows).all(axis=1)
        is_zero = ~head_rows.any(axis=1)
        for is_unusable, problem in ((is_not_finite, "not finite"), (is_zero, "all zeros")):
            if is_unusable.any():
                item = first_item + int(np.argmax(is_unusable))
                raise EmbeddingsError(
                    f"{model_name}: the embedding ({head} head) of item {item} is {problem}; leave "
                    "the item out, or check the model's weights and the settings of its image "
                    "processor",
                    location=FORWARD_PASS,
                    name=model_name,
                )
