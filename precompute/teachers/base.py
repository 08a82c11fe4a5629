"""What a teacher is: a frozen model of one modality that turns images or captions into L2-normalised rows."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cusa.data.errors import CusaError
from cusa.data.schema import TeacherSettings

DRAFT = "jpeg_draft"  # key of the settings' transform; absent where JPEGs are decoded in full
TeacherInputs = torch.Tensor | Mapping[str, Any] | Sequence[str]
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
        encode: Inputs on the teacher's device -> ``[n, dim]``, not normalised. Images: float32 ``[n, 3, h, w]``; text:
            what ``tokenize`` returned.
        batch_size: Items per forward pass that suit it.
        preprocess: Images: PIL image -> float32 ``[3, h, w]``; runs in worker processes.
        input_size: Images: pixels that ``preprocess`` resizes a side to, ``None`` if it does not tell.
        draft_size: Images: pixels that both sides of a JPEG keep where it is halved while decoded; ``None``: never.
        tokenize: Text: captions -> one padded batch of tensors by name, on the CPU.
        token_counts: Text: captions -> their lengths in tokens, int64 ``[n]``.
    """

    modality: str
    model_id: str
    weights_sha256: str
    dim: int
    transform: Mapping[str, Any]
    source: str
    encode: Callable[[Any], torch.Tensor]
    batch_size: int
    preprocess: Callable[[Image.Image], np.ndarray] | None = None
    input_size: int | None = None
    draft_size: int | None = None
    tokenize: Callable[[Sequence[str]], Mapping[str, Any]] | None = None
    token_counts: Callable[[Sequence[str]], np.ndarray] | None = None

    def settings(self, precision: str, dtype: str, normalizer: str) -> TeacherSettings:
        """What the store records of this teacher."""
        return TeacherSettings(
            modality=self.modality,
            model_id=self.model_id,
            weights_sha256=self.weights_sha256,
            transform=self.transform if self.draft_size is None else {**self.transform, DRAFT: self.draft_size},
            normalizer=normalizer if self.modality == "text" else "none",
            precision=precision,
            dim=self.dim,
            dtype=dtype,
            normalized=True,
        )

    def inputs(self, items: Iterable[Any]) -> TeacherInputs:
        """PIL images or captions as :meth:`rows` takes them, on the CPU; few images are held decoded."""
        if self.tokenize is not None:
            return self.tokenize(list(items))
        assert self.preprocess is not None, "an image teacher brings its preprocessing"
        return torch.from_numpy(np.stack([self.preprocess(image) for image in items]))

    @torch.inference_mode()
    def rows(self, inputs: TeacherInputs, device: str, precision: str) -> np.ndarray:
        """Encode one batch; several threads may call it.

        Args:
            inputs: Preprocessed images, float32 ``[n, 3, h, w]``, or captions, tokenised or not.
            device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
            precision: ``"fp32"``, ``"fp16"`` or ``"bf16"`` (autocast).

        Returns:
            float32 ``[n, dim]``, L2-normalised.

        Raises:
            CusaError: If a GPU's memory is too small for the batch.
        """
        if isinstance(inputs, torch.Tensor):
            inputs = inputs.to(device, non_blocking=True, memory_format=torch.channels_last)
        else:
            if not isinstance(inputs, Mapping):
                assert self.tokenize is not None, "a text teacher brings its tokeniser"
                inputs = self.tokenize(inputs)
            inputs = {
                k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()
            }
        reduced = _AUTOCAST.get(precision)
        try:
            with torch.autocast(torch.device(device).type, reduced) if reduced else contextlib.nullcontext():
                features = self.encode(inputs)
        except torch.OutOfMemoryError:
            raise CusaError(f"{self.model_id}: not enough memory on {device}; pass a smaller --batch-size") from None
        return torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()


def cannot_load(what: str, source: str, error: Exception) -> CusaError:
    """The error of a model, given by folder or hub name, that does not load: why, and where to get its files."""
    first = str(error).strip().split("\n")[0]
    download = "" if Path(source).is_dir() else f" (hf download {source} --local-dir FOLDER where there is a network)"
    return CusaError(f"cannot load {what} {source!r} ({first}); pass its folder: --teacher NAME=FOLDER{download}")


def weights_digest(model: torch.nn.Module) -> str:
    """sha256 (hex) over parameters and buffers: names, dtypes, shapes and bytes, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
