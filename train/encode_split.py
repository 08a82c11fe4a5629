"""The embeddings of a whole split: both modalities, both heads."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from cusa.data.embeddings import HEADS, Rows, SplitEmbeddings
from cusa.data.errors import DataError
from cusa.data.unit_rows import unit_rows
from cusa.data.worker_pool import StartMethod, WorkerPool
from cusa.train.loader import to_device
from cusa.train.processes import Processes
from cusa.train.sources import Sources
from cusa.train.student import Features, Student
from cusa.train.student_inputs import Inputs

Unit = Literal["images", "captions"]
ReadInputs = Callable[[np.ndarray], Inputs]  # by int64 row
Forward = Callable[[Any], Features]  # a student's encode_image or encode_text


@torch.no_grad()
def encode_split(
    student: Student,
    sources: Sources,
    device: torch.device | str,
    batch_size: int = 256,
    workers: int = 0,
    start_method: StartMethod = "fork",
    processes: Processes | None = None,
    check: Callable[[], None] = lambda: None,
    advance: Callable[[str, int, int], None] = lambda unit, count, total: None,
) -> SplitEmbeddings:
    """Encode every readable image and caption of a split.

    Args:
        student: The student, on ``device``; its training mode is restored.
        sources: Readers of the split.
        device: Where to encode.
        batch_size: Images or captions per batch.
        workers: Processes that read inputs.
        start_method: How those processes are started.
        processes: Training processes that share the work: each encodes a share of the rows and
            receives all embeddings. ``None``: this process encodes all rows.
        check: Called after each batch if this process works alone; may raise.
        advance: Called before the first batch and after each with ``"images"`` or ``"captions"``,
            how many were encoded since the last call, and how many this process encodes in all.

    Returns:
        float32 ``[n, d]`` per modality and head, L2-normalised; rows without an input are left out.

    Raises:
        CusaError: If an input cannot be read, or a modality has no input at all.
    """
    split, inputs = sources
    if sources.lack_a_modality:
        raise DataError(
            f"split {split.name!r} has no image or no caption that could be read", name=split.name
        )
    no_image, no_text = inputs.missing()
    image_rows = _all_rows_but(no_image, split.n_images)
    text_rows = _all_rows_but(no_text, split.n_captions)
    encoder = _RowEncoder(device, batch_size, workers, start_method, processes, check, advance)
    was_training = student.training
    student.eval()
    try:
        image = encoder.encode(inputs.image.read, student.encode_image, image_rows, "images")
        text = encoder.encode(inputs.text.read, student.encode_text, text_rows, "captions")
    finally:
        student.train(was_training)
    # The image of each caption by its position among those that were encoded.
    image_positions = np.full(split.n_images, -1, np.int64)
    image_positions[image_rows] = np.arange(len(image_rows))
    image_of_caption = np.asarray(split.caption_image)[text_rows]
    caption_image = image_positions[image_of_caption]
    return SplitEmbeddings(image, text, image_rows, text_rows, caption_image)


def _all_rows_but(left_out: np.ndarray, n_rows: int) -> np.ndarray:
    all_rows = np.arange(n_rows)
    return np.setdiff1d(all_rows, left_out)


@dataclass(frozen=True)
class _RowEncoder:
    """Encodes rows of a split; the fields are the arguments of :func:`encode_split`."""

    device: torch.device | str
    batch_size: int
    workers: int
    start_method: StartMethod
    processes: Processes | None
    check: Callable[[], None]
    advance: Callable[[str, int, int], None]

    def encode(
        self,
        read: ReadInputs,
        forward: Forward,
        rows: np.ndarray,
        unit: Unit,
    ) -> Rows:
        """Encode rows of one modality, each training process its share of them.

        Args:
            read: Reads the inputs of rows.
            forward: The student's ``encode_image`` or ``encode_text``.
            rows: int64 ``[n]``, those of the split.
            unit: What ``advance`` calls them.

        Returns:
            float32 ``[n, d]`` by head.
        """
        processes = self.processes
        if processes is None:
            chunk_embeddings = self._encode_chunks(read, forward, rows, unit)
        else:
            shares = np.array_split(rows, processes.size)
            own_rows = shares[processes.rank]
            with processes.all_or_none():
                own_embeddings = self._encode_chunks(read, forward, own_rows, unit)
            embeddings_by_rank = processes.everyones(own_embeddings)
            chunk_embeddings = list(itertools.chain.from_iterable(embeddings_by_rank))
        embeddings = {}
        for head in HEADS:
            head_chunks = [embeddings_by_head[head] for embeddings_by_head in chunk_embeddings]
            embeddings[head] = np.concatenate(head_chunks)
        return embeddings

    def _encode_chunks(
        self,
        read: ReadInputs,
        forward: Forward,
        rows: np.ndarray,
        unit: Unit,
    ) -> list[Rows]:
        """Encode rows in this process, a batch at a time."""
        starts = range(0, len(rows), self.batch_size)
        chunks = [rows[start : start + self.batch_size] for start in starts]
        n_workers = min(self.workers, len(chunks))
        pin = torch.device(self.device).type == "cuda"
        pool = WorkerPool(_ByRows(read), n_workers, self.start_method, pin)
        works_alone = self.processes is None or self.processes.size == 1
        chunk_embeddings: list[Rows] = []
        self.advance(unit, 0, len(rows))
        with closing(pool):
            for chunk_rows, chunk_inputs in zip(chunks, pool.read(chunks), strict=True):
                chunk_embeddings.append(embed(forward, chunk_inputs, self.device))
                if works_alone:
                    self.check()
                self.advance(unit, len(chunk_rows), len(rows))
        return chunk_embeddings


@torch.no_grad()
def embed(
    forward: Forward,
    inputs: Inputs,
    device: torch.device | str,
) -> Rows:
    """Encode one batch with both heads.

    Args:
        forward: The student's ``encode_image`` or ``encode_text``.
        inputs: Its inputs, on any device.
        device: The student's device.

    Returns:
        float32 ``[n, d]`` by head, L2-normalised.
    """
    features = forward(to_device(inputs, device))
    embeddings: Rows = {}
    for head, head_features in zip(HEADS, features, strict=True):
        head_embeddings = head_features.float().cpu().numpy()
        embeddings[head] = unit_rows(head_embeddings)
    return embeddings


class _ByRows:
    """A reader of inputs, indexed by an array of rows as a worker pool expects."""

    def __init__(self, read: ReadInputs) -> None:
        self._read = read

    def __getitem__(self, rows: np.ndarray) -> Inputs:
        return self._read(rows)
