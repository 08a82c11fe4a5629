"""A tile: what the label rules are computed from, for a few queries and all candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# The similarity of an empty slot, and the logit of a soft label of zero: it gets no weight in a
# softmax, and is finite in float32 whatever the temperature. Infinity would make NaN when
# multiplied by a probability of zero.
HIDDEN = -1e20

# Returns one teacher's cosines, divided by a temperature: ``[n, M]``. Who has the rows divides
# these, ``[n, e]``, which is cheaper.
CosinesOver = Callable[[Tensor | float], Tensor]


class Teachers(NamedTuple):
    """The teachers of a modality, or the cross-modal ones, on a tile.

    Attributes:
        cosines: Of each teacher.
        weights: Of each teacher; they sum to one.
        taus: The temperature of each teacher; empty: whoever asks gives one.
    """

    cosines: Sequence[CosinesOver] = ()
    weights: Sequence[float] = ()
    taus: Sequence[float] = ()

    def mean_cosines(self) -> Tensor:
        """Return the weighted mean of the teachers' cosines: ``[n, M]``."""
        if len(self.cosines) == 1:
            return self.cosines[0](1.0)
        weighted = []
        for weight, cosines_over in zip(self.weights, self.cosines, strict=True):
            weighted.append(weight * cosines_over(1.0))
        return torch.stack(weighted).sum(dim=0)

    def logits(self, tau: Tensor | float) -> Sequence[Tensor]:
        """Return each teacher's cosines over its temperature, or over ``tau``: ``[n, M]`` each."""
        taus: Sequence[Tensor | float] = self.taus
        if not taus:
            taus = [tau] * len(self.cosines)
        matrices: list[Tensor] = []
        for cosines_over, teacher_tau in zip(self.cosines, taus, strict=True):
            matrices.append(cosines_over(teacher_tau))
        return matrices


class Tile(NamedTuple):
    """What teachers and ids say of n queries of one modality and M candidates of the other.

    The first candidates are the pairs of the batch, the queries among them.

    Attributes:
        modality: Of the queries: 0 for images, 1 for captions.
        uni: The image teachers and the text teachers, each comparing within its modality.
        cross: The cross-modal teachers, which compare the queries with candidates of the other
            modality.
        student: The student's own cosines across modalities, ``[n, M]``, without a gradient; only
            for a rule that needs them.
        queries: The queries' positions among the candidates.
        reference: A tensor of the device and dtype of the results.
        n_candidates: M.
        image_ids: int64 ``[M]``; ``None``: all different.
        mask: bool ``[M]``: which candidates there are; ``None``: all.
    """

    modality: int
    uni: tuple[Teachers, Teachers]
    cross: Teachers
    student: Tensor | None
    queries: slice
    reference: Tensor
    n_candidates: int
    image_ids: Tensor | None = None
    mask: Tensor | None = None

    def hide_absent(self, logits: Tensor) -> Tensor:
        """Hide the empty slots of ``[n, M]`` from every softmax over a row."""
        if self.mask is None:
            return logits
        return logits.masked_fill(~self.mask, HIDDEN)

    def hard_labels(self) -> Tensor:
        """Return the distributions in which a query's positives share evenly: ``[n, M]``."""
        if self.image_ids is not None:
            return same_image_labels(self.image_ids, self.queries, self.reference.dtype, self.mask)
        # All images differ: a query's own candidate is its only positive.
        n_queries = self.queries.stop - self.queries.start
        labels = self.reference.new_zeros(n_queries, self.n_candidates)
        labels.diagonal(self.queries.start).fill_(1)
        return labels

    def mean_label_logits(
        self,
        teachers: Teachers,
        tau: Tensor | float,
    ) -> Tensor:
        """Return logits of the mean over teachers of ``softmax_j(cosine_ij / tau)``: ``[n, M]``.

        Args:
            teachers: At least one.
            tau: Temperature of the teachers that have none of their own.
        """
        logits = [self.hide_absent(matrix) for matrix in teachers.logits(tau)]
        if len(logits) == 1:
            return logits[0]
        log_labels = F.log_softmax(torch.stack(logits), dim=-1)
        return torch.logsumexp(_weighted(log_labels, teachers.weights), dim=0)

    def label_slope(
        self,
        teachers: Teachers,
        tau: Tensor,
    ) -> Tensor:
        """Return ``tau`` times the derivative of :meth:`mean_label_logits` by it: ``[n, M]``.

        Softmaxes do not see a shift of a row, so that neither does this.
        """
        logits = [self.hide_absent(matrix) for matrix in teachers.logits(tau)]
        if teachers.taus:
            return torch.zeros_like(logits[0])
        if len(logits) == 1:
            return -logits[0]
        stacked = torch.stack(logits)
        log_labels = F.log_softmax(stacked, dim=-1)
        # How much of a label is each teacher's.
        shares = torch.softmax(_weighted(log_labels, teachers.weights), dim=0)
        means = (log_labels.exp() * stacked).sum(dim=-1, keepdim=True)
        return -(shares * (stacked - means)).sum(dim=0)


def _weighted(
    log_labels: Tensor,
    weights: Sequence[float],
) -> Tensor:
    """Return logarithms of each teacher's labels times its weight: ``[teachers, n, M]``."""
    matrices: list[Tensor] = []
    for matrix, weight in zip(log_labels, weights, strict=True):
        matrices.append(matrix + math.log(weight))
    return torch.stack(matrices)


def same_image_labels(
    image_ids: Tensor,
    queries: slice,
    dtype: torch.dtype,
    mask: Tensor | None,
) -> Tensor:
    """Return uniform distributions over the candidates of each query's image.

    Args:
        image_ids: int64 ``[m]``.
        queries: The n queries, as positions in ``image_ids``.
        dtype: The dtype of the result.
        mask: bool ``[m]``: which candidates there are; ``None``: all.

    Returns:
        ``[n, m]``; every row sums to one.
    """
    is_positive = image_ids[queries, None] == image_ids
    if mask is not None:
        is_positive = is_positive & mask
    weights = is_positive.to(dtype)
    return weights / weights.sum(dim=-1, keepdim=True)
