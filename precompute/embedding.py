"""A teacher over a few items: no threads, no store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cusa.data.errors import CusaError
from cusa.precompute.reading import caption_batches, read_image
from cusa.precompute.teachers.base import Teacher, stacked


def embed_images(
    teacher: Teacher,
    image_paths: Sequence[Path],
    device: str,
    precision: str,
    batch_size: int,
) -> np.ndarray:
    """Embed image files: float32 ``[n, dim]``, L2-normalised.

    Args:
        teacher: An image teacher.
        image_paths: The files, at least one.
        device: Where the teacher is.
        precision: What it computes in.
        batch_size: Images per forward pass.

    Raises:
        ImageError: If an image cannot be read.
    """
    embeddings: list[np.ndarray] = []
    for start in range(0, len(image_paths), batch_size):
        batch_paths = image_paths[start : start + batch_size]
        images = [read_image(path, teacher) for path in batch_paths]
        embeddings.append(teacher.rows(stacked(images), device, precision))
    return np.concatenate(embeddings)


def embed_captions(
    teacher: Teacher,
    captions: Sequence[tuple[str, str]],
    normalizer_name: str,
    device: str,
    precision: str,
) -> np.ndarray:
    """Embed captions: float32 ``[n, dim]``, L2-normalised.

    Args:
        teacher: A text teacher.
        captions: (caption, caption id) each.
        normalizer_name: Name of the caption normaliser.
        device: Where the teacher is.
        precision: What it computes in.

    Raises:
        CusaError: If a caption is empty once normalised.
    """
    embeddings = np.empty((len(captions), teacher.dim), np.float32)
    for batch in caption_batches(teacher, captions, normalizer_name):
        if batch.errors:
            _, message = batch.errors[0]
            raise CusaError(message)
        assert batch.inputs is not None, "batches without errors have inputs"
        rows = teacher.rows(batch.inputs, device, precision)
        embeddings[batch.rows] = rows[batch.source]
    return embeddings
