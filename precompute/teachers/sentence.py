"""Sentence-transformers models as text teachers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from cusa.data.errors import CusaError
from cusa.precompute.teachers.base import Teacher, weights_digest

# Long runs of captions per call let sentence-transformers sort them by length and pad little.
_BATCHES_PER_CALL = 16


def load_sentence(source: str, model_id: str, device: str) -> Teacher:
    """Load a sentence-transformers model.

    Args:
        source: Hub name or folder.
        model_id: Name to record.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        CusaError: If it cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer

    try:
        model: Any = SentenceTransformer(source, device=device)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().split("\n")[0]
        raise CusaError(
            f"cannot load sentence-transformers model {source!r} ({first}); pass its folder: --teacher NAME=FOLDER"
        ) from None
    dim = model.get_embedding_dimension()
    if not dim:
        raise CusaError(f"{source!r} tells no embedding dimension; is it a sentence-transformers model?")
    batch_size = {"cpu": 32, "cuda": 256}

    def encode(captions: list[str]) -> torch.Tensor:
        return model.encode(
            captions, batch_size=batch_size[device], convert_to_tensor=True, show_progress_bar=False, device=device
        )

    return Teacher(
        modality="text",
        model_id=model_id,
        weights_sha256=weights_digest(model),
        dim=int(dim),
        transform={
            "max_seq_length": model.max_seq_length,
            "tokenizer_sha256": _tokenizer_digest(model.tokenizer),
            "modules": [type(module).__name__ for module in model],
        },
        loader={"kind": "sentence", "source": str(Path(source).resolve()) if Path(source).is_dir() else source},
        encode=encode,
        preprocess=None,
        batch_size={k: v * _BATCHES_PER_CALL for k, v in batch_size.items()},
    )


def _tokenizer_digest(tokenizer: Any) -> str:
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
