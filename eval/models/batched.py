"""Encoding of many images or texts: in batches, images in threads that work ahead."""

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

_WAITING_PER_THREAD = 2  # results computed ahead of their use


def encode_images(
    encoder: Encoder,
    paths: Sequence[Path],
    batch_size: int = 32,
    workers: int = 1,
    advance: Callable[[int], None] = lambda n_encoded: None,
) -> Rows:
    """Embed image files, holding only a few batches of images in memory.

    Args:
        encoder: The encoder.
        paths: The image files.
        batch_size: Number of images per batch.
        workers: Number of threads that decode and encode batches; on a CPU, each uses one core.
        advance: Called with the number of images just encoded.

    Returns:
        By head, float32 ``[len(paths), d]``, L2-normalised, in the order of the paths.

    Raises:
        CusaError: If a file cannot be read or encoded, an embedding is not finite or all zeros, or
            a GPU's memory is too small.
        ValueError: If ``batch_size`` or ``workers`` is below 1.
    """
    if not len(paths):
        return encoder.image_rows([])
    encode = partial(_encode_batch, encoder.image_rows, _image_error)
    path_batches = batches(paths, batch_size)
    rows: Rows = {}
    n_encoded = 0
    with enough_memory(batch_size), closing(in_threads(encode, path_batches, workers)) as results:
        # The first batch is encoded before the threads start, so that an adapter's encoder is
        # loaded once and not in each of them.
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
    """Embed texts, equal ones only once, and those of similar length in the same batches.

    Args:
        encoder: The encoder.
        texts: The texts.
        batch_size: Number of texts per batch.
        advance: Called with the number of texts just encoded.

    Returns:
        By head, float32 ``[len(texts), d]``, L2-normalised, in the order of the texts.

    Raises:
        CusaError: If a text is blank, an embedding is not finite or all zeros, or a GPU's memory is
            too small.
        ValueError: If ``batch_size`` is below 1.
    """
    if not len(texts):
        return encoder.text_rows([])
    # Long texts come first: if memory is too small for any batch, it fails at once.
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
    """Embed items; if the model fails, embed them one by one to name the item at fault."""
    try:
        return encode(items, len(items))
    except (OSError, ValueError) as error:
        # A model may refuse inputs that could be decoded, such as an image one pixel high.
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
    """Tell whether an error is due to one input; after a CUDA error, all others fail, too."""
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
    """Write a batch's rows at ``start``, allocating all rows with the first batch; count them."""
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
    """Turn a GPU's lack of memory into an error that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise SettingError(
            f"not enough GPU memory for batches of {batch_size}; use smaller batches",
            name="batch_size",
        ) from None


def in_threads(
    work: Callable[[T], R], arguments: Iterable[T], workers: int
) -> Generator[R, None, None]:
    """Yield a function's results in order, while threads compute a few of them ahead.

    Args:
        work: The function, called in a thread; on a CPU, torch computes on one core in it.
        arguments: The argument of each call, consumed as threads need them.
        workers: Number of threads.
    """
    # load_image silences these, too. But warning filters belong to the process, and one thread
    # would undo those of another.
    with warnings.catch_warnings(), one_core_threads(workers) as pool:
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # Results are held in memory, so only a few are computed ahead.
        waiting: deque[Future[R]] = deque()
        for argument in arguments:
            waiting.append(pool.submit(work, argument))
            if len(waiting) > _WAITING_PER_THREAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
