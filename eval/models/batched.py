"""Many images or texts through an encoder: threads that read ahead, each text once, rows that are checked."""

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
from cusa.data.errors import FORWARD_PASS, CusaError, DataError, ImageError, first_line
from cusa.eval.metrics.one_core_threads import one_core_threads
from cusa.eval.models.any_model import Encoder
from cusa.eval.models.inputs import batches

T = TypeVar("T")
R = TypeVar("R")


def encode_images(
    encoder: Encoder,
    paths: Sequence[Path],
    batch_size: int = 32,
    workers: int = 1,
    advance: Callable[[int], None] = lambda done: None,
) -> Rows:
    """Embed image files; besides the rows, a few batches are held.

    Args:
        encoder: The encoder.
        paths: The files.
        batch_size: Images at a time, per thread.
        workers: Threads that decode and encode; on a CPU, each computes on one core.
        advance: Told how many more are done.

    Returns:
        By head, float32 ``[len(paths), d]``, L2-normalised, in the order of the paths.

    Raises:
        CusaError: If a file cannot be read or encoded, an embedding is not finite or zero, or a GPU's memory is too
            small.
        ValueError: If ``batch_size`` or ``workers`` is below 1.
    """
    if not len(paths):
        return encoder.image_rows([])
    work = partial(_image_rows, encoder, batch_size=batch_size)
    todo = batches(paths, batch_size)
    rows: Rows = {}
    done = 0
    with enough_memory(batch_size), closing(in_threads(work, todo, workers)) as others:
        # The first batch before the threads begin: an adapter's encoder is loaded once, not in each of them.
        for batch_rows in chain([work(next(todo))], others):
            batch = paths[done : done + batch_size]
            _check(batch_rows, [f"image {path}" for path in batch], encoder)
            _put(rows, len(paths), np.arange(done, done + len(batch)), batch_rows)
            done += len(batch)
            advance(len(batch))
    return rows


def encode_texts(
    encoder: Encoder,
    texts: Sequence[str],
    batch_size: int = 256,
    advance: Callable[[int], None] = lambda done: None,
) -> Rows:
    """Embed texts; those that are equal once, and those of like length together.

    Args:
        encoder: The encoder.
        texts: The texts.
        batch_size: Texts at a time.
        advance: Told how many more are done.

    Returns:
        By head, float32 ``[len(texts), d]``, L2-normalised, in the order of the texts.

    Raises:
        CusaError: If a text is blank, an embedding is not finite or zero, or a GPU's memory is too small.
        ValueError: If ``batch_size`` is below 1.
    """
    if not len(texts):
        return encoder.text_rows([])
    distinct = sorted(
        set(texts), key=lambda text: (-len(text), text)
    )  # what needs most memory first
    number = {text: n for n, text in enumerate(distinct)}
    numbers = np.fromiter((number[text] for text in texts), np.int64, len(texts))
    order = np.argsort(
        numbers, kind="stable"
    )  # places of the first distinct text, of the second, ...
    bounds = np.searchsorted(numbers[order], np.arange(len(distinct) + 1))
    rows: Rows = {}
    done = 0
    with enough_memory(batch_size):
        for batch in batches(distinct, batch_size):
            batch_rows = _text_rows(encoder, batch, batch_size)
            _check(batch_rows, [f"text {text!r}" for text in batch], encoder)
            places = order[bounds[done] : bounds[done + len(batch)]]
            in_batch = numbers[places] - done
            repeated = {head: head_rows[in_batch] for head, head_rows in batch_rows.items()}
            _put(rows, len(texts), places, repeated)
            done += len(batch)
            advance(len(places))
    return rows


def _image_rows(encoder: Encoder, paths: Sequence[Path], batch_size: int) -> Rows:
    try:
        return encoder.image_rows(paths, batch_size)
    except (
        OSError,
        ValueError,
    ) as error:  # a model may refuse what can be decoded, such as an image one pixel high
        if not _is_of_an_item(error):
            raise
        if len(paths) == 1:
            reason = first_line(error)
            message = f"image {paths[0]} cannot be encoded ({reason}); replace or remove it"
            raise ImageError(message, path=paths[0]) from None
        parts = [_image_rows(encoder, [path], batch_size) for path in paths]
        return {head: np.concatenate([part[head] for part in parts]) for head in parts[0]}


def _text_rows(encoder: Encoder, texts: Sequence[str], batch_size: int) -> Rows:
    try:
        return encoder.text_rows(texts, batch_size)
    except CusaError as error:
        if not _is_of_an_item(error):
            raise
        if len(texts) == 1:
            reason = first_line(error)
            message = f"text {texts[0]!r} cannot be encoded ({reason}); change or remove it"
            raise DataError(message, name=texts[0]) from None
        parts = [_text_rows(encoder, [text], batch_size) for text in texts]
        return {head: np.concatenate([part[head] for part in parts]) for head in parts[0]}


def _is_of_an_item(error: Exception) -> bool:
    """Whether a model failed on an input and may take others; after a CUDA error it takes none."""
    if isinstance(error, CusaError):
        return error.location == FORWARD_PASS and "CUDA" not in str(error)
    return True


def _check(batch_rows: Rows, names: Sequence[str], encoder: Encoder) -> None:
    """Refuse rows that would rank anyhow: NaN compares as false, and zeros are as near to all."""
    for head, rows in batch_rows.items():
        assert len(rows) == len(names)
        finite, some = np.isfinite(rows).all(axis=1), rows.any(axis=1)
        for wrong, what in ((~finite, "not finite"), (~some, "all zeros")):
            if wrong.any():
                name = names[int(np.argmax(wrong))]
                raise CusaError(
                    f"{encoder.name}: the embedding ({head} head) of {name} is {what}; remove the item, or check the "
                    "model's weights"
                )


def _put(rows: Rows, n: int, places: np.ndarray, batch_rows: Rows) -> None:
    for head, head_rows in batch_rows.items():
        if head not in rows:
            rows[head] = np.empty((n, head_rows.shape[1]), np.float32)
        rows[head][places] = head_rows


@contextmanager
def enough_memory(batch_size: int) -> Iterator[None]:
    """Say what to do where a GPU's memory is too small for batches of this size."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise CusaError(
            f"not enough GPU memory for batches of {batch_size}; use smaller ones"
        ) from None


def in_threads(work: Callable[[T], R], todo: Iterable[T], workers: int) -> Generator[R, None, None]:
    """What threads make of all that is to do, in order; two per thread wait for being taken, and no more are begun.

    Args:
        work: Done in a thread; on a CPU, it computes on one core.
        todo: Its arguments.
        workers: Threads.
    """
    # load_image silences these, too, but warnings' filters belong to the process: one thread would undo another's.
    with warnings.catch_warnings(), one_core_threads(workers) as pool:
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        waiting: deque[Future[R]] = deque()
        for one in todo:
            waiting.append(pool.submit(work, one))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
