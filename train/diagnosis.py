"""Why the loss or gradient of a step is not finite, in one line that names the images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cusa.train.loader import Batch
from cusa.train.loss.cusa_loss import LossTerms
from cusa.train.step import TrainStep

_NAMED_IMAGES = 8  # at most


@torch.no_grad()
def why_not_finite(
    step: TrainStep,
    batch: Batch,
    terms: LossTerms,
    image_ids: Sequence[str],
    step_number: int,
) -> str:
    """Describe which loss term, or the gradient, of a batch is not finite, and for which images.

    Args:
        step: The module, with the weights that gave this loss.
        batch: The batch.
        terms: Its loss.
        image_ids: Ids of the split's images, by row.
        step_number: Number of the step, from 1.
    """
    is_faulty = _faulty_pairs(step, batch)
    image_rows = batch.image_ids
    if is_faulty.any():  # otherwise any pair of the batch may be the cause
        image_rows = image_rows[is_faulty]
    images = named_images(image_rows, image_ids)

    values = terms._asdict()
    faulty_terms = []
    for term in step.loss.config.summed_terms:
        if not torch.isfinite(values[term]):
            faulty_terms.append(term)
    if faulty_terms:
        listed = ", ".join(faulty_terms)
        problem = f"loss is not finite at step {step_number} ({listed}; {images})"
    else:
        problem = f"gradient is not finite at step {step_number} ({images})"
    remedy = "begin a new run with a lower optim.lr or with --precision fp32"
    return f"the {problem}; the last checkpoint stays; {remedy}"


def _faulty_pairs(step: TrainStep, batch: Batch) -> Tensor:
    """Return which pairs have a feature that is not finite: bool ``[B]``."""
    # The step kept no features, so encode again.
    image, text = step.encode(batch)
    features = torch.cat([*image, *text], dim=1)
    is_finite = torch.isfinite(features).all(dim=1)
    return ~is_finite


def named_images(rows: Tensor, image_ids: Sequence[str]) -> str:
    """List the ids of the first few distinct images of a batch.

    Args:
        rows: int64 ``[B]``: the images' rows in the split.
        image_ids: Ids of the split's images, by row.
    """
    distinct_rows = list(dict.fromkeys(rows.tolist()))
    named_ids = [image_ids[row] for row in distinct_rows[:_NAMED_IMAGES]]
    listed = ", ".join(named_ids)
    n_unnamed = len(distinct_rows) - len(named_ids)
    if n_unnamed:
        return f"images {listed} and {n_unnamed} more"
    return f"images {listed}"
