"""Many images or texts through an encoder: in batches, read ahead by threads, each row checked."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from cusa.data.embeddings import Rows
from cusa.data.errors import (
    FORWARD_PASS,
    CusaError,
    DataError,
    ImageError,
    SettingError,
    first_line,
)
from cusa.eval.metrics.one_core_threads import one_core_threads
from cusa.eval.models.inputs import batches
from cusa.eval.models.protocols import Encoder

T = TypeVar("T")
R = TypeVar("R")

_WAITING_PER_THREAD = 2  # results that are computed before they are asked for


def encode_images(
    encoder: Encoder,
    paths: Sequence[Path],
    batch_size: int = 32,
    workers: int = 1,
    advance: Callable[[int], None] = lambda n_encoded: None,
) -> Rows:
    """Embed image files; besides the rows, a few batches are held in memory.

    Args:
        encoder: The encoder.
        paths: The files.
        batch_size: Images at a time, in each thread.
        workers: Threads that decode and encode; on a CPU, each computes on one core.
        advance: Called with the number of images just encoded.

    Returns:
        By head, float32 ``[len(paths), d]``, L2-normalised, in the order of the paths.

    Raises:
        CusaError: If a file cannot be read or encoded, an embedding is not finite or zero, or a
            GPU's memory is too small.
        ValueError: If ``batch_size`` or ``workers`` is below 1.
    """
    if not len(paths):
        return encoder.image_rows([])
    encode = partial(_encode_batch, encoder.image_rows, _image_error)
    path_batches = batches(paths, batch_size)
    rows: Rows = {}
    n_encoded = 0
    with enough_memory(batch_size), closing(in_threads(encode, path_batches, workers)) as results:
        # Before the threads begin: an adapter's encoder is loaded once, not in each of them.
        for batch_rows in chain([encode(next(path_batches))], results):
            n_batch = _put(batch_rows, rows, n_encoded, len(paths))
            n_encoded += n_batch
            advance(n_batch)
    return rows


def encode_texts(
    encoder: Encoder,
    texts: Sequence[str],
    batch_size: int = 256,
    advance: Callable[[int], None] = lambda n_encoded: None,
) -> Rows:
    """Embed texts: equal ones once, and those of like length together.

    Args:
        encoder: The encoder.
        texts: The texts.
        batch_size: Texts at a time.
        advance: Called with the number of texts just encoded.

    Returns:
        By head, float32 ``[len(texts), d]``, L2-normalised, in the order of the texts.

    Raises:
        CusaError: If a text is blank, an embedding is not finite or zero, or a GPU's memory is too
            small.
        ValueError: If ``batch_size`` is below 1.
    """
    if not len(texts):
        return encoder.text_rows([])
    # Long texts first: if memory is too small for any batch, it is for the first.
    distinct = sorted(set(texts), key=lambda text: (-len(text), text))
    number_of_text = {text: number for number, text in enumerate(distinct)}
    numbers = np.array(list(map(number_of_text.__getitem__, texts)))
    n_copies = np.bincount(numbers)
    rows: Rows = {}
    n_encoded = 0
    with enough_memory(batch_size):
        for batch in batches(distinct, batch_size):
            batch_rows = _encode_batch(encoder.text_rows, _text_error, batch)
            n_batch = _put(batch_rows, rows, n_encoded, len(distinct))
            advance(int(n_copies[n_encoded : n_encoded + n_batch].sum()))
            n_encoded += n_batch
    return {head: head_rows[numbers] for head, head_rows in rows.items()}


def _encode_batch(
    encode: Callable[[Sequence[T], int], Rows],
    item_error: Callable[[T, str], CusaError],
    items: Sequence[T],
) -> Rows:
    """Embed items; where a model fails, one by one, to name the item that it fails on."""
    try:
        return encode(items, len(items))
    except (OSError, ValueError) as error:
        # A model may refuse what can be decoded, such as an image one pixel high.
        if not _is_of_an_item(error):
            raise
        if len(items) == 1:
            raise item_error(items[0], first_line(error)) from None
    item_rows = [_encode_batch(encode, item_error, [item]) for item in items]
    rows: Rows = {}
    for head in item_rows[0]:
        rows[head] = np.concatenate([one_row[head] for one_row in item_rows])
    return rows


def _is_of_an_item(error: Exception) -> bool:
    """Tell whether a model failed on one input only; after a CUDA error it takes no other."""
    if isinstance(error, CusaError):
        return error.location == FORWARD_PASS and "CUDA" not in str(error)
    return True


def _image_error(path: Path, problem: str) -> CusaError:
    message = f"image {path} cannot be encoded ({problem}); replace or remove it"
    return ImageError(message, path=path)


def _text_error(text: str, problem: str) -> CusaError:
    message = f"text {text!r} cannot be encoded ({problem}); change or remove it"
    return DataError(message, name=text)


def _put(
    batch_rows: Rows,
    rows: Rows,
    start: int,
    n_rows: int,
) -> int:
    """Write a batch among all rows, which its first batch allocates; returns how many it has."""
    stop = start
    for head, head_rows in batch_rows.items():
        # The dimension is known from the first batch on.
        if head not in rows:
            rows[head] = np.empty((n_rows, head_rows.shape[1]), np.float32)
        stop = start + len(head_rows)
        rows[head][start:stop] = head_rows
    return stop - start


@contextmanager
def enough_memory(batch_size: int) -> Iterator[None]:
    """Say what to do where a GPU's memory is too small for batches of this size."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise SettingError(
            f"not enough GPU memory for batches of {batch_size}; use smaller ones",
            name="batch_size",
        ) from None


def in_threads(
    work: Callable[[T], R], arguments: Iterable[T], workers: int
) -> Generator[R, None, None]:
    """Yield a function's results in order; threads compute a few of them ahead.

    Args:
        work: Function that a thread calls; on a CPU, it computes on one core.
        arguments: Its arguments; taken as they are needed.
        workers: Number of threads.
    """
    # load_image silences these, too, but the filters of warnings belong to the process: one thread
    # would undo another's.
    with warnings.catch_warnings(), one_core_threads(workers) as pool:
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # No more are begun than can be taken soon: their results are held in memory.
        waiting: deque[Future[R]] = deque()
        for argument in arguments:
            waiting.append(pool.submit(work, argument))
            if len(waiting) > _WAITING_PER_THREAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
