"""Tensors in one safetensors file, sealed with a checksum: read back whole or refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

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
    """A file of tensors is torn, or was not written by cusa-train."""


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
) -> None:
    """Write tensors and JSON-compatible metadata; an old file stays until the new one is complete.

    Raises:
        OSError: If they cannot be written, for instance because the disk is full.
    """
    contents = {}
    addresses = set()
    for tensor_name, tensor in tensors.items():
        content = _content(tensor)
        if content.data_ptr() in addresses:
            content = content.clone()  # tied weights, which safetensors refuses
        addresses.add(content.data_ptr())
        contents[tensor_name] = content
    with atomic_file(path) as temporary:
        temporary.touch()
        # Keep the mode of other files; safetensors would make the file unreadable to other users.
        mode = temporary.stat().st_mode
        metadata_json = json.dumps(metadata)
        sealed = {"cusa": metadata_json, "sha256": _digest(contents, metadata_json)}
        try:
            save_file(contents, temporary, sealed)
        except SafetensorError as error:  # which safetensors raises for errors of the file system
            raise OSError(f"{path} cannot be written ({error})") from None
        temporary.chmod(mode)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and metadata of a file.

    Raises:
        DamagedFileError: If the file is torn, or was not written by cusa-train.
        RunError: If it does not exist.
    """
    tensors, metadata = _read(path, with_tensors=True)
    try:
        digest = _digest(tensors, metadata["cusa"])
    except _PARSER_ERRORS as error:  # a dtype that torch cannot view as bytes
        raise _damaged(path, first_line(error)) from None
    if metadata.get("sha256") != digest:
        raise _damaged(path, "its checksum differs")
    return tensors, _metadata(metadata["cusa"], path)


def load_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of a file without its tensors, and so without verifying the checksum.

    Raises:
        DamagedFileError: If the header is damaged, or the file was not written by cusa-train.
        RunError: If it does not exist.
    """
    _, metadata = _read(path, with_tensors=False)
    return _metadata(metadata["cusa"], path)


def _read(path: Path, with_tensors: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.exists():
        raise RunError(f"{path} does not exist; has the run finished its first epoch?", path=path)
    if not path.is_file():
        raise _damaged(path, "it is not a file")
    tensors = {}
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if with_tensors:
                for tensor_name in file.keys():  # noqa: SIM118 - not a mapping
                    tensors[tensor_name] = file.get_tensor(tensor_name)
    except _PARSER_ERRORS as error:
        raise _damaged(path, first_line(error)) from None
    if "cusa" not in metadata:
        raise _damaged(path, "it was not written by cusa-train")
    return tensors, metadata


def _metadata(metadata_json: str, path: Path) -> dict[str, Any]:
    # Earlier versions wrote -Infinity, which is not JSON, before there was a best RSUM.
    metadata_json = metadata_json.replace('"best_rsum": -Infinity', '"best_rsum": null')
    try:
        content = parse_json(metadata_json, path)
    except FileFormatError as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(content, dict):
        raise _damaged(path, "its metadata are not a mapping")
    return content


def _damaged(path: Path, reason: str) -> DamagedFileError:
    return DamagedFileError(f"{path} is damaged ({reason}); use another or train again", path=path)


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Compute the sha256 (hex) of the tensors' names, dtypes, shapes and values."""
    contents = {tensor_name: _content(tensor) for tensor_name, tensor in tensors.items()}
    return _digest(contents, "")


def _content(tensor: Tensor) -> Tensor:
    """Return a tensor as it is written to a file."""
    return tensor.detach().cpu().contiguous()


def _digest(tensors: Mapping[str, Tensor], metadata_json: str) -> str:
    # Sorted, since the order of tensors in a file is up to the library that wrote it.
    digest = hashlib.sha256(metadata_json.encode())
    for tensor_name, tensor in sorted(tensors.items()):
        description = f"{tensor_name} {tensor.dtype} {tuple(tensor.shape)}"
        content = tensor.reshape(-1).view(torch.uint8)
        digest.update(description.encode())
        digest.update(content.numpy().data)
    return digest.hexdigest()


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put ``prefix.`` before the names of tensors."""
    return {f"{prefix}.{tensor_name}": tensor for tensor_name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove ``prefix.`` from the names of tensors; those with other names are left out."""
    stripped = {}
    for tensor_name, tensor in tensors.items():
        if tensor_name.startswith(f"{prefix}."):
            stripped[tensor_name.removeprefix(f"{prefix}.")] = tensor
    return stripped


def mismatch(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Compare loaded tensors with those of a model, optimizer or loss.

    Args:
        tensors: The loaded tensors by name.
        expected: Tensors with the names, shapes and dtypes that they must have.

    Returns:
        What is wrong with them, in words: a name that is missing or unknown, another shape or
        dtype, or a value that is not finite. Empty if they fit.
    """
    missing = expected.keys() - tensors.keys()
    if missing:
        return f"{min(missing)} is missing"
    unknown = tensors.keys() - expected.keys()
    if unknown:
        return f"{min(unknown)} is unknown"
    for tensor_name, tensor in tensors.items():
        kind = _kind(tensor)
        expected_kind = _kind(expected[tensor_name])
        if kind != expected_kind:
            return f"{tensor_name} is {kind}, not {expected_kind}"
    return not_finite(tensors)


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Name the first tensor that holds NaN or infinity, in a message; empty if none does."""
    for tensor_name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            return f"{tensor_name} is not finite"
    return ""
