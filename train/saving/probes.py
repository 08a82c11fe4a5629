"""Probes: inputs on which an export is compared with its student."""

from __future__ import annotations

from typing import Any

import torch

from cusa.data.errors import StudentError

# An export whose embeddings differ by more than this is not the same model; rounding stays far
# below.
TOLERANCE = 1e-4
# They probe case, punctuation, blanks, and more tokens than any text tower takes.
PROBE_CAPTIONS = ["A Dog's (red)  ball - on: THE grass! ", "2 people", " ".join(["number"] * 600)]


def check_embeddings(
    model: Any,
    probes: list[tuple[list[Any], torch.Tensor]],
    name: str,
    tolerance: float = TOLERANCE,
) -> None:
    """Refuse a model whose embeddings differ from a student's.

    Args:
        model: The ``SentenceTransformer``.
        probes: Inputs, and the student's embeddings of them, L2-normalised.
        name: What the student is, for the error.
        tolerance: Greatest difference of an entry that is taken for rounding.

    Raises:
        StudentError: If an embedding differs by more.
    """
    for inputs, expected in probes:
        # One by one: in a batch, short texts are padded, which could hide or cause differences.
        embeddings = model.encode(
            inputs,
            batch_size=1,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        differences = embeddings - expected
        error = differences.abs().max().item()
        if not error <= tolerance:  # also true for NaN
            raise StudentError(
                f"sentence-transformers gives other embeddings for this student ({name}, off by "
                f"{error:.2g}); export kind 'hf', or use cusa.load_student",
                name=name,
            )


def probe_images() -> list[Any]:
    """Make upright RGB images with gradients in different directions."""
    from PIL import Image

    gradient = Image.linear_gradient("L").convert("RGB")
    images = []
    for angle in (0, 90, 180):
        rotated = gradient.rotate(angle)
        images.append(rotated.crop((0, 0, 160, 240)))
    return images
