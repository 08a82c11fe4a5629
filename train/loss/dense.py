"""The CUSA loss from whole similarity matrices: the formulas, written out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from cusa.train.loss.batch import ImageText, LossBatch, MaybeImageText, products
from cusa.train.loss.config import ALL_TERMS, LossConfig, Term
from cusa.train.loss.functions import (
    Distributions,
    contrastive_targets,
    distributions,
    divergence_sum,
    over,
)
from cusa.train.loss.rules.registry import RULES
from cusa.train.loss.rules.soft_labels import csa_labels, usa_labels
from cusa.train.loss.rules.tile import HIDDEN, Tile
from cusa.train.loss.temperatures import UsedTemperatures
from cusa.train.loss.tiles import as_matrix, cross_teachers, make_tile


def dense_loss(
    batch: LossBatch,
    similarity: ImageText,
    taus: UsedTemperatures,
    config: LossConfig,
) -> Sequence[Tensor]:
    """Return what some queries add to the loss; see :class:`cusa.train.loss.cusa_loss.CUSALoss`.

    Args:
        batch: L2-normalised, of one dtype.
        similarity: The student's similarities of n queries and all M candidates, image-to-text and
            text-to-image, ``[n, M]`` each.
        taus: Temperatures, in the features' dtype.
        config: Settings.

    Returns:
        Five scalars: their sum, which alone has a gradient, and the terms in the order of
        ``ALL_TERMS``.
    """
    values = dict.fromkeys(ALL_TERMS, similarity[0].new_zeros(()))
    if "contrastive" in taus:
        pairs = zip(similarity, taus["contrastive"].student, strict=True)
        logits = [over(cross, tau) for cross, tau in pairs]
        values["contrastive"] = contrastive_term(logits, batch, config)
    tiles: Sequence[Tile] = ()
    if config.summed_terms != ("contrastive",):
        tiles = _tiles(batch, similarity, config)
    labels = _SoftLabels(config)
    if "csa" in taus:
        values["csa"] = _soft_label_term("csa", similarity, tiles, labels, batch, taus)
    if "usa" in taus:
        uni = _uni_similarities(batch)
        values["usa"] = _soft_label_term("usa", uni, tiles, labels, batch, taus)
    if "rule" in taus:
        if batch.projected:
            similarity = _projected_similarities(batch)
        values["rule"] = _rule_term(similarity, tiles, batch, taus, config)
    total = values["contrastive"] + values["csa"] + values["usa"] + values["rule"]
    return total, *(value.detach() for value in values.values())


def contrastive_term(
    logits: ImageText,
    batch: LossBatch,
    config: LossConfig,
) -> Tensor:
    """Return the contrastive term, both directions, weighted: a scalar.

    Args:
        logits: Similarities over the temperature, image-to-text and text-to-image, ``[n, M]`` each.
        batch: The batch.
        config: Settings.
    """
    weight = config.row_weights(len(batch.cross[0]), batch.n_candidates)["contrastive"]
    targets = contrastive_targets(batch.image_ids, batch.rows, logits[0], batch.mask)
    total = batch.cross[0].new_zeros(())
    for direction in logits:
        visible = batch.hide_absent(direction)
        total = total + F.cross_entropy(visible, targets, reduction="sum")
    return weight * total


def _tiles(
    batch: LossBatch,
    similarity: ImageText,
    config: LossConfig,
) -> Sequence[Tile]:
    """Return all queries as one tile, for images and for captions."""
    images = make_tile(batch, config, 0, batch.rows, as_matrix)
    images = images._replace(student=similarity[0].detach())
    # The teachers' cosines within a modality are the same for both: compute them once.
    captions = images._replace(
        modality=1,
        cross=cross_teachers(batch, config, 1, batch.rows, as_matrix),
        student=similarity[1].detach(),
    )
    return images, captions


def _uni_similarities(batch: LossBatch) -> MaybeImageText:
    """Return the student's similarities within each modality that USA compares, ``[n, M]``."""
    matrices: list[Tensor | None] = []
    for queries, candidates in zip(batch.uni, batch.candidate_uni, strict=True):
        if queries is None or candidates is None:
            matrices.append(None)
        else:
            matrices.append(products(queries, candidates, batch.rows))
    return matrices


def _projected_similarities(batch: LossBatch) -> ImageText:
    """Return the similarities of the student's queries and projected teacher rows, ``[n, M]``."""
    matrices: list[Tensor] = []
    for modality, features in enumerate(batch.cross):
        matrices.append(products(features, batch.rule_candidates(modality), batch.rows))
    return matrices


class _SoftLabels:
    """The soft labels of CSA and USA, which are the same ones where both take them of one teacher.

    Args:
        config: Settings.
    """

    def __init__(self, config: LossConfig) -> None:
        self.config = config
        self._shared: dict[tuple[int, int], Distributions] = {}

    def for_term(
        self,
        term: Term,
        tile: Tile,
        tau: Tensor,
    ) -> Distributions | None:
        """Return a term's soft labels of a tile at a temperature; ``None`` if there are none."""
        config = self.config
        if term == "csa" and config.soft_label_source != "each":
            logits = csa_labels(tile, config, tau)
            return logits if logits is None else distributions(logits)
        # A temperature that both terms share is one tensor.
        key = (tile.modality, id(tau))
        if key not in self._shared:
            logits = usa_labels(tile, config, tau)
            if logits is None:
                return None
            self._shared[key] = distributions(logits)
        return self._shared[key]


def _soft_label_term(
    term: Term,
    student: MaybeImageText,
    tiles: Sequence[Tile],
    soft_labels: _SoftLabels,
    batch: LossBatch,
    taus: UsedTemperatures,
) -> Tensor:
    """Return CSA or USA, in the directions that have a teacher, weighted."""
    config = soft_labels.config
    weight = config.row_weights(len(batch.cross[0]), batch.n_candidates)[term]
    student_taus, soft_taus, _ = taus[term]
    total = batch.cross[0].new_zeros(())
    for similarity, tile, tau, tau_soft in zip(
        student, tiles, student_taus, soft_taus, strict=True
    ):
        labels = soft_labels.for_term(term, tile, tau_soft)
        if similarity is None or labels is None:
            # A gradient of zero instead of none: DDP waits for that of every parameter.
            total = total + 0 * (tau + tau_soft)
            continue
        logits = over(batch.hide_absent(similarity), tau)
        total = total + divergence_sum(logits, labels, config.divergence(term)) + 0 * tau_soft
    return weight * total


def _rule_term(
    student: ImageText,
    tiles: Sequence[Tile],
    batch: LossBatch,
    taus: UsedTemperatures,
    config: LossConfig,
) -> Tensor:
    """Return the term of the rule, both directions, weighted."""
    rule = RULES[config.rule]
    weight = config.row_weights(len(batch.cross[0]), batch.n_candidates)["rule"]
    student_taus, _, bias = taus["rule"]
    if bias is None:
        bias = student_taus[0].new_zeros(())
    total = batch.cross[0].new_zeros(())
    for similarity, tile, tau in zip(student, tiles, student_taus, strict=True):
        logits = over(batch.hide_absent(similarity), tau)
        rule_output = rule.function(tile, config)
        match rule.gives:
            case "labels":
                value = divergence_sum(logits, distributions(rule_output), rule.divergence)
            case "distributions":
                value = F.cross_entropy(logits, rule_output, reduction="sum")
            case "mask":
                visible = logits.masked_fill(~rule_output, HIDDEN)
                value = F.cross_entropy(visible, tile.hard_labels(), reduction="sum")
            case "signs":
                value = _sigmoid_sum(logits + bias, rule_output, batch.mask)
        total = total + value
    return weight * total


def _sigmoid_sum(
    logits: Tensor,
    signs: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """Return ``sum_ij -log sigmoid(signs_ij logits_ij)`` over the candidates that there are."""
    # The signs of empty slots are 0.
    losses = -F.logsigmoid(signs * logits)
    if mask is not None:
        losses = losses.masked_fill(~mask, 0)
    return losses.sum()
