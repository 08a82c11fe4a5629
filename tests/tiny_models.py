"""Tiny Hugging Face models with random weights, saved as folders: what teachers and students of
every kind are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
VISION = {**SIZES, "image_size": 32, "patch_size": 16}
MAPS = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4}
WORDS = ["a", "dog", "cat", "red", "blue", "on", "picture", "number", *(str(n) for n in range(30))]
TEXTS = ["a dog", "a red cat on a picture", "picture number 7", "a blue dog on a red cat"]


def pictures(n: int = 4, size: tuple[int, int] = (60, 40)) -> list[Image.Image]:
    """n pictures of coloured blocks, no two alike."""
    rng = np.random.default_rng(0)
    width, height = size
    blocks = rng.integers(0, 255, (n, 2, 2, 3)).astype(np.uint8)
    return [Image.fromarray(b).resize((width, height), Image.Resampling.NEAREST) for b in blocks]


def save_tokenizer(
    folder: Path, *, pad: bool = True, max_length: int | None = 77, words: Sequence[str] = WORDS
) -> int:
    """A word-level tokeniser; the size of its vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", *words]
    numbers = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    special |= {"pad_token": "<pad>"} if pad else {}
    limit: dict[str, Any] = {"model_max_length": max_length} if max_length else {}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **limit).save_pretrained(folder)
    return len(vocabulary)


def save_processor(folder: Path, *, crop: bool = True) -> None:
    """An image processor for 32 x 32 pixels; without ``crop``, pictures keep their aspect."""
    from transformers import BitImageProcessorPil

    square = {"height": 32, "width": 32}
    processor = BitImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=square, do_center_crop=crop
    )
    processor.save_pretrained(folder)


def save_vision(
    folder: Path, model: str, config: str, *, crop: bool = True, **settings: Any
) -> Any:
    """A vision model by the names of its classes in transformers, as a folder; the model."""
    import torch
    import transformers

    torch.manual_seed(1)
    made = getattr(transformers, model)(getattr(transformers, config)(**settings))
    made.save_pretrained(folder)
    save_processor(folder, crop=crop)
    return made.eval()


def save_text(
    folder: Path,
    model: str,
    config: str,
    *,
    pad: bool = True,
    max_length: int | None = 77,
    **settings: Any,
) -> Any:
    """A text model by the names of its classes in transformers, as a folder; the model."""
    import torch
    import transformers

    size = save_tokenizer(folder, pad=pad, max_length=max_length)
    torch.manual_seed(2)
    made = getattr(transformers, model)(getattr(transformers, config)(vocab_size=size, **settings))
    made.save_pretrained(folder)
    return made.eval()


def save_clip(folder: Path, *, crop: bool = True) -> Any:
    """A CLIPModel, as a folder; the model."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    size = save_tokenizer(folder)
    text = {
        **SIZES,
        "vocab_size": size,
        "max_position_embeddings": 77,
        "eos_token_id": 2,
        "bos_token_id": 1,
    }
    torch.manual_seed(3)
    made = CLIPModel(
        CLIPConfig(text_config={**text, "pad_token_id": 0}, vision_config=VISION, projection_dim=24)
    )
    made.save_pretrained(folder)
    save_processor(folder, crop=crop)
    return made.eval()


def save_roberta_dual(folder: Path) -> Any:
    """A VisionTextDualEncoderModel whose text side has 32 positions in a table of 34, as a folder;
    the model.
    """
    import torch
    from transformers import (
        RobertaConfig,
        VisionTextDualEncoderConfig,
        VisionTextDualEncoderModel,
        ViTConfig,
    )

    size = save_tokenizer(folder, max_length=None)
    text = RobertaConfig(**SIZES, vocab_size=size, max_position_embeddings=34, pad_token_id=1)
    configs = ViTConfig(**VISION), text
    torch.manual_seed(4)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(*configs, projection_dim=24)
    made = VisionTextDualEncoderModel(config)
    made.save_pretrained(folder)
    save_processor(folder)
    return made.eval()


def save_siglip(folder: Path) -> Any:
    """A SiglipModel with a logit bias, as a folder; the model."""
    import torch
    from transformers import SiglipConfig, SiglipModel

    size = save_tokenizer(folder)
    text = {**SIZES, "vocab_size": size, "max_position_embeddings": 16, "projection_size": 32}
    torch.manual_seed(5)
    made = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    torch.nn.init.constant_(made.logit_scale, 4.0)
    torch.nn.init.constant_(made.logit_bias, -12.0)
    made.save_pretrained(folder)
    save_processor(folder)
    return made.eval()
