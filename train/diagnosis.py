"""Why a step went wrong, in a line that names the images."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cusa.train.loader import Batch
from cusa.train.loss.cusa_loss import LossTerms
from cusa.train.step import TrainStep

_SHOWN_IDS = 8


@torch.no_grad()
def why_not_finite(
    step: TrainStep,
    batch: Batch,
    terms: LossTerms,
    image_ids: Sequence[str],
    number: int,
) -> str:
    """Tell why the loss of a batch, or its gradient, is not finite.

    Args:
        step: The module, with the weights that it had.
        batch: The batch.
        terms: Its loss.
        image_ids: Ids of the split's images by row.
        number: Number of the step, from 1.
    """
    faulty = [term for term in step.loss.config.terms if not torch.isfinite(getattr(terms, term))]
    features = torch.cat([rows for pair in step.encode(batch) for rows in pair], dim=1)
    is_wrong = ~torch.isfinite(features).all(dim=1)
    images = named_images(
        batch.image_ids[is_wrong] if is_wrong.any() else batch.image_ids,
        image_ids,
    )
    problem = f"gradient is not finite at step {number} ({images})"
    if faulty:
        problem = f"loss is not finite at step {number} ({', '.join(faulty)}; {images})"
    remedy = "begin a new run with a lower optim.lr or with --precision fp32"
    return f"the {problem}; the last checkpoint stays; {remedy}"


def named_images(rows: torch.Tensor, image_ids: Sequence[str]) -> str:
    """Name the images of a batch, the first few of them, each once.

    Args:
        rows: int64 ``[B]``: their rows in the split.
        image_ids: Ids of the split's images by row.
    """
    ids = [image_ids[row] for row in dict.fromkeys(rows.tolist())]
    others = f" and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
    return f"images {', '.join(ids[:_SHOWN_IDS])}{others}"
