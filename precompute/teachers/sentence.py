"""Text teachers: sentence-transformers and Hugging Face text models, towers of dual encoders."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cusa.data.errors import FileFormatError, TeacherError
from cusa.data.hub import cached_snapshot, has_file, locate
from cusa.data.parsing import read_json
from cusa.data.pretrained import (
    UNLIMITED,
    lacking,
    load_config,
    load_embedding_model,
    load_tokenizer,
    position_limit,
    prepare_tokenizer,
    refuse_damaged_pickles,
    refuse_not_finite,
    text_padding,
    token_limit,
    tokenized,
)
from cusa.precompute.teachers.base import FEATURE, Teacher, loading, weights_digest

# Their embedding is the pooled output, of the last token or the end token, not the mean.
_TOWERS = ("clip_text_model", "siglip_text_model", "siglip2_text_model")
_OWN_NAMESPACE = "sentence_transformers."


def load_sentence(source: str, model_id: str, device: str, batch_size: int | None) -> Teacher:
    """Load a text model.

    A folder or repository with ``modules.json`` says itself how captions become rows. Of text
    towers the projected embedding is taken (``text_embeds``), or else the pooled output
    (``pooler``); of other models the mean over the tokens.

    Args:
        source: Hub name or folder.
        model_id: Name to record.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: Captions per forward pass; ``None``: what suits the device.

    Raises:
        TeacherError: If it cannot be loaded, has no tokeniser, or needs code of its own.
    """
    if is_text_tower(source):
        return _load_tower(source, model_id, device, batch_size)
    return text_teacher(open_model(source, device), source, model_id, device, batch_size)


def is_text_tower(source: str) -> bool:
    """Whether a folder or repository holds the text tower of a dual encoder.

    Raises:
        TeacherError: If it cannot be had, or its configuration cannot be read.
    """
    with loading("text model", source):
        files = locate(source, TeacherError)
        if has_file(files, "modules.json"):
            return False
        config = load_config(files)
        architectures = getattr(config, "architectures", None) or ()
        is_projected = any(str(name).endswith("TextModelWithProjection") for name in architectures)
        return is_projected or config.model_type in _TOWERS


# --- sentence-transformers


def open_model(source: str, device: str) -> Any:
    """A ``SentenceTransformer`` in float32 and eval mode, with a tokeniser that is fit for batches.

    Args:
        source: Hub name or folder.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        TeacherError: If it cannot be loaded, has no tokeniser, or needs code of its own.
    """
    from sentence_transformers import SentenceTransformer

    with loading("sentence-transformers model", source):
        files = locate(source, TeacherError)
        if Path(files).is_dir():
            _refuse_own_code(Path(files))
            refuse_damaged_pickles(Path(files))
        # float32 whatever the checkpoint's dtype: the store records what was computed in, --precision decides it
        model: Any = SentenceTransformer(
            files, device=device, model_kwargs={"dtype": torch.float32}, trust_remote_code=False
        )
        folder = Path(files) if Path(files).is_dir() else cached_snapshot(files)
        for number, module in enumerate(model):
            if hasattr(module, "auto_model"):
                _prepare_transformer(module, source)
                if folder is not None:
                    place = folder / _module_path(folder, number)
                    _refuse_missing_weights(module.auto_model, place, source)
        refuse_not_finite(model, source)
    return model.eval()


def _module_path(folder: Path, number: int) -> str:
    """Where the files of a module lie, below the model's folder."""
    modules = read_json(folder / "modules.json") if (folder / "modules.json").is_file() else []
    return str(modules[number]["path"]) if number < len(modules) else ""


def _refuse_own_code(folder: Path) -> None:
    """Refuse modules of other packages: older versions of sentence-transformers load them."""
    for path in (folder / "modules.json", *folder.glob("*/router_config.json")):
        if not path.is_file():
            continue
        for reference in _module_types(path):
            if not reference.startswith(_OWN_NAMESPACE):
                message = (
                    f"{folder} needs code of its own ({reference}), which is not run; use a model "
                    "of sentence-transformers' own modules"
                )
                raise TeacherError(message, path=path, name=reference)


def _module_types(path: Path) -> Iterator[str]:
    """Names of the classes that a ``modules.json`` or ``router_config.json`` asks for."""
    content = read_json(path)
    if path.name == "modules.json":
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            raise FileFormatError(f"{path} is not a list of modules; download it again", path=path)
        types = [entry.get("type") for entry in content]
    else:
        types = list((content.get("types") or {}).values()) if isinstance(content, dict) else []
    for reference in types:
        if not isinstance(reference, str):
            message = f"{path} names no class for one of its modules; download it again"
            raise FileFormatError(message, path=path)
        yield reference


def _prepare_transformer(module: Any, source: str) -> None:
    """Check a Transformer module's tokeniser, and cut captions where the model's positions end."""
    tokenizer = module.tokenizer
    if not _counts_tokens(tokenizer):
        return
    prepare_tokenizer(tokenizer, source, TeacherError)
    limit = position_limit(getattr(module.auto_model, "text_model", module.auto_model))
    if limit is not None and (module.max_seq_length is None or module.max_seq_length > limit):
        module.max_seq_length = limit


def _refuse_missing_weights(model: Any, folder: Path, source: str) -> None:
    """Refuse a model whose weights are not all in its files: it would be filled at random."""
    from transformers.utils import is_accelerate_available

    if (folder / "adapter_config.json").is_file():
        return
    # sentence-transformers keeps transformers' report to itself. On "meta", no weight is read.
    device = {"device_map": "meta"} if is_accelerate_available() else {}
    _, report = type(model).from_pretrained(
        folder, config=model.config, output_loading_info=True, trust_remote_code=False, **device
    )
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key.split("."))
    if missing:
        raise TeacherError(lacking(source, missing), path=folder, name=source)


def text_teacher(
    model: Any, source: str, model_id: str, device: str, batch_size: int | None
) -> Teacher:
    """The teacher that a ``SentenceTransformer`` is; the other arguments are :func:`load_sentence`'s.

    Raises:
        TeacherError: If it tells no embedding dimension, or what it says of itself makes no sense.
    """
    with loading("sentence-transformers model", source):
        return _text_teacher(model, source, model_id, device, batch_size)


def _text_teacher(
    model: Any, source: str, model_id: str, device: str, batch_size: int | None
) -> Teacher:
    dim = model.get_embedding_dimension()
    if not dim:
        message = f"{source!r} tells no embedding dimension; is it a sentence-transformers model?"
        raise TeacherError(message, name=source)
    prompt = (model.prompts or {}).get(model.default_prompt_name)
    limit = model.max_seq_length if math.isfinite(model.max_seq_length or math.inf) else None
    is_limited = limit is not None and limit < UNLIMITED
    cuts_counted_tokens = is_limited and _counts_tokens(
        model.tokenizer
    )  # else a limit in tokens, counts in characters

    def encode(inputs: dict[str, Any]) -> torch.Tensor:
        return model(inputs)["sentence_embedding"][
            :, :dim
        ]  # a model may be made to give its first dimensions alone

    def token_counts(captions: Sequence[str]) -> np.ndarray:
        return _token_counts(model.tokenizer, [(prompt or "") + caption for caption in captions])

    return Teacher(
        modality="text",
        model_id=model_id,
        weights_sha256=weights_digest(model),
        dim=int(dim),
        transform={
            "max_seq_length": limit,
            "tokenizer_sha256": _tokenizer_digest(model.tokenizer),
            "modules": [{"type": type(m).__name__, **_module_settings(m)} for m in model],
            "prompt": prompt,
        },
        source=source,
        encode=encode,
        batch_size=batch_size or (256 if torch.device(device).type == "cuda" else 32),
        tokenize=lambda captions: model.preprocess(list(captions), prompt=prompt),
        token_counts=token_counts,
        token_limit=limit if cuts_counted_tokens else None,
    )


def _counts_tokens(tokenizer: Any) -> bool:
    """Whether a tokeniser is one of transformers, which tell how long a caption is before any cut."""
    return hasattr(tokenizer, "all_special_ids")


def _token_counts(tokenizer: Any, captions: Sequence[str]) -> np.ndarray:
    """Tokens per caption before any cut; characters for tokenisers of other libraries."""
    if _counts_tokens(tokenizer):
        settings = {"padding": False, "truncation": False, "verbose": False}
        captions = tokenizer(list(captions), **settings)["input_ids"]
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
    backend = getattr(
        tokenizer, "backend_tokenizer", tokenizer
    )  # static embeddings bring the bare tokeniser
    text = backend.to_str() if hasattr(backend, "to_str") else repr(backend)
    return hashlib.sha256(text.encode()).hexdigest()


# --- text towers


def _load_tower(source: str, model_id: str, device: str, batch_size: int | None) -> Teacher:
    """The text tower of a dual encoder."""
    with loading("text tower", source):
        files = locate(source, TeacherError)
        model, missing = load_embedding_model(files)
        if missing:
            raise TeacherError(lacking(source, missing), name=source)
        tokenizer = load_tokenizer(files, TeacherError)
        model = model.eval().to(device)
    limit, padding = token_limit(tokenizer, model), text_padding(model.config.model_type)
    feature = "text_embeds" if type(model).__name__.endswith("WithProjection") else "pooler"

    def encode(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        output = model(**inputs)
        return output.text_embeds if feature == "text_embeds" else output.pooler_output

    def tokenize(captions: Sequence[str]) -> dict[str, torch.Tensor]:
        return tokenized(tokenizer, list(captions), limit, padding)

    with loading("text tower", source), torch.inference_mode():
        dim = encode({name: tensor.to(device) for name, tensor in tokenize(["a"]).items()}).shape[1]
    return Teacher(
        modality="text",
        model_id=model_id,
        weights_sha256=weights_digest(model),
        dim=dim,
        transform={
            FEATURE: feature,
            "max_seq_length": limit,
            "padding": padding,
            "tokenizer_sha256": _tokenizer_digest(tokenizer),
        },
        source=source,
        encode=encode,
        batch_size=batch_size or (256 if torch.device(device).type == "cuda" else 32),
        tokenize=tokenize,
        token_counts=lambda captions: _token_counts(tokenizer, captions),
        token_limit=limit,
    )
