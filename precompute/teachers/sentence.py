"""Text teachers: sentence-transformers and Hugging Face text models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cusa.data.encoders.sentence_models import counts_tokens, length_limit, open_sentence_model
from cusa.data.errors import TeacherError
from cusa.data.hub import load_advice
from cusa.data.tokenization import UNLIMITED
from cusa.precompute.teachers.base import (
    FOLDER_OPTION,
    Teacher,
    default_batch_size,
    loading,
    weights_digest,
)
from cusa.precompute.teachers.text_tower import (
    CPU_BATCH_SIZE,
    is_text_tower,
    load_tower,
    token_counts,
    tokenizer_digest,
)


def load_sentence(
    source: str,
    model_id: str,
    device: str,
    batch_size: int | None,
) -> Teacher:
    """Load a text model.

    If a folder or repository has a ``modules.json``, that defines how captions become rows. The
    row of a text tower is its projected embedding (``text_embeds``), or else its pooled output
    (``pooler``); that of any other model is the mean over its tokens.

    Args:
        source: Hub name or folder.
        model_id: Name to record.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: Captions per forward pass; ``None``: the device's default.

    Raises:
        TeacherError: If it cannot be loaded, has no tokeniser, or needs code of its own.
    """
    if is_text_tower(source):
        return load_tower(source, model_id, device, batch_size)
    return text_teacher(open_model(source, device), source, model_id, device, batch_size)


def open_model(source: str, device: str) -> Any:
    """Load a ``SentenceTransformer`` with checks, in float32 and eval mode.

    Args:
        source: Hub name or folder.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        TeacherError: If it cannot be loaded, has no tokeniser, or needs code of its own.
    """
    return open_sentence_model(source, device, TeacherError, load_advice(source, FOLDER_OPTION))


def text_teacher(
    model: Any,
    source: str,
    model_id: str,
    device: str,
    batch_size: int | None,
) -> Teacher:
    """Make a teacher from a ``SentenceTransformer``.

    Args:
        model: The ``SentenceTransformer``.
        source: Hub name or folder.
        model_id: Name to record.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: Captions per forward pass; ``None``: the device's default.

    Raises:
        TeacherError: If its embedding dimension is unknown, or its settings cannot be read.
    """
    with loading("sentence-transformers model", source):
        dim = int(model.get_embedding_dimension() or 0)
        prompt = (model.prompts or {}).get(model.default_prompt_name)
        limit = length_limit(model)
        transform = {
            "max_seq_length": limit,
            "tokenizer_sha256": tokenizer_digest(model.tokenizer),
            "modules": [_describe_module(module) for module in model],
            "prompt": prompt,
        }
        token_limit = _limit_of_counts(limit, model.tokenizer)
    if not dim:
        message = f"{source!r} has no embedding dimension; is it a sentence-transformers model?"
        raise TeacherError(message, name=source)

    def encode(inputs: dict[str, Any]) -> torch.Tensor:
        # The model may be set to truncate its embeddings to the first dimensions.
        return model(inputs)["sentence_embedding"][:, :dim]

    def tokenize(captions: Sequence[str]) -> Mapping[str, Any]:
        return model.preprocess(list(captions), prompt=prompt)

    def counts_of_tokens(captions: Sequence[str]) -> np.ndarray:
        return token_counts(model.tokenizer, [(prompt or "") + caption for caption in captions])

    return Teacher(
        modality="text",
        model_id=model_id,
        weights_sha256=weights_digest(model),
        dim=dim,
        transform=transform,
        source=source,
        encode=encode,
        batch_size=batch_size or default_batch_size(device, CPU_BATCH_SIZE),
        tokenize=tokenize,
        token_counts=counts_of_tokens,
        token_limit=token_limit,
    )


def _limit_of_counts(limit: int | None, tokenizer: Any) -> int | None:
    """Return the limit to compare with :func:`token_counts`; ``None`` if there is none.

    A limit in tokens cannot be compared with counts in characters.
    """
    if limit is None or limit >= UNLIMITED or not counts_tokens(tokenizer):
        return None
    return limit


def _describe_module(module: Any) -> dict[str, Any]:
    """Describe a module of the model, such as how it pools, as JSON-compatible settings."""
    description = {"type": type(module).__name__}
    if hasattr(module, "get_config_dict"):
        settings = json.dumps(_with_text_keys(module.get_config_dict()), default=str)
        description |= json.loads(settings)
    return description


def _with_text_keys(value: Any) -> Any:
    """Convert tuples that are keys, as in a router's mappings, to texts, as JSON requires."""
    if isinstance(value, list | tuple):
        return [_with_text_keys(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    with_text_keys: dict[Any, Any] = {}
    for key, entry in value.items():
        if isinstance(key, tuple):
            key = str(key)
        with_text_keys[key] = _with_text_keys(entry)
    return with_text_keys
