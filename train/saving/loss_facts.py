"""What a model card says of a loss."""

from __future__ import annotations

import dataclasses
from typing import Any

from cusa.train.config_building import by_full_name
from cusa.train.loss.config import LossConfig, Temperature, TemperaturePair

_TEMPERATURE_TITLES = {
    "tau": "tau",
    "tau_csa": "tau of CSA",
    "tau_usa": "tau of USA",
    "tau_soft": "tau of the soft labels",
    "tau_soft_usa": "tau of USA's soft labels",
}


def weighted_terms(loss: LossConfig) -> str:
    """Return the summed terms with their weights, as a formula."""
    pairs = zip(loss.summed_terms, loss.term_titles, strict=True)
    return " + ".join(f"{loss.weights[term]:g} * {title}" for term, title in pairs)


def rule_settings(loss: LossConfig) -> dict[str, Any]:
    """Return the settings of the loss's rule by name, and those that it shares with others."""
    section = loss.rule.replace("-", "_")
    settings: dict[str, Any] = {}
    if hasattr(loss, section):
        settings = by_full_name({section: dataclasses.asdict(getattr(loss, section))})
    if loss.cross_teacher_taus:
        taus = [f"{tau:g}" for tau in loss.cross_teacher_taus]
        settings["temperatures of the cross-modal teachers"] = ", ".join(taus)
    if loss.only_modality is not None:
        settings["soft labels of"] = f"{loss.only_modality}s alone"
    if loss.top_k is not None:
        settings["soft labels kept"] = loss.top_k
    return settings


def soft_label_teachers(loss: LossConfig) -> str:
    """Return the kinds of teachers that give the soft labels of CSA and USA, in words."""
    uni_modal = "uni-modal"
    if loss.only_modality is not None:
        uni_modal += f" {loss.only_modality}"
    if "csa" not in loss.terms or loss.soft_label_source != "cross":
        return uni_modal
    return f"{uni_modal} and cross-modal" if "usa" in loss.terms else "cross-modal"


def temperature_ranges(loss: LossConfig) -> dict[str, str]:
    """Return a description of each temperature that the terms use, by its title."""
    in_use = loss.temperatures_in_use()
    descriptions = {}
    for name, title in _TEMPERATURE_TITLES.items():
        if name in in_use:
            descriptions[title] = _described(in_use[name])
    return descriptions


def _described(temperature: Temperature | TemperaturePair) -> str:
    if isinstance(temperature, Temperature):
        if not temperature.learnable:
            return f"{temperature.init:g}, fixed"
        return f"from {temperature.init:g} in [{temperature.min:g}, {temperature.max:g}]"
    image = _described(temperature.image)
    text = _described(temperature.text)
    if temperature.shared and image == text:
        return f"{image}, shared"
    if temperature.shared:
        return f"mean of {image} and {text}, shared"
    if image == text:
        return f"image and text each {image}"
    return f"image {image}; text {text}"
