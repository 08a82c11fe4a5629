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
N_WORDS = len(WORDS)
CAPTION_WORDS = 8


class MadeUp(NamedTuple):
    """A store with the teachers ``vision`` and ``words``, and its train split for a student.

    ``pixels`` is float32 ``[n_images, 3, 32, 32]`` in [0, 1], ``tokens`` int64 ``[n_captions, 8]``
    below ``N_WORDS``.
    """

    store: EmbeddingStore
    pixels: torch.Tensor
    tokens: torch.Tensor


def make_data(
    folder: Path,
    n_images: int = 64,
    n_val: int = 16,
    teachers: tuple[str, ...] = ("vision", "words"),
) -> MadeUp:
    """Make a data set of two captions an image, split in two, as files and store in ``folder``."""
    meaning = np.random.default_rng(0).normal(size=(n_images + n_val, 12))
    pictures = _pictures(meaning)
    word_numbers = 2 * np.arange(12) + (meaning > 0)
    halves = [word_numbers[:, :CAPTION_WORDS], word_numbers[:, -CAPTION_WORDS:]]
    tokens = np.stack(halves, axis=1)
    records = _records(folder, pictures, tokens)
    splits = {"train": tuple(records[:n_images]), "val": tuple(records[n_images:])}
    tokens = tokens.reshape(-1, CAPTION_WORDS)
    caption_ids: list[str] = []
    for record in records:
        caption_ids += record.caption_ids
    rows_of_teacher = {
        "vision": ForeignRows([record.image_id for record in records], meaning, "made up"),
        "words": ForeignRows(caption_ids, np.eye(N_WORDS)[tokens].sum(axis=1), "made up"),
    }
    data = Index.from_dataset(Dataset("made-up", folder, splits), {})
    store_path = folder / "store.h5"
    for teacher in teachers:
        foreign = rows_of_teacher[teacher]
        modality = "image" if teacher == "vision" else "text"
        dim = foreign.rows.shape[1]
        settings = TeacherSettings(
            modality, teacher, "unknown", {}, "none", "fp32", dim, "float16", True
        )
        for split in splits:  # each takes the rows of its own ids
            import_rows(store_path, data, split, teacher, settings, foreign, skip_missing=False)
    pixels = torch.from_numpy(pictures[:n_images]).permute(0, 3, 1, 2).float() / 255
    return MadeUp(EmbeddingStore(store_path), pixels, torch.from_numpy(tokens[: 2 * n_images]))


def _pictures(meaning: np.ndarray) -> np.ndarray:
    """Paint a grid of four colours for each image: uint8 ``[n, 32, 32, 3]``."""
    colours = 255 / (1 + np.exp(-meaning.reshape(-1, 2, 2, 3)))
    return colours.astype(np.uint8).repeat(16, axis=1).repeat(16, axis=2)


def _records(folder: Path, pictures: np.ndarray, tokens: np.ndarray) -> list[Record]:
    """Write the pictures, and describe them by their captions."""
    records = []
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number}.png")
        captions = []
        for caption in tokens[number]:
            captions.append(" ".join(WORDS[word] for word in caption))
        caption_ids = (f"{number}#0", f"{number}#1")
        records.append(Record(f"{number}", f"{number}.png", tuple(captions), caption_ids))
    return records


def caption_batches(store: EmbeddingStore, size: int, steps: int) -> Iterator[np.ndarray]:
    """Yield ``steps`` batches of caption rows, int64 ``[size]``, shuffled in every epoch."""
    rng = np.random.default_rng(1)
    remaining = np.zeros(0, np.int64)
    for _ in range(steps):
        if len(remaining) < size:
            remaining = rng.permutation(store.split("train").n_captions)
        yield remaining[:size]
        remaining = remaining[size:]


def make_clip(folder: Path) -> Path:
    """Make the folder of a CLIPModel: random weights, a tokeniser and an image processor."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<pad>", *WORDS]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
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
