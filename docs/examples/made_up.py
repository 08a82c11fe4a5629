"""Made-up data and a tiny CLIP for the examples beside this file; not needed with your own data.

Each image is a grid of four colours, and its captions name what the colours are made of, so that
there is something to learn. With real data the store comes from ``cusa-precompute``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from cusa import Dataset, EmbeddingStore, Record
from cusa.data.foreign.rows import ForeignRows
from cusa.data.store.import_export import import_rows
from cusa.data.store.index import Index
from cusa.data.store.schema import TeacherSettings

WORDS = [f"{letter}{sign}" for letter in "abcdefghijkl" for sign in (0, 1)]
CAPTION_WORDS = 8


class MadeUp(NamedTuple):
    """A store with the teachers ``vision`` and ``words``, and its train split for a student.

    ``pixels`` is float32 ``[n_images, 3, 32, 32]`` in [0, 1], ``tokens`` int64 ``[n_captions, 8]``
    below ``N_WORDS``.
    """

    store: EmbeddingStore
    pixels: torch.Tensor
    tokens: torch.Tensor


N_WORDS = len(WORDS)


def make_data(
    folder: Path,
    n_images: int = 64,
    n_val: int = 16,
    teachers: tuple[str, ...] = ("vision", "words"),
) -> MadeUp:
    """Make a data set of two captions an image, split in two, as files and store in ``folder``."""
    meaning = np.random.default_rng(0).normal(size=(n_images + n_val, 12))
    colours = (
        (255 / (1 + np.exp(-meaning.reshape(-1, 2, 2, 3))))
        .astype(np.uint8)
        .repeat(16, 1)
        .repeat(16, 2)
    )
    numbers = 2 * np.arange(12) + (meaning > 0)
    tokens = np.stack([numbers[:, :CAPTION_WORDS], numbers[:, -CAPTION_WORDS:]], axis=1)
    records = []
    for i, (picture, captions) in enumerate(zip(colours, tokens, strict=True)):
        Image.fromarray(picture).save(folder / f"{i}.png")
        texts = tuple(" ".join(WORDS[w] for w in caption) for caption in captions)
        records.append(Record(f"{i}", f"{i}.png", texts, (f"{i}#0", f"{i}#1")))
    splits = {"train": tuple(records[:n_images]), "val": tuple(records[n_images:])}
    data = Index.from_dataset(Dataset("made-up", folder, splits), {})
    flat = tokens.reshape(-1, CAPTION_WORDS)
    rows = {"vision": meaning, "words": np.eye(N_WORDS)[flat].sum(1)}
    for teacher, modality, ids in (
        ("vision", "image", [r.image_id for r in records]),
        ("words", "text", [c for r in records for c in r.caption_ids]),
    ):
        if teacher not in teachers:
            continue
        dim = rows[teacher].shape[1]
        settings = TeacherSettings(
            modality, teacher, "unknown", {}, "none", "fp32", dim, "float16", True
        )
        foreign = ForeignRows(ids, rows[teacher], "made up")
        for split in splits:  # each takes the rows of its own ids
            import_rows(
                folder / "store.h5", data, split, teacher, settings, foreign, skip_missing=False
            )
    pixels = torch.from_numpy(colours[:n_images]).permute(0, 3, 1, 2).float() / 255
    return MadeUp(
        EmbeddingStore(folder / "store.h5"), pixels, torch.from_numpy(flat[: 2 * n_images])
    )


def caption_batches(store: EmbeddingStore, size: int, steps: int) -> Iterator[np.ndarray]:
    """``steps`` batches of caption rows, int64 ``[size]`` each, shuffled in every epoch."""
    rng, waiting = np.random.default_rng(1), np.zeros(0, np.int64)
    for _ in range(steps):
        if len(waiting) < size:
            waiting = rng.permutation(store.split("train").n_captions)
        batch, waiting = waiting[:size], waiting[size:]
        yield batch


def make_clip(folder: Path) -> Path:
    """A CLIPModel with random weights, its tokeniser and image processor, as a model folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<pad>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=16, **special
    ).save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {
        **size,
        "vocab_size": len(words),
        "max_position_embeddings": 16,
        "eos_token_id": 1,
        "bos_token_id": 0,
    }
    vision = {**size, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    ).save_pretrained(folder)
    return folder
