"""Hugging Face dual encoders (CLIPModel, SiglipModel, ...), whose two towers are of one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cusa.data.encoders.vision_encoder import is_dual_encoder
from cusa.data.errors import CusaError, StudentError, first_line
from cusa.data.hub import is_hub_name, locate
from cusa.data.pretrained import (
    lacking,
    load_embedding_model,
    load_image_processor,
    one_line_load_errors,
)
from cusa.data.tokenization import load_tokenizer, text_padding, token_limit
from cusa.train.towers.processors import ImageProcessing, Tokenization
from cusa.train.towers.tower import Tower, Towers
from cusa.train.towers.trunk import NamedInputs, Trunk

_PROBE_SIZES = ((48, 64), (64, 48), (40, 40))  # width and height: upright, landscape, square
_PROBE_TEXTS = [
    "a",
    "a dog on the beach",
    "two red cars in a street",
    "people at a table, eating 3 pizzas",
]


@dataclass(frozen=True)
class DualEncoder:
    """A Hugging Face dual encoder.

    Attributes:
        model: The transformers model, in float32.
        image_processing: Its image processor.
        tokenization: Its tokeniser.
        image_tower: Maps float ``[n, 3, h, w]`` to ``[n, image_dim]``; owns the parameters of both
            towers.
        text_tower: Maps token tensors by name to ``[n, text_dim]``.
        image_dim: Dimension of the image features.
        text_dim: Dimension of the text features.
    """

    model: Any
    image_processing: ImageProcessing
    tokenization: Tokenization
    image_tower: Trunk
    text_tower: Trunk
    image_dim: int
    text_dim: int


def dual_towers(
    source: str,
    pretrained: bool,
) -> Towers:
    """Make both towers of a Hugging Face dual encoder.

    Args:
        source: Name or folder to load configuration, tokeniser, image processor and weights from.
        pretrained: Whether to load weights; if not, they are random, for a checkpoint to replace.

    Raises:
        StudentError: If the model cannot be loaded or is not a dual encoder.
    """
    if not Path(source).is_dir() and not is_hub_name(source):
        raise StudentError(
            f"unknown student {source!r}; legal: adapter, a Hugging Face dual encoder "
            "(owner/model), a folder",
            name=source,
        )
    with one_line_load_errors("student", source, StudentError, _advice(source)):
        dual = load_dual_encoder(source, pretrained)

    def save_image(folder: Path) -> None:
        dual.model.config.save_pretrained(folder)
        dual.image_processing.image_processor.save_pretrained(folder)

    def save_text(folder: Path) -> None:
        dual.tokenization.tokenizer.save_pretrained(folder)

    image = Tower(dual.image_tower, dual.image_dim, dual.image_processing, dual.model, save_image)
    text = Tower(dual.text_tower, dual.text_dim, dual.tokenization, dual.model, save_text)
    return Towers(image, text)


def load_dual_encoder(source: str, pretrained: bool) -> DualEncoder:
    """Load a Hugging Face dual encoder.

    Args:
        source: Name or folder to load configuration, tokeniser, image processor and weights from.
        pretrained: Whether to load weights; if not, they are random.

    Raises:
        StudentError: If the model is not found, its weights or tokeniser are missing, it is not a
            dual encoder, or it takes other inputs than pixels and tokens.
        Exception: Whatever transformers raises for damaged files.
    """
    files = locate(source, StudentError)
    model, missing = load_embedding_model(files, pretrained)
    if missing:
        raise StudentError(lacking(source, missing), name=source)
    model_class = type(model).__name__
    if not is_dual_encoder(model):
        raise StudentError(
            f"{source!r} ({model_class}) is not a dual encoder for images and texts; use one",
            name=source,
        )
    tokenization = load_tokenization(files, model)
    image_processing = ImageProcessing(load_image_processor(files))
    image_tower = tower_of_dual(model, "image", source)
    text_tower = tower_of_dual(model, "text", source, owns_model=False)
    was_training = model.training
    model.eval()
    image_dim = usable_dim(
        source, model, lambda: probed_image_dim(image_tower, model, image_processing)
    )
    text_dim = usable_dim(
        source, model, lambda: probed_text_dim(text_tower, model, tokenization, pretrained)
    )
    model.train(was_training)
    return DualEncoder(
        model, image_processing, tokenization, image_tower, text_tower, image_dim, text_dim
    )


def load_tokenization(
    files: str,
    model: Any,
) -> Tokenization:
    """Load the tokeniser of a text model or dual encoder, with its limit of tokens.

    Raises:
        StudentError: If it has no usable tokeniser.
        Exception: Whatever transformers raises for damaged files.
    """
    tokenizer = load_tokenizer(files, StudentError)
    limit = token_limit(tokenizer, getattr(model, "text_model", model))
    return Tokenization(tokenizer, limit, text_padding(model.config.model_type))


def tower_of_dual(
    model: Any,
    modality: str,
    source: str,
    owns_model: bool = True,
) -> Trunk:
    """Make the trunk of one tower of a dual encoder.

    Args:
        model: The dual encoder.
        modality: ``"image"`` or ``"text"``.
        source: Its name or folder.
        owns_model: As :class:`Trunk` takes it.
    """
    method: Callable[..., Any] = getattr(model, f"get_{modality}_features")

    def encode(inputs: NamedInputs) -> torch.Tensor:
        output = method(**inputs)
        if isinstance(output, torch.Tensor):
            return output
        return output.pooler_output

    description = f"{type(model).__name__}, {modality} tower"
    return Trunk(encode, model, description, source, owns_model)


def probed_image_dim(
    trunk: Trunk,
    model: Any,
    preparation: Any,
) -> int:
    """Measure the dimension of image features, since model families name it differently.

    Args:
        trunk: The trunk.
        model: Its model, in eval mode.
        preparation: Preprocesses pictures.

    Raises:
        ValueError: If the model's inputs or features cannot be used; says why.
    """
    generator = np.random.default_rng(0)
    shape = (*_PROBE_SIZES[0], 3)
    noise = generator.integers(0, 256, shape).astype(np.uint8)
    pictures = [Image.fromarray(noise)]
    pictures += [Image.new("RGB", size) for size in _PROBE_SIZES]
    pixels = [preparation.pixels([picture]) for picture in pictures]
    shapes = {tuple(picture_pixels.shape) for picture_pixels in pixels}
    if len(shapes) > 1:
        raise ValueError(
            "its image processor makes pictures of varying size, which do not fit into batches; "
            "set do_center_crop and crop_size in its preprocessor_config.json, or use another model"
        )
    features = trunk.probe(model, torch.cat(pixels[:2]))
    return _feature_dim(features, "images")


def probed_text_dim(
    trunk: Trunk,
    model: Any,
    tokenization: Tokenization,
    pretrained: bool,
) -> int:
    """Measure the dimension of text features.

    Args:
        trunk: The trunk.
        model: Its model, in eval mode.
        tokenization: Tokenises captions.
        pretrained: Whether the model has its weights.

    Raises:
        ValueError: If the model's features cannot be used; says why.
    """
    features = trunk.probe(model, tokenization.tokens(_PROBE_TEXTS))
    dim = _feature_dim(features, "texts")
    first_text = features[:1].expand_as(features)
    if pretrained and torch.allclose(features, first_text, rtol=1e-6, atol=0):
        raise ValueError(
            "it gives different texts the same features; check its tokeniser and weights"
        )
    return dim


def usable_dim(
    source: str,
    model: Any,
    probed_dim: Callable[[], int],
) -> int:
    """Return the dimension of a model's features.

    Args:
        source: Its name or folder.
        model: The model.
        probed_dim: Measures the dimension.

    Raises:
        StudentError: If the model cannot be used; says why in one line.
    """
    try:
        return probed_dim()
    except Exception as error:  # on inputs that it does not take, a model raises nearly anything
        if isinstance(error, CusaError) and not isinstance(error, StudentError):
            raise
        raise StudentError(
            f"{source!r} ({type(model).__name__}) cannot be used: {first_line(error)}", name=source
        ) from None


def _feature_dim(
    features: torch.Tensor,
    kind: str,
) -> int:
    if features.ndim != 2:
        raise ValueError(f"its features of {kind} are not one row per item; use another model")
    return features.shape[1]


def _advice(source: str) -> str:
    if Path(source).is_dir():
        components = "config, weights, tokeniser and image processor"
        return f"its folder must hold a Hugging Face dual encoder: {components}"
    return (
        "legal: adapter, a Hugging Face dual encoder by name, or its folder. If this machine has "
        f"no network, run hf download {source} --local-dir FOLDER on one that has, copy the "
        "folder, and pass --student FOLDER"
    )
