"""Many images or texts through an encoder: in batches, read ahead by threads, each row checked."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import (
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
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
    EmbeddingsError,
    ImageError,
    SettingError,
    first_line,
)
from cusa.eval.metrics.one_core_threads import one_core_threads
from cusa.eval.metrics.relevance import group_members
from cusa.eval.models.inputs import batches
from cusa.eval.models.protocols import Encoder
from cusa.eval.models.usable_rows import unusable_rows

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
    encode = partial(_encode_image_batch, encoder, batch_size=batch_size)
    path_batches = batches(paths, batch_size)
    rows: Rows = {}
    n_encoded = 0
    with enough_memory(batch_size), closing(in_threads(encode, path_batches, workers)) as results:
        # Before the threads begin: an adapter's encoder is loaded once, not in each of them.
        for batch_rows in chain([encode(next(path_batches))], results):
            batch = paths[n_encoded : n_encoded + batch_size]
            _check(batch_rows, encoder, batch, "image {}".format)
            positions = np.arange(n_encoded, n_encoded + len(batch))
            _put(rows, len(paths), positions, batch_rows)
            n_encoded += len(batch)
            advance(len(batch))
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
    distinct, numbers = _distinct_texts(texts)
    positions_of_text = group_members(numbers, np.arange(len(distinct)))
    rows: Rows = {}
    n_distinct = 0
    with enough_memory(batch_size):
        for batch in batches(distinct, batch_size):
            batch_rows = _encode_text_batch(encoder, batch, batch_size)
            _check(batch_rows, encoder, batch, "text {!r}".format)
            positions = np.concatenate(positions_of_text[n_distinct : n_distinct + len(batch)])
            text_rows = numbers[positions] - n_distinct
            repeated = {head: head_rows[text_rows] for head, head_rows in batch_rows.items()}
            # A text's row goes to all of its positions.
            _put(rows, len(texts), positions, repeated)
            n_distinct += len(batch)
            advance(len(positions))
    return rows


def _distinct_texts(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the distinct texts, and the number of each text among them, int64 ``[n]``."""
    # Long texts first: if memory is too small for any batch, it is for the first.
    distinct = sorted(set(texts), key=lambda text: (-len(text), text))
    number_of_text = {text: number for number, text in enumerate(distinct)}
    numbers = [number_of_text[text] for text in texts]
    return distinct, np.array(numbers, np.int64)


def _encode_image_batch(
    encoder: Encoder,
    paths: Sequence[Path],
    batch_size: int,
) -> Rows:
    """Embed images; where a model fails, one by one, to name the image that it fails on."""
    try:
        return encoder.image_rows(paths, batch_size)
    except (OSError, ValueError) as error:
        # A model may refuse what can be decoded, such as an image one pixel high.
        if not _is_of_an_item(error):
            raise
        if len(paths) == 1:
            raise ImageError(
                f"image {paths[0]} cannot be encoded ({first_line(error)}); replace or remove it",
                path=paths[0],
            ) from None
    return _joined([_encode_image_batch(encoder, [path], batch_size) for path in paths])


def _encode_text_batch(
    encoder: Encoder,
    texts: Sequence[str],
    batch_size: int,
) -> Rows:
    """Embed texts; where a model fails, one by one, to name the text that it fails on."""
    try:
        return encoder.text_rows(texts, batch_size)
    except CusaError as error:
        if not _is_of_an_item(error):
            raise
        if len(texts) == 1:
            raise DataError(
                f"text {texts[0]!r} cannot be encoded ({first_line(error)}); change or remove it",
                name=texts[0],
            ) from None
    return _joined([_encode_text_batch(encoder, [text], batch_size) for text in texts])


def _joined(item_rows: Sequence[Rows]) -> Rows:
    """Concatenate the rows of items, by head."""
    heads = list(item_rows[0])
    return {head: np.concatenate([rows[head] for rows in item_rows]) for head in heads}


def _is_of_an_item(error: Exception) -> bool:
    """Tell whether a model failed on one input only; after a CUDA error it takes no other."""
    if isinstance(error, CusaError):
        return error.location == FORWARD_PASS and "CUDA" not in str(error)
    return True


def _check(
    batch_rows: Rows,
    encoder: Encoder,
    batch: Sequence[object],
    name_of_item: Callable[[object], str],
) -> None:
    """Refuse rows that would rank anyhow; names the item."""
    for head, rows in batch_rows.items():
        assert len(rows) == len(batch)
        positions, problem = unusable_rows(rows)
        if len(positions):
            item_name = name_of_item(batch[positions[0]])
            raise EmbeddingsError(
                f"{encoder.name}: the embedding ({head} head) of {item_name} is {problem}; "
                "remove the item, or check the model's weights",
                name=item_name,
            )


def _put(
    rows: Rows,
    n_rows: int,
    positions: np.ndarray,
    batch_rows: Rows,
) -> None:
    """Write a batch into its positions among all rows, which its first batch allocates."""
    for head, head_rows in batch_rows.items():
        # The dimension is known from the first batch on.
        if head not in rows:
            dim = head_rows.shape[1]
            rows[head] = np.empty((n_rows, dim), np.float32)
        rows[head][positions] = head_rows


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
    work: Callable[[T], R],
    arguments: Iterable[T],
    workers: int,
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
