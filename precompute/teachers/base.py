"""Teachers: frozen models of one modality that turn images or texts into L2-normalised rows."""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from cusa.data.encoders.vision_encoder import Tensors
from cusa.data.errors import FORWARD_PASS, TeacherError, first_line
from cusa.data.hub import load_advice
from cusa.data.images import DECODING
from cusa.data.pretrained import one_line_load_errors
from cusa.data.store.schema import TeacherSettings
from cusa.data.unit_rows import unit_rows
from cusa.data.worker_pool import pinned

# How errors say where to give a model's folder.
FOLDER_OPTION = "--teacher NAME=FOLDER"
# Key in the settings' transform for the part of a model's output that becomes the row.
FEATURE = "feature"
# Values of FEATURE, and what they mean.
FEATURES = {
    "image_features": "the projected embedding",
    "image_embeds": "the projected embedding",
    "text_embeds": "the projected embedding",
    "pooler": "the pooled output",
    "first_token": "the class token",
    "mean": "the mean over the patches",
}
_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}
_BATCH_SIZE_ON_GPU = 256
Preprocessed = np.ndarray | Mapping[str, np.ndarray]


@dataclass(frozen=True)
class SizeGroups:
    """Preprocessed images of several sizes, grouped by size.

    Attributes:
        groups: A batch for each size.
        positions: int64 ``[n]`` for each group: the positions of its images among all images.
    """

    groups: tuple[Tensors, ...]
    positions: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return sum(map(len, self.positions))

    def pin_memory(self) -> SizeGroups:
        """Return the groups in page-locked memory."""
        return replace(self, groups=tuple(map(pinned, self.groups)))


TeacherInputs = Tensors | SizeGroups | Sequence[str]


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
        encode: Maps inputs on the teacher's device to ``[n, dim]``, not normalised. Inputs are, for
            images, float32 ``[n, 3, h, w]``, or tensors by name if ``preprocess`` returns arrays by
            name; for texts, the output of ``tokenize``.
        batch_size: Items per forward pass.
        preprocess: Images only: maps a PIL image to float32 ``[3, h, w]``, or arrays by name; runs
            in worker processes.
        tokenize: Texts only: maps captions to one padded batch of tensors by name, on the CPU.
        token_counts: Texts only: maps captions to their lengths in tokens before any cut, int64
            ``[n]``.
        token_limit: Texts only: number of tokens that longer captions are cut to; ``None``: no
            limit, or an unknown one.
        decoding: Images only: how images are decoded, for the settings; empty for kept rows from
            before images were turned upright.
    """

    modality: str
    model_id: str
    weights_sha256: str
    dim: int
    transform: Mapping[str, Any]
    source: str
    encode: Callable[[Any], torch.Tensor]
    batch_size: int
    preprocess: Callable[[Image.Image], Preprocessed] | None = None
    tokenize: Callable[[Sequence[str]], Mapping[str, Any]] | None = None
    token_counts: Callable[[Sequence[str]], np.ndarray] | None = None
    token_limit: int | None = None
    decoding: Mapping[str, str] = field(default_factory=lambda: dict(DECODING))

    def settings(
        self,
        precision: str,
        dtype: str,
        normalizer: str,
    ) -> TeacherSettings:
        """Return the settings that a store records of this teacher."""
        transform = dict(self.transform)
        if self.modality == "image":
            transform |= self.decoding
        return TeacherSettings(
            modality=self.modality,
            model_id=self.model_id,
            weights_sha256=self.weights_sha256,
            transform=transform,
            normalizer=normalizer if self.modality == "text" else "none",
            precision=precision,
            dim=self.dim,
            dtype=dtype,
            normalized=True,
        )

    def inputs(self, items: Iterable[Any]) -> TeacherInputs:
        """Prepare PIL images or captions for :meth:`rows`, on the CPU.

        Images are taken one by one, so that an iterator need not keep all of them decoded.
        """
        if self.modality == "text" or self.tokenize is not None:
            return self.tokens(list(items))
        assert self.preprocess is not None, "an image teacher brings its preprocessing"
        return stacked([self.preprocess(image) for image in items])

    def tokens(self, captions: Sequence[str]) -> Mapping[str, Any]:
        """Tokenise captions into one padded batch of tensors by name, on the CPU.

        Raises:
            TeacherError: If the tokeniser fails.
        """
        assert self.tokenize is not None, "a text teacher brings its tokeniser"
        try:
            return self.tokenize(captions)
        except Exception as error:
            # Some tokenisers have no token for an unknown word.
            message = f"the tokeniser of {self.model_id!r} fails ({first_line(error)})"
            raise TeacherError(message, name=self.model_id, location=FORWARD_PASS) from None

    def rows(
        self,
        inputs: TeacherInputs,
        device: str,
        precision: str,
    ) -> np.ndarray:
        """Encode a batch; several threads may call this.

        Args:
            inputs: Preprocessed images, float32 ``[n, 3, h, w]`` or as :func:`stacked` returns
                them; or captions, tokenised or as texts.
            device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
            precision: ``"fp32"``, ``"fp16"`` or ``"bf16"`` (autocast).

        Returns:
            float32 ``[n, dim]``, L2-normalised.

        Raises:
            TeacherError: If a GPU's memory is too small for the batch, or the model fails on it.
        """
        if isinstance(inputs, SizeGroups):
            group_rows = [self.rows(group, device, precision) for group in inputs.groups]
            original_order = np.argsort(np.concatenate(inputs.positions))
            return np.concatenate(group_rows)[original_order]
        if not isinstance(inputs, torch.Tensor | Mapping):
            inputs = self.tokens(inputs)
        try:
            return self._rows(inputs, device, precision)
        except torch.OutOfMemoryError:
            message = f"{self.model_id}: not enough memory on {device}; pass a smaller --batch-size"
            raise TeacherError(message, name=self.model_id) from None
        except Exception as error:
            # A model's code may raise nearly anything.
            message = f"model {self.model_id!r} fails ({first_line(error)})"
            raise TeacherError(message, name=self.model_id, location=FORWARD_PASS) from None

    @torch.inference_mode()
    def _rows(
        self,
        inputs: Tensors,
        device: str,
        precision: str,
    ) -> np.ndarray:
        if isinstance(inputs, torch.Tensor) and inputs.ndim == 4:
            inputs = inputs.to(device, non_blocking=True, memory_format=torch.channels_last)
        else:
            inputs = each_tensor(inputs, lambda tensor: tensor.to(device, non_blocking=True))

        autocast: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if precision in _AUTOCAST:
            autocast = torch.autocast(torch.device(device).type, _AUTOCAST[precision])
        with autocast:
            features = self.encode(inputs)
        if features.ndim != 2:
            raise ValueError(f"its output is {list(features.shape)}, not one row for each item")
        return unit_rows(features.float().cpu().numpy())


def stacked(items: Sequence[Preprocessed]) -> Tensors | SizeGroups:
    """Stack preprocessed images into a batch, or into one batch per size if sizes differ.

    Args:
        items: The images, each as float32 ``[3, h, w]`` or arrays by name.
    """
    positions_of_shape: dict[Any, list[int]] = defaultdict(list)
    for position, item in enumerate(items):
        positions_of_shape[_shape(item)].append(position)

    groups: list[Tensors] = []
    group_positions: list[np.ndarray] = []
    for positions in positions_of_shape.values():
        groups.append(_stack([items[position] for position in positions]))
        group_positions.append(np.asarray(positions, np.int64))
    if len(groups) == 1:
        return groups[0]
    return SizeGroups(tuple(groups), tuple(group_positions))


def _shape(item: Preprocessed) -> Any:
    """Return a key that is equal for images that can be stacked."""
    if isinstance(item, np.ndarray):
        return item.shape
    return tuple((name, array.shape) for name, array in item.items())


def _stack(items: Sequence[Preprocessed]) -> Tensors:
    first = items[0]
    if isinstance(first, np.ndarray):
        return torch.from_numpy(np.stack(items))  # type: ignore[arg-type]
    tensors: dict[str, torch.Tensor] = {}
    for name in first:
        tensors[name] = torch.from_numpy(np.stack([item[name] for item in items]))
    return tensors


def each_tensor(inputs: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Apply a function to a tensor, or to each tensor in a mapping; other values stay."""
    if isinstance(inputs, torch.Tensor):
        return change(inputs)
    changed = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            changed[name] = change(value)
    return changed


def default_batch_size(device: str, on_cpu: int) -> int:
    """Return the default number of items per forward pass on a device.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        on_cpu: The number for a CPU, which depends on the model.
    """
    if torch.device(device).type == "cuda":
        return _BATCH_SIZE_ON_GPU
    return on_cpu


def loading(description: str, source: str) -> contextlib.AbstractContextManager[None]:
    """Turn errors while a model is loaded into one line that says what to do.

    Args:
        description: What is loaded, such as ``"vision model"``.
        source: The model's folder or hub name.
    """
    advice = load_advice(source, FOLDER_OPTION)
    return one_line_load_errors(description, source, TeacherError, advice)


def weights_digest(model: torch.nn.Module) -> str:
    """Compute the sha256 (hex) over names, dtypes, shapes and bytes of parameters and buffers.

    It does not depend on the file that they were loaded from.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()
