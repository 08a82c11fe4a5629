"""The temperatures of the CUSA loss: parameters or buffers, clamped before every use."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cusa.train.loss.batch import ImageText
from cusa.train.loss.config import ALL_TERMS, LossConfig, SummedTerm, Temperature
from cusa.train.loss.gather import GatherGroup
from cusa.train.loss.rules.settings import Bias


class TermTemperatures(NamedTuple):
    """The temperatures of a term, scalars for the image direction and the text direction.

    Attributes:
        student: They divide the student's similarities.
        soft_labels: They divide the teacher's similarities; the contrastive term, which uses no
            teacher, and a rule, whose soft labels have constant ones, repeat the student's.
        bias: What a rule adds to the student's logits, a scalar; ``None``: nothing.
    """

    student: ImageText
    soft_labels: ImageText
    bias: Tensor | None = None


UsedTemperatures = dict[
    SummedTerm, TermTemperatures
]  # for the terms in use, in the order of ALL_TERMS


class LossTemperatures(nn.Module):
    """The temperatures that a loss's terms use, under the names of their settings, and a bias.

    Learnable temperatures are parameters, the others buffers. A pair that is not shared is two of
    them, with ``_image`` and ``_text`` appended to the name.

    Args:
        config: Settings.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self._settings: dict[str, Temperature | Bias] = {}
        for name, setting in config.temperatures_in_use().items():
            if isinstance(setting, Temperature):
                self._add(name, setting)
            elif setting.shared:
                self._add(name, setting.mean())
            else:
                self._add(f"{name}_image", setting.image)
                self._add(f"{name}_text", setting.text)
        if config.rule == "dr-sigmoid":
            self._add("sigmoid_bias", config.dr_sigmoid.bias)

    def _add(
        self,
        name: str,
        setting: Temperature | Bias,
    ) -> None:
        self._settings[name] = setting
        value = torch.tensor(float(setting.init))
        if setting.learnable:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the learnable temperatures, as timm's and open_clip's models do.

        Decay would pull them to their lower bounds.
        """
        return {name for name, _ in self.named_parameters(recurse=False)}

    def param_groups(self, lr: float | None = None) -> list[dict[str, Any]]:
        """Return the parameters as groups of an optimizer: temperatures without weight decay.

        The projections of the rule features are a group of their own, with the optimizer's decay.

        Args:
            lr: The temperatures' learning rate; ``None``: the optimizer's own.

        Returns:
            The groups; none if nothing is learnable.
        """
        groups: list[dict[str, Any]] = []
        temperatures = list(self.parameters(recurse=False))
        if temperatures:
            groups.append({"params": temperatures, "weight_decay": 0.0})
            if lr is not None:
                groups[0]["lr"] = lr
        projections = [weight for child in self.children() for weight in child.parameters()]
        if projections:
            groups.append({"params": projections})
        return groups

    def temperatures(self) -> dict[str, float]:
        """Return the temperatures by name, clamped as the next use will clamp them."""
        values = {}
        for name, setting in self._settings.items():
            value = getattr(self, name).item()
            # Clamp Python floats: 0.1 clamped in float32 would be logged as 0.10000000149.
            values[name] = min(max(value, setting.min), setting.max)
        return values

    def clamp_(self) -> None:
        """Clamp the temperatures to their bounds, in place."""
        for name, setting in self._settings.items():
            # Through .data, or a graph that still waits for its backward pass would be invalid.
            getattr(self, name).data.clamp_(setting.min, setting.max)

    def used_temperatures(
        self,
        group: GatherGroup | None,
        dtype: torch.dtype,
    ) -> UsedTemperatures:
        """Clamp the temperatures, and return them by term.

        Args:
            group: The ranks to sum their gradients over; ``None`` for one process.
            dtype: The dtype of the result.
        """
        self.clamp_()
        parameters = [getattr(self, name) for name in self._settings]
        if group is not None:
            parameters = list(group.sum_gradients(parameters))
        by_name = {}
        for name, parameter in zip(self._settings, parameters, strict=True):
            by_name[name] = parameter.to(dtype)

        def pair(name: str) -> ImageText:
            # Shared temperatures must be one tensor: the tiled loss compares them by identity.
            if name in by_name:
                return by_name[name], by_name[name]
            return by_name[f"{name}_image"], by_name[f"{name}_text"]

        used: UsedTemperatures = {}
        for term in ALL_TERMS:
            if term in self.config.summed_terms:
                student, soft_labels = self.config.temperature_names(term)
                used[term] = TermTemperatures(pair(student), pair(soft_labels))
        if "rule" in used:
            tau = by_name["tau"]
            if self.config.rule == "hycd" and self.config.hycd.temperature != 1:
                tau = tau * self.config.hycd.temperature
            used["rule"] = TermTemperatures((tau, tau), (tau, tau), by_name.get("sigmoid_bias"))
        return used
