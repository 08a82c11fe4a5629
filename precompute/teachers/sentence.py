"""Sentence-transformers models as text teachers."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import torch
from safetensors import SafetensorError

from cusa.data.errors import CusaError
from cusa.precompute.teachers.base import Teacher, weights_digest

# Long runs of captions per call let sentence-transformers sort them by length and pad little.
_BATCHES_PER_CALL = 16


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
    from sentence_transformers import SentenceTransformer

    try:
        # float32 whatever the checkpoint's dtype: the store records what was computed in, --precision decides it
        model: Any = SentenceTransformer(source, device=device, model_kwargs={"dtype": torch.float32})
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().split("\n")[0]
        raise CusaError(
            f"cannot load sentence-transformers model {source!r} ({first}); pass its folder: --teacher NAME=FOLDER"
        ) from None
    dim = model.get_embedding_dimension()
    if not dim:
        raise CusaError(f"{source!r} tells no embedding dimension; is it a sentence-transformers model?")
    inner = batch_size or (256 if device == "cuda" else 32)

    def encode(captions: list[str]) -> torch.Tensor:
        return model.encode(captions, batch_size=inner, convert_to_tensor=True, show_progress_bar=False, device=device)

    return Teacher(
        modality="text",
        model_id=model_id,
        weights_sha256=weights_digest(model),
        dim=int(dim),
        transform={
            "max_seq_length": model.max_seq_length if math.isfinite(model.max_seq_length or math.inf) else None,
            "tokenizer_sha256": _tokenizer_digest(model.tokenizer),
            "modules": [{"type": type(m).__name__, **_module_settings(m)} for m in model],
            "prompt": (model.prompts or {}).get(model.default_prompt_name),
        },
        source=source,
        encode=encode,
        preprocess=None,
        batch_size=inner * _BATCHES_PER_CALL,
    )


def _module_settings(module: Any) -> dict[str, Any]:
    """What a module of the model computes, such as how it pools; JSON-compatible."""
    found = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
    return json.loads(json.dumps(found, default=str))


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)  # static embeddings bring the bare tokeniser
    text = backend.to_str() if hasattr(backend, "to_str") else repr(backend)
    return hashlib.sha256(text.encode()).hexdigest()
