"""The heads and the temperatures of CSA and USA, as parameters of an open_clip model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cusa.data.errors import RunError, SettingError
from cusa.hosts.open_clip.tokens import take_labels
from cusa.train.loss.config import GivenLoss, LossConfig, given_loss
from cusa.train.loss.cusa_loss import CUSALoss

# The name of the module within the model.
SOFT_LABELS = "soft_labels"


def without_contrastive(config: LossConfig) -> LossConfig:
    """Return settings without the contrastive term, which is open_clip's own.

    Raises:
        SettingError: If no term is left.
    """
    terms = tuple(term for term in config.terms if term != "contrastive")
    if not terms and config.rule == "cusa":
        raise SettingError(
            "loss.terms must have csa or usa, or loss.rule name a rule; to train with the "
            "contrastive term alone, start open_clip without cusa",
            name="loss.terms",
        )
    return replace(config, terms=terms)


class SoftLabels(nn.Module):
    """The uni-modal heads and the temperatures, as a module of an open_clip model.

    Each head is a LayerNorm and a Linear on the features that open_clip returns.

    Args:
        dim: Dimension of the model's features.
        config: Settings of the loss, or values by name; ``None``: the defaults. The contrastive
            term is open_clip's own.

    Attributes:
        config: The settings.
        cusa: The loss with the temperatures; it gathers the batches of all ranks.
        uni_heads: The heads ``image`` and ``text``; none without USA.

    Raises:
        SettingError: If a setting is illegal, or the loss has neither CSA nor USA nor a rule.
    """

    def __init__(self, dim: int, config: GivenLoss = None) -> None:
        super().__init__()
        self.config = given_loss(config)
        self.cusa = CUSALoss(without_contrastive(self.config), gather=True)
        self.uni_heads = nn.ModuleDict()
        if "usa" in self.config.terms:
            for name in ("image", "text"):
                self.uni_heads[name] = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        self.register_load_state_dict_pre_hook(_refuse_other_keys)

    def forward(self, image_features: Tensor, text_features: Tensor) -> dict[str, Tensor]:
        """Return what the loss needs besides the model's own outputs.

        Args:
            image_features: float ``[B, d]``.
            text_features: float ``[B, d]``.

        Returns:
            ``uni_image_features`` and ``uni_text_features``, float32 ``[B, d]``, if there is USA;
            and each learnable temperature by name, B times. The loss takes the mean: then batches
            can be concatenated, and each batch adds its share of a temperature's gradient.
        """
        outputs: dict[str, Tensor] = {}
        features = {"image": image_features, "text": text_features}
        for name, head in self.uni_heads.items():
            # With --precision pure_bf16, the model's features are bfloat16.
            outputs[f"uni_{name}_features"] = head(features[name].float())
        self.cusa.clamp_()
        for name, temperature in self.cusa.named_parameters():
            outputs[name] = temperature.expand(len(image_features))
        return outputs


def _refuse_other_keys(
    module: nn.Module,
    state: Mapping[str, Tensor],
    prefix: str,
    *_: Any,
) -> None:
    """Refuse a checkpoint without the module's parameters, or with those of other settings.

    Raises:
        RunError: If it is one.
    """
    expected_keys = {prefix + name for name in module.state_dict()}
    keys = {key for key in state if key.startswith(prefix)}
    if not keys:
        raise RunError(
            "the checkpoint was saved without soft labels; give its weights to open_clip as "
            "--pretrained instead of --resume",
            name=SOFT_LABELS,
        )
    if keys != expected_keys:
        raise RunError(
            "the checkpoint was saved with other settings of the loss; give --set as it was then "
            f"({', '.join(sorted(keys ^ expected_keys))} differ)",
            name=SOFT_LABELS,
        )


class _TakesLabels(nn.Module):
    """The forward of an open_clip model whose tokens may begin with labels."""

    soft_labels: SoftLabels

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Any:
        """Return the outputs of the model; for labelled tokens, with those of its SoftLabels.

        Args:
            image: float ``[B, 3, h, w]``.
            text: int64 ``[B, n]`` tokens, or ``[B, 2 + n]`` that begin with labels.
        """
        if text is None:
            return super().forward(image, text)
        pair_labels, tokens = take_labels(text)
        outputs = super().forward(image, tokens)
        if pair_labels is None:
            return outputs
        soft_label_outputs = self.soft_labels(outputs["image_features"], outputs["text_features"])
        return {**outputs, **soft_label_outputs, "pair_labels": pair_labels}


def add_soft_labels(model: nn.Module, config: GivenLoss = None) -> SoftLabels:
    """Add heads and temperatures to an open_clip model, in place.

    The names of the model's other parameters and its methods stay as they are. Call it before the
    optimizer is made, and before DDP.

    Args:
        model: A ``CLIP`` or ``CustomTextCLIP`` of open_clip.
        config: Settings of the loss, or values by name; ``None``: the defaults.

    Returns:
        The new module, ``model.soft_labels``.

    Raises:
        SettingError: If a setting is illegal, or the loss has neither CSA nor USA nor a rule.
    """
    clip: Any = model
    device = clip.logit_scale.device
    blank_text = torch.zeros(1, clip.context_length, dtype=torch.long, device=device)
    with torch.no_grad():
        dim = clip.encode_text(blank_text).shape[-1]
    clip.soft_labels = SoftLabels(dim, config).to(device)
    clip.output_dict = True
    # A class of its own, as fully_shard of torch does it: a wrapper would rename the parameters.
    model_class = type(model)
    clip.__class__ = type(f"SoftLabel{model_class.__name__}", (_TakesLabels, model_class), {})
    soft_labels: SoftLabels = clip.soft_labels
    return soft_labels
