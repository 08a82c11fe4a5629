"""Students: dual encoders with cross-modal and uni-modal heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from cusa.data.errors import CusaError

Head = Literal["cross", "uni"]
HEADS: tuple[Head, ...] = ("cross", "uni")
HEAD_INIT_STD = 0.02


@dataclass(frozen=True)
class StudentConfig:
    """Which student, and its sizes.

    Attributes:
        name: ``"adapter"``, or the name or folder of a Hugging Face dual encoder.
        image_encoder: Adapter only: the store's teacher whose rows are the image input.
        text_encoder: Adapter only: the store's teacher whose rows are the text input.
        hidden_dim: Adapter only: width of its trunks.
        embed_dim: Dimension of all four heads; ``None``: that of the student's features.
        dropout: Adapter only: dropout after the trunks.
    """

    name: str = "openai/clip-vit-base-patch32"
    image_encoder: str | None = None
    text_encoder: str | None = None
    hidden_dim: int = 512
    embed_dim: int | None = None
    dropout: float = 0.1


class Features(NamedTuple):
    """Embeddings of one modality from both heads, float ``[n, embed_dim]``, not normalised."""

    cross: torch.Tensor
    uni: torch.Tensor


class Student(nn.Module):
    """A trunk per modality, and on each a cross-modal and a uni-modal head: LayerNorm + Linear.

    Args:
        image_trunk: Image inputs -> ``[n, image_dim]``.
        text_trunk: Text inputs -> ``[n, text_dim]``.
        image_dim: Dimension of the image trunk's features.
        text_dim: Dimension of the text trunk's features.
        embed_dim: Dimension of the heads; ``None``: that of the features.
    """

    def __init__(
        self, image_trunk: nn.Module, text_trunk: nn.Module, image_dim: int, text_dim: int, embed_dim: int | None
    ) -> None:
        super().__init__()
        self.image_trunk, self.text_trunk = image_trunk, text_trunk
        self.image_heads = nn.ModuleDict({h: _head(image_dim, embed_dim or image_dim) for h in HEADS})
        self.text_heads = nn.ModuleDict({h: _head(text_dim, embed_dim or text_dim) for h in HEADS})

    def encode_image(self, inputs: Any) -> Features:
        """Embeddings of images, in whatever form the trunk takes them."""
        features = self.image_trunk(inputs)
        return Features(*(self.image_heads[h](features) for h in HEADS))

    def encode_text(self, inputs: Any) -> Features:
        """Embeddings of texts, in whatever form the trunk takes them."""
        features = self.text_trunk(inputs)
        return Features(*(self.text_heads[h](features) for h in HEADS))


def _head(in_dim: int, out_dim: int) -> nn.Sequential:
    linear = nn.Linear(in_dim, out_dim)
    nn.init.normal_(linear.weight, std=HEAD_INIT_STD)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.LayerNorm(in_dim), linear)


def adapter_student(config: StudentConfig, image_dim: int, text_dim: int) -> Student:
    """Small MLPs on stored embeddings; no encoder is trained or loaded.

    Args:
        config: Sizes.
        image_dim: Dimension of the stored image embeddings.
        text_dim: Dimension of the stored text embeddings.
    """

    def trunk(dim: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(dim, config.hidden_dim), nn.GELU(), nn.Dropout(config.dropout))

    hidden = config.hidden_dim
    return Student(trunk(image_dim), trunk(text_dim), hidden, hidden, config.embed_dim)


@dataclass(frozen=True)
class Processors:
    """What turns image files and captions into a Hugging Face student's inputs; both are transformers objects."""

    image_processor: Any
    tokenizer: Any
    max_length: int
    padding: str

    def save(self, folder: Path) -> None:
        """Save both beside the model's configuration."""
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def tokens(self, captions: list[str]) -> dict[str, torch.Tensor]:
        """int64 ``[n, length]`` per model input name."""
        batch = self.tokenizer(
            captions, padding=self.padding, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        # Models trained on padding (SigLIP) attend to it.
        names = ("input_ids",) if self.padding == "max_length" else ("input_ids", "attention_mask")
        return {k: batch[k] for k in names if k in batch}

    def pixels(self, images: list[Any]) -> torch.Tensor:
        """float32 ``[n, 3, h, w]`` of PIL images."""
        rgb = [image.convert("RGB") for image in images]
        return torch.from_numpy(self.image_processor(images=rgb, return_tensors="np")["pixel_values"])


# What transformers raises for a model that is not there, damaged, or not known to it.
LOAD_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


def dual_encoder_student(config: StudentConfig, source: str, pretrained: bool) -> tuple[Student, Processors, Any]:
    """A Hugging Face dual encoder (CLIPModel, SiglipModel, ...) with the four heads.

    Args:
        config: Sizes.
        source: Name or folder to load configuration, tokeniser, image processor and weights from.
        pretrained: Whether to load weights; without, they are random, to be filled from a checkpoint.

    Returns:
        The student, its processors, and the backbone (shared with the student's trunks).

    Raises:
        CusaError: If it cannot be loaded or lacks a tower.
    """
    if not Path(source).is_dir() and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise CusaError(
            f"unknown student {source!r}; legal: adapter, a Hugging Face dual encoder (owner/model), a folder"
        )
    try:
        found = load_dual_encoder(source, pretrained)
    except CusaError as error:
        raise CusaError(f"student {error}") from None
    except LOAD_ERRORS as error:
        first = str(error).strip().split("\n")[0]
        if Path(source).is_dir():
            raise CusaError(
                f"student folder {source} cannot be loaded ({first}); it must hold a Hugging Face dual encoder: "
                "config, weights, tokeniser and image processor"
            ) from None
        raise CusaError(
            f"unknown student {source!r}, or it cannot be downloaded ({first}); legal: adapter, a Hugging Face dual "
            f"encoder by name, or its folder. Without a network here: hf download {source} --local-dir FOLDER where "
            "there is one, copy it, and pass --student FOLDER"
        ) from None
    student = Student(found.image_tower, found.text_tower, found.image_dim, found.text_dim, config.embed_dim)
    return student, found.processors, found.model


@dataclass(frozen=True)
class DualEncoder:
    """A Hugging Face dual encoder.

    Attributes:
        model: The transformers model, in float32.
        processors: Its image processor and tokeniser.
        image_tower: ``[n, 3, h, w]`` -> ``[n, image_dim]``; owns the parameters of both towers.
        text_tower: Token tensors by name -> ``[n, text_dim]``.
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
        pretrained: Whether to load weights; without, they are random.

    Raises:
        CusaError: If weights are missing, it lacks a tower, or takes other inputs; the message begins with ``source``.
        LOAD_ERRORS: If it cannot be loaded.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

    model_config = AutoConfig.from_pretrained(source)
    missing: list[str] = []
    if pretrained:  # float32 whatever the checkpoint's dtype: autocast needs float32 parameters
        model, report = AutoModel.from_pretrained(source, output_loading_info=True, dtype=torch.float32)
        missing = sorted(report["missing_keys"])
    else:
        model = AutoModel.from_config(model_config, dtype=torch.float32)
    image_processor, tokenizer = AutoImageProcessor.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    if missing:
        raise CusaError(f"{source!r}: its weights lack {missing[0]} and {len(missing) - 1} more; use complete ones")
    for tower in ("image", "text"):
        if not hasattr(model, f"get_{tower}_features"):
            raise CusaError(f"{source!r} ({type(model).__name__}) has no {tower} tower; use a dual encoder")
    text_config = model_config.get_text_config()
    limits = [n for n in (tokenizer.model_max_length, getattr(text_config, "max_position_embeddings", None)) if n]
    # SigLIP was trained on texts padded to full length.
    padding = "max_length" if model_config.model_type.startswith("siglip") else "longest"
    processors = Processors(image_processor, tokenizer, min(limits), padding)
    image_tower, text_tower = _Tower(model, "image"), _Tower(model, "text")
    try:
        dims = _probe(image_tower, text_tower, processors)
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        first = str(error).strip().split("\n")[0]
        raise CusaError(f"{source!r} ({type(model).__name__}) takes other inputs than ours ({first})") from None
    return DualEncoder(model, processors, image_tower, text_tower, *dims)


class _Tower(nn.Module):
    """One side of a dual encoder. The image side owns the parameters of both; the other only refers to them."""

    def __init__(self, model: Any, tower: str) -> None:
        super().__init__()
        self._encode = getattr(model, f"get_{tower}_features")
        if tower == "image":
            self.backbone = model

    def forward(self, inputs: torch.Tensor | Mapping[str, torch.Tensor]) -> torch.Tensor:
        output = self._encode(**(inputs if isinstance(inputs, Mapping) else {"pixel_values": inputs}))
        return output if isinstance(output, torch.Tensor) else output.pooler_output


@torch.no_grad()
def _probe(image_trunk: nn.Module, text_trunk: nn.Module, processors: Processors) -> tuple[int, int]:
    """Feature dimensions, found by encoding a blank image and a word: model families name them differently."""
    from PIL import Image

    image = image_trunk(processors.pixels([Image.new("RGB", (32, 32))]))
    text = text_trunk(processors.tokens(["a"]))
    if image.ndim != 2 or text.ndim != 2:
        raise ValueError("its features are not one row per item")
    return image.shape[1], text.shape[1]
