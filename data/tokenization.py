"""Tokenisers of transformers, loaded with checks, and how they pad and cut a batch.

Nothing here runs code of a model's folder: ``trust_remote_code`` is False in every call.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from cusa.data.errors import CusaError
from cusa.data.pretrained import folder_of

if TYPE_CHECKING:
    import torch

# Least number of ordinary tokens; vocabularies that transformers makes up have 0 or 1.
_FEWEST_ENTRIES = 2
# Highest legal token id; the largest vocabularies have a million entries.
_HIGHEST_ENTRY = 10_000_000
# Tokenisers without a length limit report one of 1e30.
UNLIMITED = 10**9
_POSITION_TABLES = (
    "position_embedding",
    "position_embeddings",
    "embed_positions",
    "wpe",
    "positional_embedding",
)


def load_tokenizer(source: str, error_class: type[CusaError]) -> Any:
    """Load the tokeniser of a transformers model, ready for padded batches.

    Args:
        source: Folder or hub name of the model.
        error_class: Class of the error to raise.

    Raises:
        CusaError: An ``error_class``; see :func:`prepare_tokenizer`.
        Exception: Whatever transformers raises on damaged files.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    prepare_tokenizer(tokenizer, source, error_class)
    return tokenizer


def prepare_tokenizer(tokenizer: Any, source: str, error_class: type[CusaError]) -> None:
    """Check a tokeniser, and let it pad with its end token if it has no padding token.

    Args:
        tokenizer: A tokeniser of transformers.
        source: Folder or hub name of the model.
        error_class: Class of the error to raise.

    Raises:
        CusaError: An ``error_class``, if the vocabulary is missing or impossible, or there is no
            token to pad with.
    """
    fault = partial(error_class, path=folder_of(source), name=source)
    token_ids = set(tokenizer.get_vocab().values())
    highest_id = max(token_ids, default=0)
    # The library would build a list of that length.
    if highest_id > _HIGHEST_ENTRY:
        raise fault(
            f"the vocabulary of {source!r} numbers a token {highest_id:,}; its tokenizer.json is "
            "damaged, download it again"
        )

    # If a folder has no tokeniser, transformers makes one up, to which all texts look alike.
    ordinary_ids = token_ids - set(tokenizer.all_special_ids)
    if len(ordinary_ids) < _FEWEST_ENTRIES:
        raise fault(
            f"{source!r} has no tokeniser: the vocabulary holds special tokens only; add "
            "tokenizer.json (or the files of the model's own tokeniser) to its folder"
        )

    if tokenizer.pad_token is not None:
        return
    if tokenizer.eos_token is None:
        raise fault(
            f"the tokeniser of {source!r} has neither a padding nor an end token; set "
            "pad_token in tokenizer_config.json"
        )
    # The attention mask hides the padding.
    tokenizer.pad_token = tokenizer.eos_token


def position_limit(model: torch.nn.Module) -> int | None:
    """Return the length of a text model's position table, in tokens; ``None`` if it has none.

    RoBERTa and its relatives count positions from ``padding_idx + 1``: a table of 514 rows has room
    for 512 tokens.
    """
    from torch import nn

    limits = []
    for module_name, module in model.named_modules():
        if any(tower in module_name for tower in ("vision", "image", "visual")):
            continue
        _, _, own_name = module_name.rpartition(".")
        if own_name not in _POSITION_TABLES or not isinstance(module, nn.Embedding):
            continue
        n_unused = getattr(module, "offset", 0)
        if module.padding_idx is not None:
            n_unused = module.padding_idx + 1
        limits.append(module.num_embeddings - n_unused)
    return min(limits, default=None)


def token_limit(tokenizer: Any, text_model: Any) -> int | None:
    """Return how many tokens a text may have, special tokens included; ``None``: no limit."""
    n_positions = position_limit(text_model)
    # Without a table, as with rotary positions, the configuration has the length of training texts.
    if n_positions is None:
        n_positions = getattr(text_model.config, "max_position_embeddings", None)

    limits = []
    for limit in (tokenizer.model_max_length, n_positions):
        if limit is not None and 0 < limit < UNLIMITED:
            limits.append(limit)
    return min(limits, default=None)


def text_padding(model_type: str) -> str:
    """Return how to pad a model's texts: ``"max_length"`` or ``"longest"``.

    SigLIP was trained on texts padded to full length, and attends to the padding.
    """
    return "max_length" if model_type.startswith("siglip") else "longest"


def tokenized(
    tokenizer: Any, texts: list[str], limit: int | None, padding: str
) -> dict[str, torch.Tensor]:
    """Tokenise texts as one batch.

    Args:
        tokenizer: A tokeniser of transformers, with a padding token.
        texts: The texts.
        limit: Number of tokens that longer texts are cut to; ``None``: no text is cut.
        padding: ``"max_length"`` or ``"longest"``; see :func:`text_padding`.

    Returns:
        int64 ``[n, length]`` by the names of the model's inputs: ``input_ids`` and, unless texts
        are padded to full length, ``attention_mask``.
    """
    batch = tokenizer(
        texts,
        padding=padding,
        truncation=limit is not None,
        max_length=limit,
        return_tensors="pt",
        verbose=False,
    )
    names = ["input_ids"]
    if padding != "max_length":
        names.append("attention_mask")
    return {name: batch[name] for name in names if name in batch}
