"""Ask an index of images or texts, with a text or an image, and show the answer."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from PIL import Image

from cusa.data.errors import CusaError
from cusa.data.images import load_image
from cusa.eval.approximate import HNSW_SEARCH
from cusa.eval.encoder import StudentEncoder
from cusa.eval.gallery import Item
from cusa.eval.index import ITEMS, IndexSummary, Modality, first_line, is_image_name, read_card
from cusa.eval.page import write_page
from cusa.train.student import Head


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
    """A query and what was found, nearest first, by which head."""

    query: Item
    head: Head
    hits: tuple[Hit, ...]
    index: IndexSummary


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
        if query_rows.ndim != 2 or query_rows.shape[1] != self.summary.dim or k < 1:
            raise ValueError(f"queries are [n, {self.summary.dim}] and k at least 1; got {query_rows.shape}, k = {k}")
        index, k = self._index(head), min(k, self.summary.count)
        if self.summary.kind == "hnsw":
            index.hnsw.efSearch = max(HNSW_SEARCH, 2 * k)
        similarities, positions = index.search(np.ascontiguousarray(query_rows, np.float32), k)
        return similarities, positions

    def item(self, position: int) -> str:
        """The absolute path of an image, or a text, by position."""
        return json.loads(self._lines[position])

    @cached_property
    def _lines(self) -> list[bytes]:
        path = self.folder / ITEMS
        lines = path.read_bytes().splitlines() if path.is_file() else []
        if len(lines) != self.summary.count:
            raise self._damaged(f"{ITEMS} has {len(lines)} lines of {self.summary.count}")
        return lines

    def _index(self, head: Head) -> Any:
        if head not in ("cross", self.summary.uni_head):
            raise ValueError(f"the index {self.folder} has no embeddings of the {head} head; its student trained none")
        if head not in self._indexes:
            try:
                index = faiss.read_index(str(self.folder / f"{head}.faiss"))
            except RuntimeError as error:
                raise self._damaged(first_line(error)) from None
            if (index.d, index.ntotal) != (self.summary.dim, self.summary.count):
                raise self._damaged(f"{head}.faiss holds {index.ntotal} rows of dimension {index.d}")
            self._indexes[head] = index
        return self._indexes[head]

    def _damaged(self, what: str) -> CusaError:
        return CusaError(f"the index {self.folder} is damaged ({what}); build it again with cusa-eval index")


def answer(
    student: StudentEncoder, index: SearchIndex, query: str, k: int = 10, student_name: str = "the student given"
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
    for position, similarity in zip(positions[0].tolist(), similarities[0].tolist(), strict=True):
        if position >= 0:
            found = _item(index.summary.modality, index.item(position))
            hits.append(Hit(found, len(hits) + 1, similarity, _same(found, item)))
    return Answer(item, head, tuple(hits), index.summary)


def _read_query(query: str) -> tuple[Item, Image.Image | None]:
    if os.path.isfile(query):  # unlike Path's, it takes any text
        try:
            return _item("image", os.path.abspath(query)), load_image(Path(query))
        except CusaError as error:
            raise CusaError(f"the query is the name of a file, and so should be an image: {error}") from None
    if is_image_name(query):
        raise CusaError(f"the query is the name of an image, but {query} does not exist; correct it, or add words")
    if not query.strip():
        raise CusaError("the query is empty; pass a text or the path of an image")
    return _item("text", query.strip()), None


def _item(modality: Modality, text: str) -> Item:
    return Item(modality, text, Path(text) if modality == "image" else None)


def _same(found: Item, query: Item) -> bool:
    if found.image_path is None or query.image_path is None:
        return (found.kind, found.text) == (query.kind, query.text)
    try:
        return found.image_path.samefile(query.image_path)
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
    return write_page(path, "search.html.jinja", images, a=answer, shown=partial(_shown, Path(answer.index.source)))


def _shown(source: Path, path: Path) -> tuple[str, str]:
    """Folder and name of an image, below the index's source if it lies there."""
    if path.is_relative_to(source):
        path = path.relative_to(source)
    return "" if path.parent == Path() else f"{path.parent}/", path.name
