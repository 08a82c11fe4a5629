"""The embeddings of a whole split: both modalities, both heads."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cusa.data.embeddings import HEADS, Rows, SplitEmbeddings
from cusa.data.errors import DataError
from cusa.data.unit_rows import unit_rows
from cusa.data.worker_pool import StartMethod, WorkerPool
from cusa.train.loader import Sources, each_tensor
from cusa.train.processes import Processes
from cusa.train.student import Features, Student
from cusa.train.student_inputs import Inputs


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
    image_rows = np.setdiff1d(np.arange(split.n_images), no_image)
    text_rows = np.setdiff1d(np.arange(split.n_captions), no_text)
    rank = 0
    size = 1
    if processes is not None:
        rank = processes.rank
        size = processes.size

    def encode(
        read: Callable[[np.ndarray], Inputs],
        forward: Callable[[Any], Features],
        rows: np.ndarray,
        unit: str,
    ) -> Rows:
        rank_rows = np.array_split(rows, size)[rank]
        starts = range(0, len(rank_rows), batch_size)
        chunks = [rank_rows[start : start + batch_size] for start in starts]
        pin = torch.device(device).type == "cuda"
        pool = WorkerPool(_ByRows(read), min(workers, len(chunks)), start_method, pin)
        chunk_embeddings: list[Rows] = []
        advance(unit, 0, len(rank_rows))
        all_or_none = processes.all_or_none() if processes else contextlib.nullcontext()
        with all_or_none, contextlib.closing(pool):
            for chunk_rows, chunk_inputs in zip(chunks, pool.read(chunks), strict=True):
                chunk_embeddings.append(embed(forward, chunk_inputs, device))
                if size == 1:
                    check()
                advance(unit, len(chunk_rows), len(rank_rows))
        if processes:
            by_rank = processes.everyones(chunk_embeddings)
            chunk_embeddings = list(itertools.chain.from_iterable(by_rank))
        embeddings = {}
        for head in HEADS:
            embeddings[head] = np.concatenate([chunk[head] for chunk in chunk_embeddings])
        return embeddings

    was_training = student.training
    student.eval()
    try:
        image = encode(inputs.images, student.encode_image, image_rows, "images")
        text = encode(inputs.texts, student.encode_text, text_rows, "captions")
    finally:
        student.train(was_training)
    position = np.full(split.n_images, -1, np.int64)
    position[image_rows] = np.arange(len(image_rows))
    image_of_caption = np.asarray(split.caption_image)[text_rows]
    return SplitEmbeddings(image, text, image_rows, text_rows, position[image_of_caption])


@torch.no_grad()
def embed(
    forward: Callable[[Any], Features],
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
    on_device = each_tensor(inputs, lambda tensor: tensor.to(device, non_blocking=True))
    features = forward(on_device)
    embeddings: Rows = {}
    for head, head_features in zip(HEADS, features, strict=True):
        embeddings[head] = unit_rows(head_features.float().cpu().numpy())
    return embeddings


class _ByRows:
    """A reader of inputs, indexed by an array of rows as a worker pool expects."""

    def __init__(self, read: Callable[[np.ndarray], Inputs]) -> None:
        self._read = read

    def __getitem__(self, rows: np.ndarray) -> Inputs:
        return self._read(rows)
