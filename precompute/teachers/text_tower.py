"""Text towers of dual encoders as text teachers, and what is recorded of tokenisers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from cusa.data.encoders.sentence_models import counts_tokens
from cusa.data.encoders.text_towers import text_embedding, text_feature
from cusa.data.errors import WEIGHTS, TeacherError
from cusa.data.hub import has_file, locate
from cusa.data.pretrained import lacking, load_config, load_embedding_model
from cusa.data.tokenization import load_tokenizer, text_padding, token_limit, tokenized
from cusa.precompute.teachers.base import (
    FEATURE,
    Teacher,
    default_batch_size,
    each_tensor,
    loading,
    weights_digest,
)

CPU_BATCH_SIZE = 32


def is_text_tower(source: str) -> bool:
    """Return whether a folder or repository holds the text tower of a dual encoder.

    Raises:
        TeacherError: If it cannot be found, or its configuration cannot be read.
    """
    with loading("text model", source):
        files = locate(source, TeacherError)
        if has_file(files, "modules.json"):
            return False
        return text_feature(load_config(files)) != "mean"


def load_tower(source: str, model_id: str, device: str, batch_size: int | None) -> Teacher:
    """Load a text tower; arguments and errors are those of :func:`.load_sentence`."""
    with loading("text tower", source):
        files = locate(source, TeacherError)
        model, missing = load_embedding_model(files)
        if missing:
            raise TeacherError(lacking(source, missing), location=WEIGHTS, name=source)
        tokenizer = load_tokenizer(files, TeacherError)
        model = model.eval().to(device)
    feature = text_feature(model.config)
    encode = partial(text_embedding, model, feature)
    tower = tower_teacher(model, tokenizer, encode, source, feature, batch_size)
    return replace(tower, model_id=model_id, weights_sha256=weights_digest(model))


def tower_teacher(
    model: Any,
    tokenizer: Any,
    encode: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    source: str,
    feature: str,
    batch_size: int | None,
) -> Teacher:
    """Make a teacher without name and digest from a text tower of transformers, and try it.

    Args:
        model: The model that has the tower, on its device.
        tokenizer: Its tokeniser.
        encode: Maps tokens to rows ``[n, dim]``.
        source: Hub name or folder.
        feature: The part of its output that becomes the row.
        batch_size: Captions per forward pass; ``None``: the device's default.

    Raises:
        TeacherError: If the model fails on a text.
    """
    device = next(model.parameters()).device
    limit = token_limit(tokenizer, getattr(model, "text_model", model))
    padding = text_padding(model.config.model_type)
    tokenize = partial(_tokenized, tokenizer, limit, padding)
    with loading("text tower", source), torch.inference_mode():
        dim = encode(each_tensor(tokenize(["a"]), lambda tensor: tensor.to(device))).shape[1]
    return Teacher(
        modality="text",
        model_id="",
        weights_sha256="",
        dim=dim,
        transform=_described(feature, limit, padding, tokenizer),
        source=source,
        encode=encode,
        batch_size=batch_size or default_batch_size(str(device), CPU_BATCH_SIZE),
        tokenize=tokenize,
        token_counts=partial(token_counts, tokenizer),
        token_limit=limit,
    )


def _tokenized(
    tokenizer: Any,
    limit: int | None,
    padding: str,
    captions: Sequence[str],
) -> dict[str, torch.Tensor]:
    return tokenized(tokenizer, list(captions), limit, padding)


def _described(
    feature: str,
    limit: int | None,
    padding: str,
    tokenizer: Any,
) -> dict[str, Any]:
    return {
        FEATURE: feature,
        "max_seq_length": limit,
        "padding": padding,
        "tokenizer_sha256": tokenizer_digest(tokenizer),
    }


def token_counts(tokenizer: Any, captions: Sequence[str]) -> np.ndarray:
    """Count tokens per caption before any cut, or characters if the tokeniser cannot."""
    sequences = captions
    if counts_tokens(tokenizer):
        encoded = tokenizer(list(captions), padding=False, truncation=False, verbose=False)
        sequences = encoded["input_ids"]
    return np.fromiter(map(len, sequences), np.int64, len(sequences))


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the sha256 (hex) of a tokeniser."""
    # Static embeddings have a tokeniser of the tokenizers library itself.
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    # Tokenisers in pure Python cannot be serialised, so their repr is hashed.
    text = backend.to_str() if hasattr(backend, "to_str") else repr(backend)
    return hashlib.sha256(text.encode()).hexdigest()
