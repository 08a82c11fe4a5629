"""Students: dual encoders with cross-modal and uni-modal heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from cusa.data.embeddings import HEADS
from cusa.data.errors import FORWARD_PASS, StudentError, first_line
from cusa.data.hub import is_hub_name, locate
from cusa.data.pretrained import (
    lacking,
    load_config,
    load_embedding_model,
    load_image_processor,
    one_line_load_errors,
    processed,
)
from cusa.data.tokenization import load_tokenizer, text_padding, token_limit, tokenized
from cusa.train.settings import Field, Number, Text, WholeNumber, settings

HEAD_INIT_STD = 0.02
GREATEST_DIM = 16_384


@settings
class StudentConfig:
    """The kind of student and its sizes.

    Attributes:
        name: ``"adapter"``, or the name or folder of a Hugging Face dual encoder.
        init: Path of a trained student to begin with: a run, its ``best/``, or an hf export;
            ``None``: none.
        image_encoder: Adapter only: the store's teacher whose rows are the image input.
        text_encoder: Adapter only: the store's teacher whose rows are the text input.
        hidden_dim: Adapter only: width of its trunks.
        embed_dim: Dimension of all four heads; ``None``: that of the student's features.
        dropout: Adapter only: dropout after the trunks.
    """

    name: Text = Field(default="openai/clip-vit-base-patch32", min_length=1)
    init: Text | None = Field(default=None, min_length=1)
    image_encoder: Text | None = None
    text_encoder: Text | None = None
    hidden_dim: WholeNumber = Field(default=512, ge=1, le=GREATEST_DIM)
    embed_dim: WholeNumber | None = Field(default=None, ge=1, le=GREATEST_DIM)
    dropout: Number = Field(default=0.1, ge=0, lt=1)


class Features(NamedTuple):
    """Embeddings of one modality from both heads, float ``[n, embed_dim]``, not normalised."""

    cross: torch.Tensor
    uni: torch.Tensor


class Student(nn.Module):
    """A dual encoder: a trunk per modality, each with a cross-modal and a uni-modal head.

    A head is a LayerNorm and a Linear.

    Args:
        image_trunk: Maps image inputs to float ``[n, image_dim]``.
        text_trunk: Maps text inputs to float ``[n, text_dim]``.
        image_dim: Dimension of the image trunk's features.
        text_dim: Dimension of the text trunk's features.
        embed_dim: Dimension of the heads' embeddings; ``None``: that of the trunk's features.
    """

    def __init__(
        self,
        image_trunk: nn.Module,
        text_trunk: nn.Module,
        image_dim: int,
        text_dim: int,
        embed_dim: int | None,
    ) -> None:
        super().__init__()
        self.image_trunk = image_trunk
        self.text_trunk = text_trunk
        self.image_heads = _heads(image_dim, embed_dim or image_dim)
        self.text_heads = _heads(text_dim, embed_dim or text_dim)

    @property
    def embed_dim(self) -> int:
        """Return the dimension of the embeddings of the cross-modal heads."""
        return len(self.image_heads.get_parameter("cross.1.bias"))

    def encode_image(self, inputs: Any) -> Features:
        """Embed images, given as the image trunk takes them."""
        return _both_heads(self.image_heads, self.image_trunk(inputs))

    def encode_text(self, inputs: Any) -> Features:
        """Embed texts, given as the text trunk takes them."""
        return _both_heads(self.text_heads, self.text_trunk(inputs))


def _heads(feature_dim: int, embed_dim: int) -> nn.ModuleDict:
    heads = nn.ModuleDict()
    for head_name in HEADS:
        linear = nn.Linear(feature_dim, embed_dim)
        nn.init.normal_(linear.weight, std=HEAD_INIT_STD)
        nn.init.zeros_(linear.bias)
        heads[head_name] = nn.Sequential(nn.LayerNorm(feature_dim), linear)
    return heads


def _both_heads(heads: nn.ModuleDict, features: torch.Tensor) -> Features:
    cross = heads["cross"](features)
    uni = heads["uni"](features)
    return Features(cross, uni)


def adapter_student(
    config: StudentConfig,
    image_dim: int,
    text_dim: int,
) -> Student:
    """Make a student of small MLPs on stored embeddings; no encoder is trained or loaded.

    Args:
        config: Its sizes.
        image_dim: Dimension of the stored image embeddings.
        text_dim: Dimension of the stored text embeddings.
    """
    hidden_dim = config.hidden_dim

    def trunk(dim: int) -> nn.Sequential:
        linear = nn.Linear(dim, hidden_dim)
        dropout = nn.Dropout(config.dropout)
        return nn.Sequential(linear, nn.GELU(), dropout)

    image_trunk = trunk(image_dim)
    text_trunk = trunk(text_dim)
    return Student(image_trunk, text_trunk, hidden_dim, hidden_dim, config.embed_dim)


@dataclass(frozen=True)
class Processors:
    """The image processor and tokeniser that make a Hugging Face student's inputs.

    Attributes:
        image_processor: The image processor, of transformers.
        tokenizer: The tokeniser, of transformers; it has a padding token.
        max_length: The number of tokens that longer captions are cut to; ``None``: no caption is
            cut.
        padding: ``"longest"``, or ``"max_length"`` for models that attend to their padding.
    """

    image_processor: Any
    tokenizer: Any
    max_length: int | None
    padding: str

    def save(self, folder: Path) -> None:
        """Save both beside the model's configuration."""
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def tokens(self, captions: list[str]) -> dict[str, torch.Tensor]:
        """Tokenise captions: int64 ``[n, length]`` by name of the model's input."""
        return tokenized(self.tokenizer, captions, self.max_length, self.padding)

    def pixels(self, images: list[Any]) -> torch.Tensor:
        """Preprocess PIL images: float32 ``[n, 3, h, w]``.

        Raises:
            ImageError: If an image is too narrow to be resized.
        """
        pixels = processed(self.image_processor, images)["pixel_values"]
        return torch.from_numpy(np.asarray(pixels, np.float32))


def dual_encoder_student(
    config: StudentConfig,
    source: str,
    pretrained: bool,
) -> tuple[Student, Processors, Any]:
    """Make a student of a Hugging Face dual encoder (CLIPModel, SiglipModel, ...) and four heads.

    Args:
        config: Its sizes.
        source: Name or folder to load configuration, tokeniser, image processor and weights from.
        pretrained: Whether to load weights; if not, they are random, for a checkpoint to replace.

    Returns:
        The student, its processors, and its backbone, which the student's trunks share.

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
        dual_encoder = load_dual_encoder(source, pretrained)
    student = Student(
        dual_encoder.image_tower,
        dual_encoder.text_tower,
        dual_encoder.image_dim,
        dual_encoder.text_dim,
        config.embed_dim,
    )
    return student, dual_encoder.processors, dual_encoder.model


@dataclass(frozen=True)
class DualEncoder:
    """A Hugging Face dual encoder.

    Attributes:
        model: The transformers model, in float32.
        processors: Its image processor and tokeniser.
        image_tower: Maps float ``[n, 3, h, w]`` to ``[n, image_dim]``; owns the parameters of both
            towers.
        text_tower: Maps token tensors by name to ``[n, text_dim]``.
        image_dim: Dimension of the image features.
        text_dim: Dimension of the text features.
    """

    model: Any
    processors: Processors
    image_tower: nn.Module
    text_tower: nn.Module
    image_dim: int
    text_dim: int


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
    model = _load_model(files, source, pretrained)
    model_class = type(model).__name__
    for method in ("get_image_features", "get_text_features"):
        if not hasattr(model, method):
            raise StudentError(
                f"{source!r} ({model_class}) is not a dual encoder for images and texts; use one",
                name=source,
            )
    tokenizer = load_tokenizer(files, StudentError)
    limit = token_limit(tokenizer, getattr(model, "text_model", model))
    padding = text_padding(model.config.model_type)
    processors = Processors(load_image_processor(files), tokenizer, limit, padding)
    image_tower = _Tower(model, "image", source)
    text_tower = _Tower(model, "text", source)
    was_training = model.training
    model.eval()
    try:
        image_dim, text_dim = _probed_dims(image_tower, text_tower, processors, pretrained)
    except Exception as error:  # on inputs that it does not take, a model raises nearly anything
        raise StudentError(
            f"{source!r} ({model_class}) cannot be used: {first_line(error)}", name=source
        ) from None
    model.train(was_training)
    return DualEncoder(model, processors, image_tower, text_tower, image_dim, text_dim)


_PROBE_SIZES = ((48, 64), (64, 48), (40, 40))  # width and height: upright, landscape, square
_PROBE_TEXTS = [
    "a",
    "a dog on the beach",
    "two red cars in a street",
    "people at a table, eating 3 pizzas",
]


def _advice(source: str) -> str:
    if Path(source).is_dir():
        components = "config, weights, tokeniser and image processor"
        return f"its folder must hold a Hugging Face dual encoder: {components}"
    return (
        "legal: adapter, a Hugging Face dual encoder by name, or its folder. If this machine has "
        f"no network, run hf download {source} --local-dir FOLDER on one that has, copy the "
        "folder, and pass --student FOLDER"
    )


def _load_model(
    files: str,
    source: str,
    pretrained: bool,
) -> Any:
    """Load the model in float32, which autocast needs, whatever the dtype of its checkpoint."""
    from transformers import AutoModel

    if not pretrained:
        config = load_config(files)
        return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model, missing = load_embedding_model(files)
    if missing:
        raise StudentError(lacking(source, missing), name=source)
    return model


class _Tower(nn.Module):
    """One tower of a dual encoder; the image tower owns the parameters of both."""

    def __init__(
        self,
        model: Any,
        tower: str,
        source: str,
    ) -> None:
        super().__init__()
        self._encode = getattr(model, f"get_{tower}_features")
        self._name = f"{type(model).__name__}, {tower} tower"
        self._source = source
        if tower == "image":
            self.backbone = model

    def forward(self, inputs: torch.Tensor | Mapping[str, torch.Tensor]) -> torch.Tensor:
        if not isinstance(inputs, Mapping):
            inputs = {"pixel_values": inputs}
        try:
            return self._features(inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a model's own code raises nearly anything
            raise StudentError(
                f"student {self._source!r} ({self._name}) fails on {self._item(inputs)} "
                f"({first_line(error)})",
                name=self._source,
                location=FORWARD_PASS,
            ) from None

    def _features(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        output = self._encode(**inputs)
        if isinstance(output, torch.Tensor):
            return output
        return output.pooler_output

    @torch.no_grad()
    def _item(self, inputs: Mapping[str, torch.Tensor]) -> str:
        """Describe what a batch fails on: the first item that also fails by itself, if any."""
        n_items = len(next(iter(inputs.values())))
        batch = f"a batch of {n_items}"
        if n_items == 1:
            return batch
        for number in range(n_items):
            only_row = slice(number, number + 1)
            one_item = {name: values[only_row] for name, values in inputs.items()}
            try:
                self._features(one_item)
            except Exception:
                return f"item {number + 1} of {batch}"
        return batch


@torch.no_grad()
def _probed_dims(
    image_tower: nn.Module,
    text_tower: nn.Module,
    processors: Processors,
    pretrained: bool,
) -> tuple[int, int]:
    """Measure both feature dimensions by encoding, since model families name them differently.

    Raises:
        ValueError: If the model's inputs or features cannot be used; says why.
    """
    generator = np.random.default_rng(0)
    shape = (*_PROBE_SIZES[0], 3)
    noise = generator.integers(0, 256, shape).astype(np.uint8)
    pictures = [Image.fromarray(noise)]
    pictures += [Image.new("RGB", size) for size in _PROBE_SIZES]
    pixels = [processors.pixels([picture]) for picture in pictures]
    shapes = {tuple(picture_pixels.shape) for picture_pixels in pixels}
    if len(shapes) > 1:
        raise ValueError(
            "its image processor makes pictures of varying size, which do not fit into batches; "
            "set do_center_crop and crop_size in its preprocessor_config.json, or use another dual "
            "encoder"
        )

    image_features = image_tower(torch.cat(pixels[:2]))
    text_features = text_tower(processors.tokens(_PROBE_TEXTS))
    for kind, features in (("images", image_features), ("texts", text_features)):
        if features.ndim != 2:
            raise ValueError(
                f"its features of {kind} are not one row per item; use another dual encoder"
            )
    first_text = text_features[:1].expand_as(text_features)
    if pretrained and torch.allclose(text_features, first_text, rtol=1e-6, atol=0):
        raise ValueError(
            "it gives different texts the same features; check its tokeniser and weights"
        )
    return image_features.shape[1], text_features.shape[1]
