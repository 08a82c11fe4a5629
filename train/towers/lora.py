"""LoRA adapters in a student's towers, by peft."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
        SettingError: If a tower has no layer of the names that settings give, or one of them is a
            grouped convolution.
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
    modules = {}
    for name, module in tower.model.named_modules():
        if module in tower.trunk.modules_run:
            modules[name] = module
    names = _targets(modules, targets)
    if not names:
        raise _no_target(type(tower.model).__name__, modules, targets)
    for name in names:
        if getattr(modules[name], "groups", 1) > 1:
            raise SettingError(
                f"setting student.lora.targets: {name} of {type(tower.model).__name__} is a "
                "depthwise or grouped convolution, to whose weights no adapter can be added later; "
                "name others",
                name="student.lora.targets",
            )
    return names


def _targets(
    modules: Mapping[str, nn.Module],
    targets: str | None,
) -> list[str]:
    """Return the names that settings ask for; see :class:`.LoraConfig`."""
    if targets is not None:
        return [name for name in modules if re.fullmatch(targets, name)]
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    pointwise = [name for name, module in modules.items() if _is_pointwise(module)]
    return linear or pointwise


def _is_pointwise(module: nn.Module) -> bool:
    """Return whether a module is a linear layer that maps each place of a picture by itself."""
    if type(module) is not nn.Conv2d:
        return False
    return module.kernel_size == (1, 1) and module.groups == 1


def _no_target(
    model_name: str,
    modules: Mapping[str, nn.Module],
    targets: str | None,
) -> SettingError:
    """Return the error of a tower none of whose layers gets an adapter."""
    layers = [name for name, module in modules.items() if type(module) in _LAYERS]
    if not layers:
        return SettingError(
            f"setting student.lora.towers: {model_name} has no layers that take adapters; train "
            "that tower, or freeze it",
            name="student.lora.towers",
        )
    problem = f"{targets!r} matches no layer of {model_name}"
    if targets is None:
        problem = f"{model_name} has neither linear layers nor 1 x 1 convolutions; name others"
    return SettingError(
        f"setting student.lora.targets: {problem}; its layers are {_listed(layers)}",
        name="student.lora.targets",
    )


def _listed(layers: Sequence[str]) -> str:
    """Return the first names of layers, for a message."""
    listed = ", ".join(layers[:_SHOWN_LAYERS])
    if len(layers) > _SHOWN_LAYERS:
        listed += " and others"
    return listed


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
            f"peft cannot adapt {_listed(layers)} ({first_line(error)}); name other layers: "
            "student.lora.targets",
            name="student.lora.targets",
        ) from None
    for parameter, was_trained in were_trained:
        parameter.requires_grad_(was_trained)
    for module in model.modules():
        if hasattr(module, "lora_A"):
            _show_shape(module)


def _show_shape(layer: Any) -> None:
    """Give an adapted convolution the attributes by which a model may pad (MobileNet does)."""
    base = layer.get_base_layer()
    if isinstance(base, nn.Conv2d):
        for name in ("kernel_size", "stride", "dilation"):
            setattr(layer, name, getattr(base, name))
