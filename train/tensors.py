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

from cusa.data.errors import CusaError
from cusa.data.files import atomic_file


class DamagedFileError(CusaError):
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
        mode = temporary.stat().st_mode  # as other files are; safetensors' own would be for nobody else to read
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
        CusaError: If it does not exist.
    """
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            if "cusa" not in meta:
                raise DamagedFileError(f"{path} was not written by cusa-train")
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise CusaError(f"{path} does not exist; has the run finished its first epoch?") from None
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is damaged ({error}); use another or train again") from None
    if meta.get("sha256") != _digest(tensors, meta["cusa"]):
        raise DamagedFileError(f"{path} is damaged (its checksum differs); use another or train again")
    return tensors, json.loads(meta["cusa"])


def _digest(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under ``prefix.``."""
    return {f"{prefix}.{k}": v for k, v in tensors.items()}


def under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of :func:`prefixed`, other names left out."""
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
