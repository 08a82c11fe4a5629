"""The temperatures of the CUSA loss: parameters or buffers of a module, clamped before any use."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cusa.train.loss.config import LossConfig, Temperature, Term
from cusa.train.loss.gather import GatherGroup
from cusa.train.loss.inputs import ImageText


class UsedTemperatures(NamedTuple):
    """Temperatures of the image and the text direction, scalars; ``None`` where no term needs any.

    Attributes:
        contrastive: Of the student in the contrastive term.
        csa: Of the student in CSA.
        csa_soft: Of CSA's soft labels.
        usa: Of the student in USA.
        usa_soft: Of USA's soft labels.
    """

    contrastive: ImageText | None
    csa: ImageText | None
    csa_soft: ImageText | None
    usa: ImageText | None
    usa_soft: ImageText | None


class LossTemperatures(nn.Module):
    """The temperatures that a loss's terms use, by the names of their settings.

    A learnable one is a parameter, another a buffer. A pair that is not shared is two, with
    ``_image`` and ``_text`` behind the name.

    Args:
        config: Settings.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self._settings: dict[str, Temperature] = {}
        for name, setting in config.temperatures_in_use().items():
            if isinstance(setting, Temperature):
                self._add(name, setting)
            elif setting.shared:
                self._add(name, setting.mean())
            else:
                self._add(f"{name}_image", setting.image)
                self._add(f"{name}_text", setting.text)

    def _add(self, name: str, setting: Temperature) -> None:
        self._settings[name] = setting
        value = torch.tensor(float(setting.init))
        if setting.learnable:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def temperatures(self) -> dict[str, float]:
        """Return the temperatures as the next use would clamp them, by name."""
        values: dict[str, float] = {}
        for name, setting in self._settings.items():
            value = getattr(self, name).item()
            # As Python floats: 0.1 clamped in float32 would be logged as 0.10000000149.
            values[name] = min(max(value, setting.min), setting.max)
        return values

    def _clamp_temperatures(self) -> None:
        for name, setting in self._settings.items():
            # .data: an in-place change that a graph still waiting for its backward ignores.
            getattr(self, name).data.clamp_(setting.min, setting.max)

    def used_temperatures(
        self,
        group: GatherGroup | None,
        dtype: torch.dtype,
    ) -> UsedTemperatures:
        """Clamp the temperatures, and return them by their use.

        Args:
            group: The ranks that their gradients are summed over, if there are several.
            dtype: Of the result.
        """
        self._clamp_temperatures()
        parameters = [getattr(self, name) for name in self._settings]
        if group is not None:
            parameters = list(group.sum_gradients(parameters))
        by_name: dict[str, Tensor] = {}
        for name, parameter in zip(self._settings, parameters, strict=True):
            by_name[name] = parameter.to(dtype)

        def pair(
            term: Term,
            of_soft_labels: bool = False,
        ) -> ImageText | None:
            if term not in self.config.terms:
                return None
            names = self.config.temperature_names(term)
            name = names.soft_labels if of_soft_labels else names.student
            # The same tensor wherever a temperature is shared: tiles tell by its identity.
            if name in by_name:
                return by_name[name], by_name[name]
            return by_name[f"{name}_image"], by_name[f"{name}_text"]

        return UsedTemperatures(
            contrastive=pair("contrastive"),
            csa=pair("csa"),
            csa_soft=pair("csa", of_soft_labels=True),
            usa=pair("usa"),
            usa_soft=pair("usa", of_soft_labels=True),
        )
