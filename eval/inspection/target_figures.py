"""What the terms of a loss would make of a batch: soft labels, masks or signs, in figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cusa.data.errors import SettingError
from cusa.eval.inspection.batch_figures import label_sharpness
from cusa.train.loader import Batch
from cusa.train.loss.config import MODALITIES, LossConfig, Term
from cusa.train.loss.rules.registry import RULES
from cusa.train.loss.rules.soft_labels import csa_labels, usa_labels
from cusa.train.loss.rules.tile import Tile
from cusa.train.loss.temperature_settings import Temperature, TemperaturePair
from cusa.train.loss.tiles import tiles_of_rows

# A term's name, and the modality of the queries.
TermName = tuple[str, str]


@dataclass(frozen=True)
class TargetFigures:
    """The targets of a term, means over the queries of a batch; NaN for what a term does not have.

    Attributes:
        perplexity: exp of the entropy of a query's soft labels, from 1 to B.
        own_label: The label of the pair itself, or its sign for a sigmoid loss, -1 to 1.
        greatest_other_label: The greatest label, or sign, of a pair of another image.
        leaving: Candidates that a guide takes out of a query's softmax.
        rows: Share of the queries from which it takes any, 0 to 1.
    """

    perplexity: float = math.nan
    own_label: float = math.nan
    greatest_other_label: float = math.nan
    leaving: float = math.nan
    rows: float = math.nan


def refuse_rules_without_targets(loss: LossConfig) -> None:
    """Refuse rules whose targets are no matter of the stored rows alone.

    Raises:
        SettingError: If the rule is one of them.
    """
    if loss.rule in ("self-guide", "features"):
        raise SettingError(
            f"loss.rule={loss.rule} cannot be inspected: its targets are the true pairs and what "
            "the student makes of them in training; inspect another rule",
            name="loss.rule",
        )


def target_figures(
    batch: Batch,
    loss: LossConfig,
) -> dict[TermName, TargetFigures]:
    """Measure the targets of CSA, USA and the rule of a loss, where it sums them.

    Args:
        batch: A batch with the teachers' rows.
        loss: Settings; learnable temperatures have their initial values.

    Raises:
        EmbeddingsError: If the loss lacks rows.
    """
    rows = (batch.teacher_image, batch.teacher_text)
    tiles = tiles_of_rows(rows, batch.cross_teachers, batch.image_ids, loss)
    figures: dict[TermName, TargetFigures] = {}
    for modality, tile in zip(MODALITIES, tiles, strict=True):
        for term in loss.terms:
            logits = _label_logits(term, modality, tile, loss)
            if logits is not None:
                labels = _softmax(logits)
                figures[term, modality] = _label_figures(labels, batch.image_ids)
        if loss.rule != "cusa":
            figures[loss.rule, modality] = _rule_figures(tile, loss, batch.image_ids)
    return figures


def _label_logits(
    term: Term,
    modality: str,
    tile: Tile,
    loss: LossConfig,
) -> torch.Tensor | None:
    """Return logits of a term's soft labels; ``None`` if it has none."""
    if term == "contrastive":
        return None
    _, name = loss.temperature_names(term)
    pair = loss.temperatures_in_use()[name]
    assert isinstance(pair, TemperaturePair)
    temperature: Temperature = getattr(pair, modality)
    if pair.shared:
        temperature = pair.mean()
    tau_soft = torch.tensor(temperature.init)
    if term == "csa":
        return csa_labels(tile, loss, tau_soft)
    return usa_labels(tile, loss, tau_soft)


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits.double(), dim=1)


def _label_figures(
    labels: torch.Tensor,
    image_ids: torch.Tensor,
) -> TargetFigures:
    sharpness = label_sharpness(labels, image_ids)
    return TargetFigures(
        perplexity=sharpness.perplexity,
        own_label=sharpness.own_label,
        greatest_other_label=sharpness.greatest_other_label,
    )


def _rule_figures(
    tile: Tile,
    loss: LossConfig,
    image_ids: torch.Tensor,
) -> TargetFigures:
    rule = RULES[loss.rule]
    rule_output = rule.function(tile, loss)
    match rule.gives:
        case "labels":
            return _label_figures(_softmax(rule_output), image_ids)
        case "distributions":
            return _label_figures(rule_output.double(), image_ids)
        case "mask":
            n_leaving = (~rule_output).sum(dim=1)
            has_any = n_leaving > 0
            return TargetFigures(
                leaving=float(n_leaving.double().mean()),
                rows=float(has_any.double().mean()),
            )
    same_image = image_ids[:, None] == image_ids
    greatest = rule_output.masked_fill(same_image, -torch.inf).amax(dim=1)
    greatest = greatest[greatest.isfinite()]
    return TargetFigures(
        own_label=float(rule_output.diagonal().mean()),
        greatest_other_label=float(greatest.mean()),
    )
