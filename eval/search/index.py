"""Building an index of images or texts that a trained student embeds."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import faiss
import numpy as np
from PIL import Image

from cusa.data.embeddings import Head, Rows
from cusa.data.errors import CusaError, DataError, EmbeddingsError
from cusa.data.images import load_image
from cusa.eval.models.batched import enough_memory, in_threads
from cusa.eval.models.inputs import batches
from cusa.eval.models.student import StudentEncoder
from cusa.eval.search.approximate import make_index, recall_of_exact
from cusa.eval.search.index_folder import (
    IndexSummary,
    Kind,
    Skipped,
    check_replaceable,
    write_index,
)
from cusa.eval.search.sources import read_source

_MOST_PIXELS = 64_000_000  # most decoded pixels per thread; batches of large photographs are split
# How an approximate index is compared with the exact one.
_N_TEST_QUERIES = 200
_N_COMPARED_HITS = 10

Encode = Callable[[list[Any]], Rows]


@dataclass(frozen=True)
class IndexOptions:
    """Options of an index.

    Attributes:
        kind: ``"flat"`` for exact search; ``"hnsw"`` or ``"ivf"`` for approximate search, in
            galleries of millions.
        batch_size: Number of items per batch.
        workers: Number of threads that decode and encode images; on a CPU, each uses one core.

    Raises:
        ValueError: If an option is out of range.
    """

    kind: Kind = "flat"
    batch_size: int = 32
    workers: int = 1

    def __post_init__(self) -> None:
        is_legal_kind = self.kind in get_args(Kind)
        if not is_legal_kind or self.batch_size < 1 or self.workers < 1:
            raise ValueError(
                f"kind must be flat, hnsw or ivf, batch_size and workers at least 1; got {self}"
            )


def build_index(
    student: StudentEncoder,
    student_path: Path,
    source: Path,
    out_folder: Path,
    options: IndexOptions = IndexOptions(),
    advance: Callable[[int, int], None] = lambda n_done, n_items: None,
) -> IndexSummary:
    """Embed all images below a folder, or all lines of a text file, and write their index.

    Args:
        student: The student, loaded from ``student_path``.
        student_path: Folder of the student, or its name on the hub; a search will load it from
            there.
        source: A folder of images, or a ``.txt`` file with a text per line.
        out_folder: Folder of the index; an index that is there is replaced once the new one is
            complete.
        options: Kind of the index, and how to compute it.
        advance: Called with the number of items done, and the number of all items.

    Raises:
        CusaError: If no item can be read, ``out_folder`` holds anything but an index, or a GPU's
            memory is too small.
    """
    out_folder = Path(os.path.realpath(out_folder))  # replace the target of a link, not the link
    check_replaceable(out_folder)
    modality, items, blank_lines = read_source(source)
    # Nothing is written before everything is embedded, so that an old index stays until then.
    encode = _encode_texts if modality == "text" else _encode_images
    rows = _IndexRows(student.uni_head)
    with enough_memory(options.batch_size), closing(encode(student, items, options)) as results:
        for embedded in results:
            rows.add(embedded)
            advance(len(rows.items) + len(rows.skipped), len(items))
    rows.refuse_if_empty(source)
    summary = IndexSummary(
        modality=modality,
        kind=options.kind,
        dim=rows.indexes["cross"].d,
        count=len(rows.items),
        uni_head=student.uni_head,
        student=str(student_path.absolute() if student_path.exists() else student_path),
        weights_sha256=student.weights_sha256,
        source=str(source.absolute()),
        skipped=tuple(rows.skipped),
        blank_lines=blank_lines,
        recall_of_exact=rows.make_approximate(options.kind),
    )
    return write_index(out_folder, summary, rows.items, rows.indexes)


@dataclass(frozen=True)
class _Embedded:
    """Items with their rows by head; or items that cannot be embedded, with the reason."""

    items: tuple[str, ...]
    rows: Rows
    reason: str | None = None


class _IndexRows:
    """The items so far: skipped ones, and an exact index of the others for each head in use."""

    def __init__(self, uni_head: Head) -> None:
        # A student whose uni head was not trained uses its cross head for both.
        self._heads: tuple[Head, ...] = tuple(dict.fromkeys(("cross", uni_head)))
        self.items: list[str] = []
        self.skipped: list[Skipped] = []
        self.indexes: dict[Head, Any] = {}

    def add(self, embedded: _Embedded) -> None:
        """Add items with their rows, or as skipped.

        Raises:
            EmbeddingsError: If a row is not finite.
        """
        if embedded.reason is not None:
            self.skipped += [Skipped(item, embedded.reason) for item in embedded.items]
            return
        for head in self._heads:
            rows = embedded.rows[head]
            # NaN compares as false, so that no search would find the item.
            if not np.isfinite(rows).all():
                raise EmbeddingsError(
                    f"the student's {head} head returns NaN or infinity for {embedded.items[0]!r} "
                    "or another item of its batch; check the student's weights",
                    name=head,
                )
            if head not in self.indexes:
                self.indexes[head] = faiss.IndexFlatIP(rows.shape[1])
            self.indexes[head].add(rows)
        self.items += embedded.items

    def refuse_if_empty(self, source: Path) -> None:
        """Refuse a source none of whose items could be embedded."""
        if not self.items:
            raise DataError(
                f"none of the {len(self.skipped)} items of {source} can be embedded, the first "
                f"because: {self.skipped[0].reason}",
                path=source,
            )

    def make_approximate(self, kind: Kind) -> float | None:
        """Replace the exact indexes by approximate ones, unless the kind is exact.

        Returns:
            Percentage of the exact hits that they find, for the head where it is lowest; ``None``
            if the kind is exact.
        """
        if kind == "flat":
            return None
        recalls: list[float] = []
        for head, exact_index in self.indexes.items():
            rows = exact_index.reconstruct_n(0, exact_index.ntotal)
            # The items themselves serve as queries, so that no other data are needed.
            shuffled = np.random.default_rng(0).permutation(len(rows))
            queries = rows[shuffled[:_N_TEST_QUERIES]]
            self.indexes[head] = make_index(rows, kind)
            _, hits = self.indexes[head].search(queries, _N_COMPARED_HITS)
            _, exact_hits = exact_index.search(queries, _N_COMPARED_HITS)
            recall = recall_of_exact(hits, exact_hits)
            if recall is not None:
                recalls.append(recall)
        return min(recalls, default=None)


def _encode_texts(
    student: StudentEncoder, texts: list[str], options: IndexOptions
) -> Generator[_Embedded, None, None]:
    """Embed texts in order, in this thread, since tokenisers are not thread-safe."""
    encode = partial(student.text_rows, batch_size=options.batch_size)
    # An error that is not due to a text is raised here.
    encode(["a"])
    for batch in batches(texts, options.batch_size):
        yield from _encode_batch(encode, batch, batch)


def _encode_images(
    student: StudentEncoder, paths: list[str], options: IndexOptions
) -> Generator[_Embedded, None, None]:
    """Embed images in order, in threads."""
    encode = partial(student.image_rows, batch_size=options.batch_size)
    # An error that is not due to an image is raised here; and an adapter's encoder is loaded once,
    # not in each thread.
    encode([Image.new("RGB", (64, 64))])
    work = partial(_decode_and_encode, encode)
    path_batches = batches(paths, options.batch_size)
    with closing(in_threads(work, path_batches, options.workers)) as results:
        for batch_results in results:
            yield from batch_results


def _decode_and_encode(encode: Encode, paths: Iterable[str]) -> list[_Embedded]:
    """Decode and embed a batch of images in a thread, a limited number of pixels at a time."""
    results: list[_Embedded] = []
    images: dict[str, Image.Image] = {}
    n_pixels = 0
    for path in paths:
        try:
            image = load_image(Path(path))
        except CusaError as error:
            results.append(_Embedded((path,), {}, str(error)))
            continue
        images[path] = image
        n_pixels += image.width * image.height
        if n_pixels > _MOST_PIXELS:
            results += _encode_batch(encode, list(images), list(images.values()))
            images.clear()
            n_pixels = 0
    results += _encode_batch(encode, list(images), list(images.values()))
    return results


def _encode_batch(encode: Encode, items: Sequence[str], inputs: list[Any]) -> Iterator[_Embedded]:
    """Embed a batch; if that fails, embed its items one by one, to skip only those at fault."""
    if not items:
        return
    try:
        rows = encode(inputs)
    except (OSError, ValueError) as error:  # a CusaError is a ValueError
        # Such as a text of which normalising leaves nothing, or an image one pixel high.
        if len(items) == 1:
            yield _Embedded(tuple(items), {}, str(error))
            return
        for item, item_input in zip(items, inputs, strict=True):
            yield from _encode_batch(encode, [item], [item_input])
    else:
        yield _Embedded(tuple(items), rows)
