"""The rule features: teacher rows, projected to the student's space, as features to come close to.

CLIP-KD (Yang et al., CVPR 2024) distils a dual encoder by several losses, of which the feature
distillation (their ``L_FD``) and the interactive contrastive learning (``L_ICL``) are the two that
take a teacher's rows rather than its similarities. With student features v_i and t_i and projected
teacher rows a_i and b_i, all of length one, in each direction

    distance     sum_i |v_i - a_i|^2 / B
    interactive  sum_i -log softmax_j(v_i.b_j / tau) / B, at the positives of i, which share evenly

and with captions as queries t_i, b_i and a_j. Both are averaged over the two directions. The
interactive term is the contrastive one against the teacher's candidates instead of the student's.
In the paper, teacher and student are dual encoders, and the student is projected to the teacher's
space if their dimensions differ. Here, an image and a text teacher serve, which only projections to
the student's space bring together. The distance alone is then least with all pairs at one point, so
that it needs another term beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cusa.data.errors import EmbeddingsError, SettingError
from cusa.train.loss.batch import ImageText, LossBatch, own_rows
from cusa.train.loss.config import MODALITIES
from cusa.train.loss.gather import GatherGroup
from cusa.train.loss.unit_features import unit_features


class FeatureDims(NamedTuple):
    """The dimensions that the rule features projects between.

    Attributes:
        student: Of the student's cross-modal features.
        image: Of the image teacher's rows; the sum of those of several.
        text: Of the text teacher's rows; the sum of those of several.
    """

    student: int
    image: int
    text: int


def checked_dims(dims: FeatureDims | None) -> FeatureDims:
    """Return the dimensions, and refuse what is none.

    Raises:
        SettingError: If they are missing, or are no whole numbers above zero.
    """
    if not isinstance(dims, FeatureDims) or not all(
        isinstance(dim, int) and dim > 0 for dim in dims
    ):
        raise SettingError(
            "the rule features projects teacher rows to the student's space: give CUSALoss their "
            "dimensions, whole numbers above zero, as feature_dims=FeatureDims(student, image, "
            f"text); got {dims!r}",
            name="feature_dims",
        )
    return dims


class Projections(nn.Module):
    """Learnable linear maps from teacher rows to the student's space, one for each modality.

    Args:
        dims: The dimensions.
    """

    def __init__(self, dims: FeatureDims) -> None:
        super().__init__()
        self.image = nn.Linear(dims.image, dims.student, bias=False)
        self.text = nn.Linear(dims.text, dims.student, bias=False)

    def project(
        self,
        batch: LossBatch,
        group: GatherGroup | None,
    ) -> ImageText:
        """Return the projected rows of the image teachers and of the text teachers: ``[M, d]``.

        Args:
            batch: The batch of all ranks.
            group: The ranks to sum the gradients over; ``None`` for one process.

        Raises:
            EmbeddingsError: If rows or features have other dimensions.
        """
        projected: list[Tensor] = []
        for modality, rows_of_teachers in zip(MODALITIES, batch.teacher, strict=True):
            linear = getattr(self, modality)
            rows = torch.cat([*rows_of_teachers], dim=1)
            sizes = (batch.cross[0].shape[1], rows.shape[1])
            if linear.weight.shape != sizes:
                raise EmbeddingsError(
                    f"feature_dims are {list(linear.weight.shape)} for the student and the "
                    f"{modality} teacher, but their features have {list(sizes)} columns",
                    name="feature_dims",
                )
            weight = linear.weight
            if group is not None:
                [weight] = group.sum_gradients([weight])
            projected.append(unit_features(F.linear(rows, weight.to(rows.dtype))))
        return projected


def feature_distance(batch: LossBatch) -> Tensor:
    """Return the squared distances of the queries from their projected rows: a scalar.

    They are summed over queries and over both modalities.
    """
    total = batch.cross[0].new_zeros(())
    for features, projected in zip(batch.cross, batch.projected, strict=True):
        queries = own_rows(features, batch.rows)
        targets = own_rows(projected, batch.rows)
        total = total + F.mse_loss(queries, targets, reduction="sum")
    return total
