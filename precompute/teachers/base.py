"""What a teacher is: a frozen model of one modality that turns images or captions into L2-normalised rows."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from cusa.data.schema import TeacherSettings

_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Teacher:
    """A loaded teacher.

    Attributes:
        modality: ``"image"`` or ``"text"``.
        model_id: Name of the model.
        weights_sha256: sha256 (hex) of the weights.
        dim: Embedding dimension.
        transform: Preprocessing settings, JSON-compatible.
        source: Where it was loaded from: a file, a folder, a hub name or a package.
        encode: Images: ``float32 [n, 3, h, w]`` on the teacher's device -> ``[n, dim]``. Text: ``list[str]`` -> same.
            Not normalised.
        preprocess: Images only: PIL image -> float32 ``[3, h, w]``; runs in worker processes.
        batch_size: Items per call of ``rows`` that suit it; text teachers sort and split them further.
    """

    modality: str
    model_id: str
    weights_sha256: str
    dim: int
    transform: Mapping[str, Any]
    source: str
    encode: Callable[[Any], torch.Tensor]
    preprocess: Callable[[Image.Image], np.ndarray] | None
    batch_size: int

    def settings(self, precision: str, dtype: str, normalizer: str) -> TeacherSettings:
        """What the store records of this teacher."""
        return TeacherSettings(
            modality=self.modality,
            model_id=self.model_id,
            weights_sha256=self.weights_sha256,
            transform=self.transform,
            normalizer=normalizer if self.modality == "text" else "none",
            precision=precision,
            dim=self.dim,
            dtype=dtype,
            normalized=True,
        )

    @torch.inference_mode()
    def rows(self, inputs: torch.Tensor | Sequence[str], device: str, precision: str) -> np.ndarray:
        """Encode one batch.

        Args:
            inputs: Preprocessed images, float32 ``[n, 3, h, w]``, or captions.
            device: ``"cpu"`` or ``"cuda"``.
            precision: ``"fp32"``, ``"fp16"`` or ``"bf16"`` (autocast).

        Returns:
            float32 ``[n, dim]``, L2-normalised.
        """
        if isinstance(inputs, torch.Tensor):
            inputs = inputs.to(device, non_blocking=True, memory_format=torch.channels_last)
        reduced = _AUTOCAST.get(precision)
        with torch.autocast(device, reduced) if reduced else contextlib.nullcontext():
            features = self.encode(inputs)
        return torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()


def weights_digest(model: torch.nn.Module) -> str:
    """sha256 (hex) over parameters and buffers: names, dtypes, shapes and bytes, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
