"""The features, teacher rows and ids that a loss is computed from, and their similarities."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cusa.train.loss.arrays import Rows
from cusa.train.loss.rules.tile import HIDDEN
from cusa.train.loss.unit_features import unit_features

ImageText = Sequence[Tensor]  # the images' tensor and the texts'
MaybeImageText = Sequence[Tensor | None]  # the same; one or both may be missing
TeacherRows = Sequence[Sequence[Tensor]]  # of each image teacher, and of each text teacher

NEITHER: MaybeImageText = (None, None)
NO_TEACHER: TeacherRows = ((), ())


class Candidates(NamedTuple):
    """What the pairs of a batch are compared with if that is more than the batch: a queue.

    The first B candidates are the batch's own pairs, in their order, and Q others follow. In ALBEF,
    BLIP and X2-VLM, all of them are features of a momentum encoder.

    Attributes:
        image_features: float ``[B + Q, d]`` from the cross-modal image head.
        text_features: float ``[B + Q, d]`` from the cross-modal text head.
        uni_image_features: float ``[B + Q, d']`` from the uni-modal image head; USA needs it.
        uni_text_features: float ``[B + Q, d'']`` from the uni-modal text head; USA needs it.
        mask: bool ``[B + Q]``, a tensor or an array: ``False`` for empty slots, in which everything
            is ignored, NaN included; ``None``: there are none.
    """

    image_features: Tensor
    text_features: Tensor
    uni_image_features: Tensor | None = None
    uni_text_features: Tensor | None = None
    mask: Rows | None = None


class LossBatch(NamedTuple):
    """The inputs of a loss, for images and for texts.

    Attributes:
        cross: Features ``[N, d]`` from the cross-modal heads, some of whose rows are the queries.
        uni: Features ``[N, d']`` from the uni-modal heads, where a term needs them.
        candidate_cross: ``[M, d]``; ``cross`` itself if a batch is compared with itself.
        candidate_uni: ``[M, d']``; ``uni`` itself if a batch is compared with itself.
        teacher: Rows ``[M, e]`` of each image teacher and of each text teacher, where a term needs
            them.
        cross_teacher: Image rows and text rows ``[M, e]`` of each cross-modal teacher, where a term
            needs them.
        image_ids: int64 ``[M]``; ``None``: all different.
        mask: bool ``[M]``: which candidates there are; ``None``: all.
        rows: The n queries, as positions among the N rows and the M candidates alike.
        projected: Teacher rows in the student's space, ``[M, d]`` of images and of texts; only for
            the rule features.
    """

    cross: ImageText
    uni: MaybeImageText
    candidate_cross: ImageText
    candidate_uni: MaybeImageText
    teacher: TeacherRows
    cross_teacher: TeacherRows
    image_ids: Tensor | None
    mask: Tensor | None
    rows: slice
    projected: ImageText = ()

    @property
    def n_candidates(self) -> int | Tensor:
        """Return how many candidates there are; with a mask as a tensor, not to wait for a GPU."""
        if self.mask is None:
            return len(self.candidate_cross[0])
        return self.mask.sum().to(self.cross[0].dtype)

    @property
    def compares_itself(self) -> bool:
        """Return whether the queries are all pairs, and the candidates the same pairs."""
        n_queries = self.rows.stop - self.rows.start
        return self.candidate_cross is self.cross and n_queries == len(self.cross[0])

    def rule_candidates(self, modality: int) -> Tensor:
        """Return what a rule compares queries of a modality with: features ``[M, d]``."""
        return (self.projected or self.candidate_cross)[1 - modality]

    def hide_absent(self, similarity: Tensor) -> Tensor:
        """Hide the empty slots of similarities ``[n, M]`` from every softmax over a row."""
        if self.mask is None:
            return similarity
        return similarity.masked_fill(~self.mask, HIDDEN)

    def tensors(self) -> list[Tensor]:
        """Return features and teacher rows, without the candidates' features."""
        teacher_rows = itertools.chain(*self.teacher, *self.cross_teacher)
        tensors = (*self.cross, *self.uni, *teacher_rows)
        return [tensor for tensor in tensors if tensor is not None]

    def map(
        self,
        function: Callable[[Tensor], Tensor],
        with_cross: bool = True,
    ) -> LossBatch:
        """Apply a function to features and teacher rows.

        Args:
            function: The function.
            with_cross: Whether to apply it to features from the cross-modal heads, too.
        """
        cross, candidate_cross = self.cross, self.candidate_cross
        if with_cross:
            cross = [function(features) for features in self.cross]
            candidate_cross = cross
            if self.candidate_cross is not self.cross:
                candidate_cross = [function(features) for features in self.candidate_cross]
        uni = map_given(function, self.uni)
        candidate_uni = uni
        if self.candidate_uni is not self.uni:
            candidate_uni = map_given(function, self.candidate_uni)
        return self._replace(
            cross=cross,
            uni=uni,
            candidate_cross=candidate_cross,
            candidate_uni=candidate_uni,
            teacher=map_rows(function, self.teacher),
            cross_teacher=map_rows(function, self.cross_teacher),
        )


def map_rows(
    function: Callable[[Tensor], Tensor],
    teachers: TeacherRows,
) -> TeacherRows:
    """Apply a function to the rows of every teacher."""
    mapped: list[list[Tensor]] = []
    for rows_of_teachers in teachers:
        mapped.append([function(rows) for rows in rows_of_teachers])
    return mapped


def map_given(
    function: Callable[[Tensor], Tensor],
    tensors: MaybeImageText,
) -> MaybeImageText:
    """Apply a function to the tensors that are given."""
    mapped: list[Tensor | None] = []
    for tensor in tensors:
        mapped.append(None if tensor is None else function(tensor))
    return mapped


def in_one_dtype(batch: LossBatch) -> LossBatch:
    """Convert the inputs to float32, or to float64 if any of the student's features is float64."""
    features = (*batch.cross, *batch.uni, *batch.candidate_cross, *batch.candidate_uni)
    is_wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in features)
    dtype = torch.float64 if is_wide else torch.float32
    return batch.map(lambda tensor: tensor.to(dtype))


def normalized(
    batch: LossBatch,
    with_cross: bool,
) -> LossBatch:
    """L2-normalise the inputs, in float32 or wider.

    Each tensor keeps its own dtype (float16 becomes float32): float32 cannot hold the lengths of
    all float64 rows.

    Args:
        batch: Embeddings.
        with_cross: Whether to normalise those of the cross-modal heads, too.
    """
    return batch.map(_wide_unit_features, with_cross)


def _wide_unit_features(features: Tensor) -> Tensor:
    wide_dtype = torch.promote_types(features.dtype, torch.float32)
    return unit_features(features.to(wide_dtype))


def products(
    features: Tensor,
    candidates: Tensor,
    rows: slice,
) -> Tensor:
    """Return the products of the queries' features and all candidates': ``[n, M]``.

    Args:
        features: ``[N, d]``.
        candidates: ``[M, d]``.
        rows: The n queries, as positions in ``features``.
    """
    queries = own_rows(features, rows)
    if queries is candidates:
        own_products: Tensor = _OwnProducts.apply(features)
        return own_products
    return queries @ candidates.T


class _OwnProducts(torch.autograd.Function):
    """Products ``[N, N]`` of rows ``[N, d]``; autograd's own backward pass would multiply twice."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(rows)
        return rows @ rows.T

    @staticmethod
    def backward(
        ctx: Any,
        gradient: Tensor,
    ) -> Tensor:
        [rows] = ctx.saved_tensors
        # A row is a factor of its products as a query and as a candidate.
        return (gradient + gradient.T) @ rows


def cross_products(
    batch: LossBatch,
    factor: Tensor | None = None,
) -> ImageText:
    """Return the products of the queries' features and all candidates' of the other modality.

    Args:
        batch: The batch.
        factor: A scalar that multiplies the products; ``None``: 1.

    Returns:
        Image-to-text and text-to-image, ``[n, M]`` each.
    """
    image, text = batch.cross
    candidate_image, candidate_text = batch.candidate_cross
    # Multiply [N, d] instead of [n, M], as open_clip does.
    scaled_image = image if factor is None else image * factor
    image_to_text = products(scaled_image, candidate_text, batch.rows)
    if batch.compares_itself:
        # Softmaxes are of rows: several terms would copy the columns, each for itself.
        return image_to_text, image_to_text.T.contiguous()
    scaled_text = text if factor is None else text * factor
    return image_to_text, products(scaled_text, candidate_image, batch.rows)


def own_rows(
    features: Tensor,
    rows: slice,
) -> Tensor:
    """Return the queries' rows of ``[N, d]``: ``[n, d]``."""
    # Only slice if some rows are left out: a slice costs a copy in the backward pass.
    if rows.stop - rows.start < len(features):
        return features[rows]
    return features
