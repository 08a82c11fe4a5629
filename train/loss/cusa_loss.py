"""The CUSA loss (Huang et al., AAAI 2024): contrastive, CSA and USA; and other label rules.

:class:`CUSALoss` is the whole loss with its temperatures, on embeddings or on a similarity matrix;
its terms as functions of similarity matrices are in :mod:`cusa.train.loss.functions`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cusa.data.errors import EmbeddingsError, SettingError
from cusa.train.loss.arrays import Rows
from cusa.train.loss.batch import (
    Candidates,
    LossBatch,
    cross_products,
    in_one_dtype,
    normalized,
)
from cusa.train.loss.config import GivenLoss, check_option, given_loss
from cusa.train.loss.dense import contrastive_term, dense_loss
from cusa.train.loss.features import FeatureDims, Projections, checked_dims, feature_distance
from cusa.train.loss.gather import GatherGroup
from cusa.train.loss.inputs import require_tensors, take_batch
from cusa.train.loss.teacher_inputs import (
    CrossTeachers,
    TeacherArgument,
    with_mean_similarities,
)
from cusa.train.loss.temperatures import LossTemperatures, UsedTemperatures
from cusa.train.loss.tiled import tiled_loss

Method = Literal["auto", "dense", "tiled"]

# The batch size from which "auto" takes the tiled method, which is faster from there on two CPU
# cores (docs/benchmarks.md); for the contrastive term alone, eight times as large.
TILED_FROM = 512


class LossTerms(NamedTuple):
    """A loss and its weighted terms, scalars each: ``total`` is the sum of the others.

    Only ``total`` carries gradients; the terms are for logs. A term that is not used is 0.
    """

    total: Tensor
    contrastive: Tensor
    csa: Tensor
    usa: Tensor
    rule: Tensor


class CUSALoss(LossTemperatures):
    """The CUSA loss; owns the temperatures.

    ``L = L_con + alpha * L_csa + beta * L_usa`` (paper, section 3), of which ``config.terms`` are
    summed, and ``rule_weight`` times the term of ``config.rule`` (docs/rules.md). Temperatures are
    clamped to their bounds before every use; one that sits on a bound keeps its gradient.

    Args:
        config: Settings, or values by name; ``None``: the paper's for CLIP.
        method: How the loss of embeddings is computed. ``"dense"`` writes the formulas out on
            ``[B, B]`` matrices; ``"tiled"`` holds a few rows of them at a time and forms the
            gradient in the same sweep, so that memory grows with B, not with its square. Values and
            gradients are equal up to rounding; ``"auto"`` picks the faster one by size.
        tile_rows: Rows that the tiled method holds at a time; ``None``: as many as suit the device.
        normalize: Whether to L2-normalise the cross-modal features; ``False`` if they are already,
            as open_clip's are. Uni-modal features and teacher rows are always normalised.
        gather: Whether the batch is that of all ranks of ``torch.distributed``: loss and gradients
            are then those of one process on the concatenated batch, of which each rank computes its
            own rows. The gradients that reach a rank's features are multiplied by the number of
            ranks, because DDP averages over ranks; those of the temperatures are summed here and
            equal on every rank, inside DDP or not. Ranks may have different batch sizes, and all of
            them must call, in evaluation, too. Without a process group, or with one rank, it
            changes nothing.
        group: Process group to gather over; ``None``: the default one.
        feature_dims: Dimensions of features and teacher rows, for the rule ``"features"`` alone,
            whose projections are parameters of the loss.

    Raises:
        SettingError: If a setting, ``method`` or ``tile_rows`` is illegal, or ``feature_dims`` are
            for the rule features.
    """

    def __init__(
        self,
        config: GivenLoss = None,
        *,
        method: Method = "auto",
        tile_rows: int | None = None,
        normalize: bool = True,
        gather: bool = False,
        group: torch.distributed.ProcessGroup | None = None,
        feature_dims: FeatureDims | None = None,
    ) -> None:
        check_option("method", method, Method)
        if tile_rows is not None and tile_rows < 1:
            raise SettingError(f"tile_rows must be at least 1, got {tile_rows}", name="tile_rows")
        super().__init__(given_loss(config))
        self.method = method
        self.tile_rows = tile_rows
        self.normalize = normalize
        self.gather = gather
        self._group = group
        self.projections: Projections | None = None
        if self.config.rule == "features":
            self.projections = Projections(checked_dims(feature_dims))

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        uni_image_features: Tensor | None = None,
        uni_text_features: Tensor | None = None,
        teacher_image: TeacherArgument = None,
        teacher_text: TeacherArgument = None,
        image_ids: Rows | None = None,
        candidates: Candidates | None = None,
        cross_teachers: CrossTeachers = None,
    ) -> LossTerms:
        """Return the loss of B pairs.

        Features are L2-normalised here, in float32 or wider, also under autocast. Teacher rows and
        ids may be numpy arrays, read-only memory maps included; they are moved to the features'
        device. (``torch.compile`` needs tensors, and a compiled loss does not check its inputs.)

        With one teacher only, CSA and USA have one direction: images as queries if it is the image
        teacher, captions if it is the text teacher. A direction weighs what it weighs beside the
        other one, so that the losses of two teachers, one at a time, add up to that of both.

        Args:
            image_features: float ``[B, d]`` from the cross-modal image head.
            text_features: float ``[B, d]`` from the cross-modal text head.
            uni_image_features: float ``[B, d']`` from the uni-modal image head; USA needs it beside
                ``teacher_image``.
            uni_text_features: float ``[B, d'']`` from the uni-modal text head; USA needs it beside
                ``teacher_text``.
            teacher_image: float ``[M, e]`` of the image teacher, or a list of those of several; CSA
                and USA need it or the other one. No gradient flows into it.
            teacher_text: float ``[M, e']`` of the text teacher, or a list of those of several.
            image_ids: integers ``[M]``, the image of each candidate; ``None``: all different.
            candidates: The M candidates that the pairs are compared with, such as those of a
                momentum queue; ``None``: the B pairs themselves, and M is B. Not with ``gather`` on
                several ranks, where each rank's queue has the pairs of all of them already.
            cross_teachers: For each cross-modal teacher (a dual encoder), its image rows and its
                text rows, float ``[M, e]``; some rules need them. No gradient flows into them.

        Raises:
            EmbeddingsError: If a term lacks an input, sizes differ, features are not tensors, or a
                teacher row is zero or has no finite length; ``name`` is the argument and
                ``location`` the rows. (It is a ``ValueError``, as all errors of cusa are.)
        """
        require_tensors(
            image_features=image_features,
            text_features=text_features,
            uni_image_features=uni_image_features,
            uni_text_features=uni_text_features,
        )
        batch, fault = take_batch(
            cross=(image_features, text_features),
            uni=(uni_image_features, uni_text_features),
            teacher=(teacher_image, teacher_text),
            cross_teachers=cross_teachers,
            image_ids=image_ids,
            candidates=candidates,
            config=self.config,
        )
        group = GatherGroup.if_several(self._group) if self.gather else None
        if group is not None:
            if candidates is not None:
                fault = EmbeddingsError(
                    "candidates and gather=True exclude each other: a queue holds the pairs of all "
                    "ranks; pass CUSALoss(gather=False)",
                    name="candidates",
                )
            group.agree(batch.tensors(), batch.image_ids, fault)
        elif fault is not None:
            raise fault

        # Soft labels are close together: half precision would round their differences away.
        with torch.autocast(image_features.device.type, enabled=False):
            batch = self._prepared(batch, with_cross=self.normalize)
            if group is not None:
                batch = _gathered(batch, group)
            taus = self.used_temperatures(group, batch.cross[0].dtype)
            if self.projections is not None:
                batch = batch._replace(projected=self.projections.project(batch, group))
            share = self._share(batch, taus)
            if batch.projected:
                share = self._with_distance(share, batch)
            if group is None:
                return share
            terms = group.sum(torch.stack(share[1:]))
            # The value is that of all ranks' rows, the gradient that of this rank's.
            total = terms.sum() + (share.total - share.total.detach())
            return LossTerms(total, *terms)

    def on_similarities(
        self,
        similarity: Tensor,
        uni_image_features: Tensor | None = None,
        uni_text_features: Tensor | None = None,
        teacher_image: TeacherArgument = None,
        teacher_text: TeacherArgument = None,
        image_ids: Rows | None = None,
        cross_teachers: CrossTeachers = None,
    ) -> LossTerms:
        """Return the same loss for a model whose similarity is not a dot product.

        Examples are SGRAF, IMRAM and the scores of a fusion encoder. ``gather``, ``method`` and
        ``normalize`` have no effect here.

        Args:
            similarity: float ``[B, B]`` of image i and caption j, used as it is.
            uni_image_features: float ``[B, d']``, pooled from regions, say; as in :meth:`forward`.
            uni_text_features: float ``[B, d'']``, pooled from words, say; as in :meth:`forward`.
            teacher_image: As in :meth:`forward`.
            teacher_text: As in :meth:`forward`.
            image_ids: As in :meth:`forward`.
            cross_teachers: As in :meth:`forward`.

        Raises:
            EmbeddingsError: As in :meth:`forward`, or if ``similarity`` is empty or not square.
        """
        if self.projections is not None:
            raise EmbeddingsError(
                "the rule features compares features, which a similarity matrix does not have; "
                "call the loss on embeddings, or set another loss.rule",
                name="similarity",
            )
        require_tensors(
            similarity=similarity,
            uni_image_features=uni_image_features,
            uni_text_features=uni_text_features,
        )
        n_pairs = len(similarity)
        if n_pairs == 0 or similarity.shape != (n_pairs, n_pairs):
            raise EmbeddingsError(
                f"similarity must be [B, B] of at least one pair, got {list(similarity.shape)}",
                name="similarity",
            )
        batch, fault = take_batch(
            cross=(similarity, similarity.T),
            uni=(uni_image_features, uni_text_features),
            teacher=(teacher_image, teacher_text),
            cross_teachers=cross_teachers,
            image_ids=image_ids,
            candidates=None,
            config=self.config,
        )
        if fault is not None:
            raise fault
        with torch.autocast(similarity.device.type, enabled=False):
            batch = self._prepared(batch, with_cross=False)
            taus = self.used_temperatures(None, batch.cross[0].dtype)
            return LossTerms(*dense_loss(batch, batch.cross, taus, self.config))

    def _prepared(
        self,
        batch: LossBatch,
        with_cross: bool,
    ) -> LossBatch:
        """Return the batch in one dtype, normalised, with the teachers that are averaged as one."""
        unit_batch = in_one_dtype(normalized(batch, with_cross))
        return with_mean_similarities(unit_batch, self.config)

    def _share(
        self,
        batch: LossBatch,
        taus: UsedTemperatures,
    ) -> LossTerms:
        """Return what some queries add to the loss, by the chosen method."""
        if self._takes_tiles(batch):
            return LossTerms(*tiled_loss(batch, taus, self.config, self.tile_rows))
        if self.config.summed_terms == ("contrastive",):
            inverse_tau = taus["contrastive"].student[0].reciprocal()
            logits = cross_products(batch, inverse_tau)
            contrastive = contrastive_term(logits, batch, self.config)
            zero = contrastive.new_zeros(())
            return LossTerms(contrastive, contrastive.detach(), zero, zero, zero)
        return LossTerms(*dense_loss(batch, cross_products(batch), taus, self.config))

    def _with_distance(
        self,
        terms: LossTerms,
        batch: LossBatch,
    ) -> LossTerms:
        """Add the distances of the rule features to its term."""
        weight = self.config.rule_weight / 2 / len(batch.cross[0])
        distance = weight * self.config.features.distance_weight * feature_distance(batch)
        total = terms.total + distance
        return terms._replace(total=total, rule=terms.rule + distance.detach())

    def _takes_tiles(self, batch: LossBatch) -> bool:
        if self.method != "auto":
            return self.method == "tiled"
        least = TILED_FROM
        if self.config.summed_terms == ("contrastive",):
            least = 8 * TILED_FROM
        n_queries = batch.rows.stop - batch.rows.start
        return n_queries * len(batch.candidate_cross[0]) >= least**2


def _gathered(
    batch: LossBatch,
    group: GatherGroup,
) -> LossBatch:
    """Return the batch of all ranks, with this rank's pairs as queries."""
    ids = batch.image_ids
    if ids is not None:
        # int64: the ranks' ids may be of different types.
        ids = group.all_rows(ids.long())
    return batch.map(group.gather)._replace(image_ids=ids, rows=group.rows)
