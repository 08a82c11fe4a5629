"""LoRA adapters in a student's towers, by peft."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from cusa.data.errors import SettingError, StudentError, first_line
from cusa.train.student_config import LoraConfig
from cusa.train.towers.tower import Tower

_SHOWN_LAYERS = 3
# Of subclasses that are made with other arguments, peft cannot make adapters.
_LAYERS = (nn.Linear, nn.Conv2d, nn.Embedding)


def add_adapters(
    towers: Sequence[Tower],
    config: LoraConfig,
) -> None:
    """Give towers LoRA adapters, and train nothing else of them.

    Args:
        towers: Towers with a model; two may share one.
        config: Rank, scale and layers.

    Raises:
        StudentError: If peft is not installed, or has no adapter for a layer.
        SettingError: If a tower has no layer of the names that settings give.
    """
    layers_of_model: dict[nn.Module, list[str]] = {}
    for tower in towers:
        layers = layers_of_model.setdefault(tower.model, [])
        layers += _layers(tower, config.targets)
        for module in tower.trunk.modules_run:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
    for model, layers in layers_of_model.items():
        _inject(model, layers, config)


def merge_adapters(model: nn.Module) -> None:
    """Add the adapters of a model to its own weights, and remove them."""
    for name, layer in list(model.named_modules()):
        if not hasattr(layer, "lora_A"):
            continue
        layer.merge()
        parent_name, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(parent_name), own_name, layer.get_base_layer())


def _layers(
    tower: Tower,
    targets: str | None,
) -> list[str]:
    """Return the names of the layers of a tower that get adapters."""
    names = []
    layers = []
    for name, module in tower.model.named_modules():
        if module not in tower.trunk.modules_run:
            continue
        if type(module) in _LAYERS:
            layers.append(name)
        is_target = isinstance(module, nn.Linear)
        if targets is not None:
            is_target = re.fullmatch(targets, name) is not None
        if is_target:
            names.append(name)
    if names:
        return names
    if not layers:
        raise SettingError(
            f"setting student.lora.towers: {type(tower.model).__name__} has no layers that take "
            "adapters; train that tower, or freeze it",
            name="student.lora.towers",
        )
    problem = f"{targets!r} matches no layer of {type(tower.model).__name__}"
    if targets is None:
        problem = f"{type(tower.model).__name__} has no linear layers; name others"
    raise SettingError(
        f"setting student.lora.targets: {problem}; its layers are "
        f"{', '.join(layers[:_SHOWN_LAYERS])} and others",
        name="student.lora.targets",
    )


def _inject(
    model: Any,
    layers: list[str],
    config: LoraConfig,
) -> None:
    try:
        import peft
    except ImportError:
        raise StudentError(
            "LoRA adapters need the package peft; pip install 'cusa[lora]'", name="peft"
        ) from None
    # peft freezes whatever has no adapter: also the other tower of a dual encoder.
    were_trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    adapters = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=layers,
    )
    try:
        peft.inject_adapter_in_model(adapters, model)
    except Exception as error:  # on layers of other kinds, peft raises nearly anything
        raise StudentError(
            f"peft has no adapters for these layers ({first_line(error)}); name others: "
            "student.lora.targets",
            name="student.lora.targets",
        ) from None
    for parameter, was_trained in were_trained:
        parameter.requires_grad_(was_trained)
