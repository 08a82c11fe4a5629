"""Models of sentence-transformers, loaded with checks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from cusa.data.encoders.sentence_folder import module_path, refuse_missing_weights, refuse_own_code
from cusa.data.errors import CusaError
from cusa.data.hub import cached_snapshot, locate
from cusa.data.pickled_weights import refuse_damaged_pickles
from cusa.data.pretrained import one_line_load_errors, refuse_not_finite
from cusa.data.quiet import quiet_transformers
from cusa.data.tokenization import position_limit, prepare_tokenizer


def open_sentence_model(
    source: str,
    device: str,
    error_class: type[CusaError],
    advice: str,
    pretrained: bool = True,
) -> Any:
    """Load a ``SentenceTransformer`` in float32 and eval mode, with a tokeniser that can pad.

    Args:
        source: Hub name or folder.
        device: ``"cpu"`` or ``"cuda"``.
        error_class: Class of the error to raise.
        advice: What the user should do if it cannot be loaded.
        pretrained: Whether all its weights must be there. If not, those that are missing are random
            (see :func:`.save_without_weights`), for others to replace.

    Raises:
        CusaError: An ``error_class``, if it cannot be loaded, has no tokeniser, lacks weights, or
            needs code of its own.
    """
    with one_line_load_errors("sentence-transformers model", source, error_class, advice):
        files = locate(source, error_class)
        if Path(files).is_dir():
            refuse_own_code(Path(files), error_class)
            refuse_damaged_pickles(Path(files))
        model = _open(files, device)
        folder: Path | None = Path(files)
        if not Path(files).is_dir():
            folder = cached_snapshot(files)
        for number, module in enumerate(model):
            if not hasattr(module, "auto_model"):
                continue
            _prepare_transformer(module, source, error_class)
            if pretrained and folder is not None:
                module_folder = folder / module_path(folder, number)
                refuse_missing_weights(module.auto_model, module_folder, source, error_class)
        refuse_not_finite(model, source)
    return model.eval()


def _open(files: str, device: str) -> Any:
    """Load a model in float32, whatever the dtype of its checkpoint.

    What is computed in is decided elsewhere, and a store records it.
    """
    from sentence_transformers import SentenceTransformer

    with quiet_transformers():
        return SentenceTransformer(
            files,
            device=device,
            model_kwargs={"dtype": torch.float32},
            trust_remote_code=False,
        )


def _prepare_transformer(module: Any, source: str, error_class: type[CusaError]) -> None:
    """Check a Transformer module's tokeniser, and limit captions to the model's positions."""
    tokenizer = module.tokenizer
    if not counts_tokens(tokenizer):
        return
    prepare_tokenizer(tokenizer, source, error_class)
    text_model = getattr(module.auto_model, "text_model", module.auto_model)
    limit = position_limit(text_model)
    if limit is None:
        return
    if module.max_seq_length is None or module.max_seq_length > limit:
        module.max_seq_length = limit


def counts_tokens(tokenizer: Any) -> bool:
    """Return whether a tokeniser is one of transformers, which can count uncut tokens."""
    return hasattr(tokenizer, "all_special_ids")


def length_limit(model: Any) -> int | None:
    """Return how many tokens of a text a ``SentenceTransformer`` takes; ``None``: any number."""
    limit = model.max_seq_length
    if not limit or not math.isfinite(limit):
        return None
    return limit
