"""Sentence-transformers models as text teachers."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from cusa.data.errors import CusaError
from cusa.precompute.teachers.base import Teacher, cannot_load, weights_digest


def load_sentence(source: str, model_id: str, device: str, batch_size: int | None) -> Teacher:
    """Load a sentence-transformers model.

    Args:
        source: Hub name or folder.
        model_id: Name to record.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: Captions per forward pass; ``None``: what suits the device.

    Raises:
        CusaError: If it cannot be loaded.
    """
    return text_teacher(open_model(source, device), source, model_id, device, batch_size)


def open_model(source: str, device: str) -> Any:
    """A ``SentenceTransformer`` in float32 and eval mode.

    Args:
        source: Hub name or folder.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        CusaError: If it cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer

    try:
        # float32 whatever the checkpoint's dtype: the store records what was computed in, --precision decides it
        model: Any = SentenceTransformer(source, device=device, model_kwargs={"dtype": torch.float32})
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise cannot_load("sentence-transformers model", source, error) from None
    return model.eval()


def text_teacher(model: Any, source: str, model_id: str, device: str, batch_size: int | None) -> Teacher:
    """The teacher that a ``SentenceTransformer`` is; the other arguments are :func:`load_sentence`'s.

    Raises:
        CusaError: If it tells no embedding dimension.
    """
    dim = model.get_embedding_dimension()
    if not dim:
        raise CusaError(f"{source!r} tells no embedding dimension; is it a sentence-transformers model?")
    prompt = (model.prompts or {}).get(model.default_prompt_name)

    def encode(inputs: dict[str, Any]) -> torch.Tensor:
        return model(inputs)["sentence_embedding"][:, :dim]  # a model may be made to give its first dimensions alone

    return Teacher(
        modality="text",
        model_id=model_id,
        weights_sha256=weights_digest(model),
        dim=int(dim),
        transform={
            "max_seq_length": model.max_seq_length if math.isfinite(model.max_seq_length or math.inf) else None,
            "tokenizer_sha256": _tokenizer_digest(model.tokenizer),
            "modules": [{"type": type(m).__name__, **_module_settings(m)} for m in model],
            "prompt": prompt,
        },
        source=source,
        encode=encode,
        batch_size=batch_size or (256 if torch.device(device).type == "cuda" else 32),
        tokenize=lambda captions: model.preprocess(list(captions), prompt=prompt),
        token_counts=lambda captions: _token_counts(model.tokenizer, captions),
    )


def _token_counts(tokenizer: Any, captions: Sequence[str]) -> np.ndarray:
    """Tokens per caption; characters where the tokeniser is none of Hugging Face's."""
    if hasattr(tokenizer, "backend_tokenizer"):
        captions = tokenizer(list(captions), padding=False, truncation=True)["input_ids"]
    return np.fromiter((len(c) for c in captions), np.int64, len(captions))


def _module_settings(module: Any) -> dict[str, Any]:
    """What a module of the model computes, such as how it pools; JSON-compatible."""
    found = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
    return json.loads(json.dumps(_text_keys(found), default=str))


def _text_keys(value: Any) -> Any:
    """A router's mappings have tuples as keys, which JSON has not."""
    if isinstance(value, dict):
        return {str(k) if isinstance(k, tuple) else k: _text_keys(v) for k, v in value.items()}
    return [_text_keys(v) for v in value] if isinstance(value, list | tuple) else value


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)  # static embeddings bring the bare tokeniser
    text = backend.to_str() if hasattr(backend, "to_str") else repr(backend)
    return hashlib.sha256(text.encode()).hexdigest()
