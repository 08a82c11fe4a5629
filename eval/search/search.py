"""Ask an index of images or texts, with a text or an image, and show the answer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from PIL import Image

from cusa.data.embeddings import Head
from cusa.data.errors import CusaError, FileFormatError, RunError, first_line
from cusa.data.image_folder import is_image_name
from cusa.data.images import load_image
from cusa.data.parsing import parse_json
from cusa.eval.models.student import StudentEncoder
from cusa.eval.report.gallery import Item
from cusa.eval.report.page import write_page
from cusa.eval.search.approximate import HNSW_SEARCH
from cusa.eval.search.index import (
    ITEMS,
    IndexSummary,
    Kind,
    Modality,
    file_digest,
    read_card,
)

_CLASSES: dict[Kind, type] = {
    "flat": faiss.IndexFlat,
    "hnsw": faiss.IndexHNSW,
    "ivf": faiss.IndexIVF,
}
_ROW_BYTES = 4  # of each number of a row
_NO_HIT = -1  # position in the place of one, where an approximate index finds fewer


@dataclass(frozen=True)
class Hit:
    """An item found.

    Attributes:
        item: The image, its text being the path, or the text.
        rank: 1 for the nearest.
        similarity: Its cosine similarity to the query.
        is_query: Whether it is the query itself: the same file, or the same text.
    """

    item: Item
    rank: int
    similarity: float
    is_query: bool


@dataclass(frozen=True)
class Answer:
    """A query and what was found, nearest first, by which head.

    ``n_unnamed`` items were found whose line in ``items.jsonl`` is damaged; they are left out.
    """

    query: Item
    head: Head
    hits: tuple[Hit, ...]
    index: IndexSummary
    n_unnamed: int = 0


class SearchIndex:
    """An index, open; embeddings are read when they are first asked for.

    Attributes:
        folder: Where it lies.
        summary: What it is.
    """

    def __init__(self, folder: Path, summary: IndexSummary) -> None:
        self.folder, self.summary = folder, summary
        self._indexes: dict[Head, Any] = {}

    @staticmethod
    def open(folder: Path) -> SearchIndex:
        """Open an index.

        Raises:
            CusaError: If there is none, or it is damaged.
        """
        return SearchIndex(folder, read_card(folder))

    def head_for(self, modality: Modality) -> Head:
        """The head that embeds queries of a modality."""
        return self.summary.uni_head if modality == self.summary.modality else "cross"

    def search(self, query_rows: np.ndarray, head: Head, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest items of each query.

        Args:
            query_rows: float32 ``[n, d]``, L2-normalised, from the same head of the same student.
            head: ``"cross"`` for queries of the other modality; for the items' own, the summary's ``uni_head``.
            k: Items per query; no more than there are.

        Returns:
            Cosine similarities, float32 ``[n, min(k, count)]``, greatest first, and the items' positions, int64, same
            shape; -1 where ``hnsw`` has found fewer.

        Raises:
            CusaError: If the index is damaged.
            ValueError: If the shapes do not fit, ``k`` is below 1, or the index has no such head.
        """
        index, k = (
            self._index(head),
            min(k, self.summary.count),
        )  # the card's numbers hold only if the index has them
        if query_rows.ndim != 2 or query_rows.shape[1] != self.summary.dim or k < 1:
            raise ValueError(
                f"queries are [n, {self.summary.dim}] and k at least 1; got {query_rows.shape}, k = {k}"
            )
        if self.summary.kind == "hnsw":
            index.hnsw.efSearch = max(HNSW_SEARCH, 2 * k)
        try:
            similarities, positions = index.search(np.ascontiguousarray(query_rows, np.float32), k)
        except (
            Exception
        ) as error:  # as in reading: FAISS looks at some of what a file says only now
            raise self._damaged(first_line(error)) from None
        is_hit = positions != _NO_HIT
        if ((positions < _NO_HIT) | (positions >= self.summary.count)).any():
            raise self._damaged("it finds items that it does not have")
        has_all = (
            is_hit.all() or self.summary.kind != "flat"
        )  # an exact search leaves out rows of NaN alone
        if np.isfinite(query_rows).all() and not (
            has_all and np.isfinite(similarities[is_hit]).all()
        ):
            raise self._damaged("rows of it are not finite")
        return similarities, positions

    def item(self, position: int) -> str | None:
        """The absolute path of an image, or a text, by position; ``None`` if its line is damaged.

        Raises:
            RunError: If the file has another number of lines.
        """
        line = self._lines[position].decode(errors="replace")
        try:
            item = parse_json(line, self.folder / ITEMS, position + 1)
        except FileFormatError:
            return None
        return item if isinstance(item, str) else None

    @cached_property
    def _lines(self) -> list[bytes]:
        path = self.folder / ITEMS
        lines = path.read_bytes().removesuffix(b"\n").split(b"\n") if path.is_file() else []
        if len(lines) != self.summary.count:
            raise self._damaged(f"{ITEMS} has {len(lines)} lines of {self.summary.count}")
        return lines

    def _index(self, head: Head) -> Any:
        if head not in ("cross", self.summary.uni_head):
            raise ValueError(
                f"the index {self.folder} has no embeddings of the {head} head; its student trained none"
            )
        if head not in self._indexes:
            self._indexes[head] = self._read_index(f"{head}.faiss")
        return self._indexes[head]

    def _read_index(self, name: str) -> Any:
        path, summary = self.folder / name, self.summary
        if not path.is_file():
            raise self._damaged(f"{name} is missing")
        # FAISS believes its files, and may crash on one that is damaged.
        if name in summary.sha256 and file_digest(path) != summary.sha256[name]:
            raise self._damaged(f"{name} has another checksum")
        if path.stat().st_size < summary.count * summary.dim * _ROW_BYTES:
            raise self._damaged(
                f"{name} is too short for {summary.count:,} rows of dimension {summary.dim}"
            )
        try:
            index = faiss.read_index(str(path))
        except (
            Exception
        ) as error:  # whatever it meets in a file of an earlier version, which has no checksum
            raise self._damaged(first_line(error)) from None
        if (index.d, index.ntotal) != (summary.dim, summary.count):
            raise self._damaged(f"{name} holds {index.ntotal} rows of dimension {index.d}")
        if (
            not isinstance(index, _CLASSES[summary.kind])
            or index.metric_type != faiss.METRIC_INNER_PRODUCT
        ):
            raise self._damaged(
                f"{name} is a {type(index).__name__}, not an index of kind {summary.kind}"
            )
        return index

    def _damaged(self, what: str) -> RunError:
        message = (
            f"the index {self.folder} is damaged ({what}); build it again with cusa-eval index"
        )
        return RunError(message, path=self.folder)


def answer(
    student: StudentEncoder,
    index: SearchIndex,
    query: str,
    k: int = 10,
    student_name: str = "the student given",
) -> Answer:
    """Search an index for an image file or a text.

    Args:
        student: The student that the index was built with.
        index: The index.
        query: An image, if there is a file of that name; else a text.
        k: Hits; the query itself, if it is in the index, is one of them, and marked.
        student_name: What errors call the student.

    Raises:
        CusaError: If the student's weights are others than the index's, or the query cannot be read or is empty.
        ValueError: If ``k`` is below 1.
    """
    built_with, given = index.summary.weights_sha256, student.weights_sha256
    if built_with != given:
        raise CusaError(
            f"the index {index.folder} was built with other weights ({built_with[:12]}, from {index.summary.student}) "
            f"than those of {student_name} ({given[:12]}); use that student, or build the index again"
        )
    item, image = _read_query(query)
    head = index.head_for(item.kind)
    rows = student.text_rows([item.text]) if image is None else student.image_rows([image])
    similarities, positions = index.search(rows[head], head, k)
    hits: list[Hit] = []
    n_unnamed = 0
    ranked = zip(positions[0].tolist(), similarities[0].tolist(), strict=True)
    for rank, (position, similarity) in enumerate(ranked, 1):
        if position == _NO_HIT:
            continue
        name = index.item(position)
        if name is None:
            n_unnamed += 1
            continue
        hit_item = _item(index.summary.modality, name)
        hits.append(Hit(hit_item, rank, similarity, _same(hit_item, item)))
    return Answer(item, head, tuple(hits), index.summary, n_unnamed)


def _read_query(query: str) -> tuple[Item, Image.Image | None]:
    if os.path.isfile(query):  # unlike Path's, it takes any text
        try:
            return _item("image", os.path.abspath(query)), load_image(Path(query))
        except CusaError as error:
            raise CusaError(
                f"the query is the name of a file, and so should be an image: {error}"
            ) from None
    if is_image_name(query):
        raise CusaError(
            f"the query is the name of an image, but {query} does not exist; correct it, or add words"
        )
    if not query.strip():
        raise CusaError("the query is empty; pass a text or the path of an image")
    return _item("text", query.strip()), None


def _item(modality: Modality, text: str) -> Item:
    return Item(modality, text, Path(text) if modality == "image" else None)


def _same(item: Item, query: Item) -> bool:
    if item.image_path is None or query.image_path is None:
        return (item.kind, item.text) == (query.kind, query.text)
    try:
        return item.image_path.samefile(query.image_path)
    except OSError:  # it is gone
        return False


def write_contact_sheet(path: Path, answer: Answer) -> int:
    """Write an answer as a small HTML page that holds its pictures.

    Args:
        path: The page; replaced as a whole.
        answer: The answer.

    Returns:
        How many of its images could not be read any more; their names stand in their places.
    """
    items = [answer.query, *(hit.item for hit in answer.hits)]
    images = [item.image_path for item in items if item.image_path is not None]
    return write_page(
        path,
        "search.html.jinja",
        images,
        a=answer,
        shown=partial(_shown, Path(answer.index.source)),
    )


def _shown(source: Path, path: Path) -> tuple[str, str]:
    """Folder and name of an image, below the index's source if it lies there."""
    if path.is_relative_to(source):
        path = path.relative_to(source)
    return "" if path.parent == Path() else f"{path.parent}/", path.name
