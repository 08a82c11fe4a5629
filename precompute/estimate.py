"""Short measurements before a run: whether JPEGs may be halved while decoded, and how long the run would take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from cusa.data.errors import CusaError, ImageError
from cusa.data.images import open_image
from cusa.data.records import Dataset
from cusa.precompute.encoding import Batch
from cusa.precompute.pipeline import PipelineOptions, encoded_batches, encoder_threads, read_image
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.teachers.base import Teacher, stacked

LEAST_COSINE = 0.999
_MARGIN = 3  # a halved JPEG keeps this many times the pixels that it is resized to; see docs/benchmarks.md
_LOOKED_AT, _COMPARED, _TOO_FEW = 256, 16, 8


@dataclass(frozen=True)
class Draft:
    """What the comparison of halved and full decoding found.

    Attributes:
        size: Pixels that both sides of a halved JPEG keep, ``None`` where JPEGs are to be decoded in full.
        cosine: Least cosine between a picture's two embeddings, ``None`` if nothing was compared.
    """

    size: int | None
    cosine: float | None


def choose_draft(teacher: Teacher, dataset: Dataset, device: str, precision: str) -> Draft:
    """Compare a teacher's embeddings of JPEGs decoded in full and halved, on a few large ones of the data set.

    The same data and weights give the same answer.

    Args:
        teacher: An image teacher.
        dataset: The data set.
        device: Where the teacher is.
        precision: What it computes in.

    Returns:
        Halving is chosen only where every cosine is at least 0.999; not where few of the pictures are large enough.
    """
    if teacher.input_size is None:
        return Draft(None, None)
    size = _MARGIN * teacher.input_size
    step = max(1, sum(map(len, dataset.splits.values())) // _LOOKED_AT)
    spread = islice(chain.from_iterable(dataset.splits.values()), 0, None, step)
    paths = (dataset.image_root / record.image_path for record in spread)
    large = list(islice((path for path in paths if _is_halved(path, size)), _COMPARED))
    if len(large) < _TOO_FEW:
        return Draft(None, None)

    def embed(teacher: Teacher) -> np.ndarray:
        pixels = (stacked([read_image(path, teacher)]) for path in large)
        return np.concatenate([teacher.rows(one, device, precision) for one in pixels])

    full, halved = (
        embed(replace(teacher, draft_size=None)),
        embed(replace(teacher, draft_size=size)),
    )
    cosine = float((full * halved).sum(axis=1).min())
    return Draft(size if cosine >= LEAST_COSINE else None, cosine)


def _is_halved(path: Path, size: int) -> bool:
    """Whether an image is a JPEG that decoding would halve."""
    try:
        with open_image(path) as image:
            return image.format == "JPEG" and min(image.size) >= 2 * size
    except ImageError:
        return False  # the run itself will say what is wrong with it


@dataclass(frozen=True)
class Rates:
    """Rows per second.

    Attributes:
        whole: Reading, encoding and all.
        encoding: The teacher alone, on inputs in memory.
    """

    whole: float
    encoding: float


def measure(
    teacher: Teacher, normalizer_name: str, tasks: Sequence[ShardTask], dataset: Dataset, options: PipelineOptions,
    seconds: float,
) -> Rates:  # fmt: skip
    """Run a teacher for a few seconds, writing nothing.

    Args:
        teacher: The teacher.
        normalizer_name: Name of the caption normaliser.
        tasks: Its shards, as many as there are: the first are read.
        dataset: The data set.
        options: How to run.
        seconds: How long, for each of the two rates.

    Raises:
        CusaError: If no item could be read.
    """
    batches: list[Batch] = []
    rows, timed_rows, began = 0, 0, time.perf_counter()
    started, ended = began, began
    with closing(
        encoded_batches(teacher, normalizer_name, iter(tasks), dataset, options)
    ) as encoded:
        for _, batch, _ in encoded:
            ended = time.perf_counter()
            if batch.inputs is not None and len(batches) < 4 * options.encoders:
                batches.append(batch)
            rows += len(batch.rows)
            # The first third is left out, where there is more: workers start, the device warms up.
            if timed_rows or ended > began + seconds / 2:
                timed_rows += len(batch.rows)
            else:
                started = ended
            if ended > began + seconds + seconds / 2:
                break
    if not batches:
        raise CusaError(f"nothing could be read for teacher {teacher.model_id}; check --image-root")
    whole = timed_rows / (ended - started) if ended > started else rows / (ended - began)
    return Rates(whole, _encoding_rate(teacher, batches, options, seconds))


def _encoding_rate(
    teacher: Teacher, batches: Sequence[Batch], options: PipelineOptions, seconds: float
) -> float:
    """Rows per second of a teacher on batches in memory, round and round."""

    def encode(number: int) -> int:
        batch = batches[number % len(batches)]
        assert batch.inputs is not None, "only batches with inputs are kept"
        teacher.rows(batch.inputs, options.device, options.precision)
        return len(batch.rows)

    with encoder_threads(options) as threads:
        for future in [threads.submit(encode, n) for n in range(options.encoders)]:
            future.result()  # warm
        rows, number, began = 0, 0, time.perf_counter()
        while time.perf_counter() < began + seconds:
            rows += sum(threads.map(encode, range(number, number + 2 * options.encoders)))
            number += 2 * options.encoders
        return rows / (time.perf_counter() - began)
