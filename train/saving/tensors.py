"""Tensors in one safetensors file: written atomically, sealed with a checksum, read back whole or refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cusa.data.errors import FileFormatError, RunError, first_line
from cusa.data.files import atomic_file
from cusa.data.parsing import parse_json

# What safetensors raises for damaged files, and torch for dtypes that it does not know.
_PARSER_ERRORS = (
    SafetensorError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    OverflowError,
)


class DamagedFileError(RunError):
    """A file of tensors is torn, or is not one of ours."""


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON-compatible metadata; an old file stays until the new one is whole.

    Raises:
        OSError: If they cannot be written: no space left, say.
    """
    plain: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain[name] = tensor.detach().cpu().contiguous()
        if plain[name].data_ptr() in seen:  # tied weights: a safetensors file does not share memory
            plain[name] = plain[name].clone()
        seen.add(plain[name].data_ptr())
    with atomic_file(path) as temporary:
        temporary.touch()
        mode = (
            temporary.stat().st_mode
        )  # as other files are; safetensors' own would be for nobody else to read
        try:
            text = json.dumps(meta)
            save_file(plain, temporary, {"cusa": text, "sha256": _digest(plain, text)})
        except SafetensorError as error:  # its own word for any error of the file system
            raise OSError(f"{path} cannot be written ({error})") from None
        temporary.chmod(mode)


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of a file.

    Raises:
        DamagedFileError: If it is torn, or not one of ours.
        RunError: If it does not exist.
    """
    tensors, metadata = _read(path, with_tensors=True)
    try:
        is_whole = metadata.get("sha256") == _digest(tensors, metadata["cusa"])
    except _PARSER_ERRORS as error:  # a dtype whose bytes torch does not give
        raise _damaged(path, first_line(error)) from None
    if not is_whole:
        raise _damaged(path, "its checksum differs")
    return tensors, _metadata(metadata["cusa"], path)


def load_metadata(path: Path) -> dict[str, Any]:
    """Metadata of a file alone; the checksum, which is over all of it, is not looked at.

    Raises:
        DamagedFileError: If it is torn, or not one of ours.
        RunError: If it does not exist.
    """
    return _metadata(_read(path, with_tensors=False)[1]["cusa"], path)


def _read(path: Path, with_tensors: bool) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if not path.exists():
        raise RunError(f"{path} does not exist; has the run finished its first epoch?", path=path)
    if not path.is_file():
        raise _damaged(path, "it is no file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys()) if with_tensors else []
            tensors = {name: file.get_tensor(name) for name in names}
    except _PARSER_ERRORS as error:
        raise _damaged(path, first_line(error)) from None
    if "cusa" not in metadata:
        raise _damaged(path, "it was not written by cusa-train")
    return tensors, metadata


def _metadata(text: str, path: Path) -> dict[str, Any]:
    # Earlier versions wrote a best RSUM that there was not yet as -Infinity, which is no JSON.
    text = text.replace('"best_rsum": -Infinity', '"best_rsum": null')
    try:
        content = parse_json(text, path)
    except FileFormatError as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(content, dict):
        raise _damaged(path, "its metadata are no mapping")
    return content


def _damaged(path: Path, reason: str) -> DamagedFileError:
    return DamagedFileError(f"{path} is damaged ({reason}); use another or train again", path=path)


def weights_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 (hex) over names, dtypes, shapes and values."""
    return _digest(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        "",
    )


def _digest(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def with_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under ``prefix.``."""
    return {f"{prefix}.{k}": v for k, v in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of :func:`with_prefix`, other names left out."""
    return {
        k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")
    }


def mismatch(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """Compare weights with those that a model has.

    Returns:
        What is wrong with them, in words: a name that is missing or unknown, another shape or
        dtype, a value that is not finite. Empty if they fit.
    """
    if names := expected.keys() - tensors.keys():
        return f"{min(names)} is missing"
    if names := tensors.keys() - expected.keys():
        return f"{min(names)} is unknown"
    for name, tensor in tensors.items():
        wanted = expected[name]
        if (tensor.shape, tensor.dtype) != (wanted.shape, wanted.dtype):
            actual = f"{tensor.dtype} {list(tensor.shape)}"
            return f"{name} is {actual}, not {wanted.dtype} {list(wanted.shape)}"
    return not_finite(tensors)


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str:
    """Name the first tensor that holds NaN or infinity, in words; empty if none does."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            return f"{name} is not finite"
    return ""
