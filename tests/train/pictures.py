"""Command lines about pairs of image files: teacher rows for them, and a student that
reads them.
"""

from __future__ import annotations

from pathlib import Path

from tests.helpers import run_ok


def precompute_pictures(
    manifest: Path,
    image_model: Path | str,
    store: Path | str,
    *more: object,
) -> None:
    """Write a store with the rows of an image model, as teacher ``vit``, and of ``minilm``."""
    teachers = ("--teacher", f"vit={image_model}", "--teacher", "minilm")
    run_ok("precompute", "--dataset", manifest, *teachers, "--out", store, *more)


def student_options(
    store: Path | str,
    student: Path | str,
    run_dir: Path | str,
    *,
    epochs: int,
    batch_size: int,
) -> tuple[object, ...]:
    """Options of ``cusa-train``: what to train, on what, where and how long."""
    run = ("--embeddings", store, "--student", student, "--run-dir", run_dir)
    return (*run, "--epochs", epochs, "--batch-size", batch_size)
