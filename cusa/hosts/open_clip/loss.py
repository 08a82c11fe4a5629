"""open_clip's own loss, with CSA and USA beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cusa.data.errors import DataError
from cusa.hosts.open_clip.model import SoftLabels
from cusa.hosts.pairs import SplitTeachers
from cusa.hosts.unused_features import with_gradients_of
from cusa.train.loss.config import column_divisor


class SoftLabelLoss(nn.Module):
    """open_clip's own loss, with CSA and USA beside it in the paper's proportions.

    ``logit_scale`` belongs to open_clip's loss; CSA and USA have the temperatures of the model's
    :class:`SoftLabels`. If ``contrastive_scaling`` is ``"paper"``, CSA and USA are multiplied by
    the number of pairs, because open_clip does not divide its loss by it.

    Args:
        open_clip_loss: ``ClipLoss`` or ``SigLipLoss`` of open_clip.
        soft_labels: The model's; see :func:`add_soft_labels`.
        teachers: The teachers' rows.
    """

    def __init__(
        self,
        open_clip_loss: nn.Module,
        soft_labels: SoftLabels,
        teachers: SplitTeachers,
    ) -> None:
        super().__init__()
        self.open_clip_loss = open_clip_loss
        self.config = soft_labels.config
        self.cusa = soft_labels.cusa
        self.teachers = teachers

    def forward(
        self,
        pair_labels: Tensor | None = None,
        uni_image_features: Tensor | None = None,
        uni_text_features: Tensor | None = None,
        output_dict: bool = False,
        **outputs: Any,
    ) -> dict[str, Tensor] | Tensor:
        """Compute the loss from the outputs of the model, given by name.

        Args:
            pair_labels: int64 ``[B, 2]``: split number and caption row.
            uni_image_features: float ``[B, d]``; USA needs it.
            uni_text_features: float ``[B, d]``; USA needs it.
            output_dict: Whether to return the terms.
            **outputs: The model's other outputs: those for open_clip's loss, and its temperatures.

        Returns:
            The loss, or the terms that it sums by name: ``contrastive_loss``, ``csa_loss``, ...

        Raises:
            DataError: If the batch has no labels, or pairs of several splits.
        """
        if pair_labels is None:
            raise DataError(
                "the tokens of the batch have no labels: give its data set to labelled_tokens",
                name="pair_labels",
            )
        temperatures = {}
        for name, _ in self.cusa.named_parameters():
            temperatures[name] = outputs.pop(name).mean()
        losses = {}
        for name, value in self.open_clip_loss(**outputs, output_dict=True).items():
            losses[name] = self.config.contrastive_weight * value
        uni_features = (uni_image_features, uni_text_features)
        features = (outputs["image_features"], outputs["text_features"], *uni_features)
        losses |= self._soft_label_losses(features, pair_labels, temperatures)
        if output_dict:
            return losses
        return torch.stack(list(losses.values())).sum()

    def _soft_label_losses(
        self,
        features: tuple[Tensor | None, ...],
        pair_labels: Tensor,
        temperatures: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Return the weighted terms, whose sum has the value and the gradient of their total.

        Only the total has a gradient, but a trainer sums what it logs: so the first term carries
        the gradient of all.
        """
        teacher_batch = self.teachers.rows(pair_labels)
        teacher_rows = (teacher_batch.image, teacher_batch.text, teacher_batch.image_ids)
        terms = functional_call(
            self.cusa,
            temperatures,
            (*features, *teacher_rows),
            {"cross_teachers": teacher_batch.cross},
        )

        n_pairs = len(pair_labels)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            n_pairs *= torch.distributed.get_world_size()
        scale = column_divisor("cross_entropy", self.config.contrastive_scaling, n_pairs)
        losses = {}
        first_term = with_gradients_of(terms.total, *features)
        first_name, *names = self.cusa.config.summed_terms
        for name in names:
            value = getattr(terms, name)
            losses[f"{name}_loss"] = scale * value
            first_term = first_term - value
        return {f"{first_name}_loss": scale * first_term, **losses}
