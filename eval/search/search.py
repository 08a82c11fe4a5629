"""Search in an index of images or texts, by a text or an image, and the page of the hits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from cusa.data.embeddings import Head
from cusa.data.errors import CusaError, DataError, RunError
from cusa.data.image_folder import is_image_name
from cusa.data.images import load_image
from cusa.eval.models.student import StudentEncoder
from cusa.eval.report.gallery import Item
from cusa.eval.report.page import write_page
from cusa.eval.search.index_folder import IndexSummary, Modality
from cusa.eval.search.search_index import NO_HIT, SearchIndex


@dataclass(frozen=True)
class Hit:
    """An item that a search returns.

    Attributes:
        item: The image, with its path as the text, or the text.
        rank: Its rank, 1 being the nearest.
        similarity: Its cosine similarity to the query.
        is_query: Whether it is the query itself: the same file, or the same text.
    """

    item: Item
    rank: int
    similarity: float
    is_query: bool


@dataclass(frozen=True)
class Answer:
    """The answer to a query.

    Attributes:
        query: The query.
        head: The head whose embeddings were compared.
        hits: Hits, nearest first.
        index: Summary of the index.
        n_unnamed: Number of hits left out because their lines in ``items.jsonl`` are damaged.
    """

    query: Item
    head: Head
    hits: tuple[Hit, ...]
    index: IndexSummary
    n_unnamed: int = 0


def answer(
    student: StudentEncoder,
    index: SearchIndex,
    query: str,
    n_hits: int = 10,
    student_name: str = "the student given",
) -> Answer:
    """Search an index for an image file or a text.

    Args:
        student: The student that the index was built with.
        index: The index.
        query: The path of an image, if there is such a file; else a text.
        n_hits: Number of hits. If the query itself is in the index, it counts, and is marked.
        student_name: Name of the student in errors.

    Raises:
        CusaError: If the student's weights are not those that the index was built with, the query
            cannot be read or is empty, or the index is damaged.
        ValueError: If ``n_hits`` is below 1.
    """
    _check_weights(student, index, student_name)
    query_item, image = _read_query(query)
    head = index.head_for(query_item.kind)
    # One pass computes both heads; the modality of the items decides which one is compared.
    rows = student.text_rows([query_item.text]) if image is None else student.image_rows([image])
    similarities, positions = index.search(rows[head], head, n_hits)
    hits: list[Hit] = []
    n_unnamed = 0
    ranked = zip(positions[0].tolist(), similarities[0].tolist(), strict=True)
    for rank, (position, similarity) in enumerate(ranked, 1):
        if position == NO_HIT:
            continue
        text = index.item(position)
        if text is None:
            n_unnamed += 1
        else:
            item = _item(index.summary.modality, text)
            hits.append(Hit(item, rank, similarity, _is_same(item, query_item)))
    return Answer(query_item, head, tuple(hits), index.summary, n_unnamed)


def _check_weights(student: StudentEncoder, index: SearchIndex, student_name: str) -> None:
    """Refuse a student whose embeddings cannot be compared with those of an index."""
    index_sha256 = index.summary.weights_sha256
    student_sha256 = student.weights_sha256
    if index_sha256 != student_sha256:
        raise RunError(
            f"the index {index.folder} was built with other weights ({index_sha256[:12]}, from "
            f"{index.summary.student}) than those of {student_name} ({student_sha256[:12]}); use "
            "that student, or build the index again",
            path=index.folder,
            location="weights_sha256",
            name=student_name,
        )


def _read_query(query: str) -> tuple[Item, Image.Image | None]:
    """Return the query as an item, and its image if it is one."""
    if os.path.isfile(query):  # takes any text, unlike Path.is_file
        try:
            image = load_image(Path(query))
        except CusaError as error:
            raise DataError(
                f"the query is the name of a file, which must be an image: {error}",
                path=Path(query),
                name=query,
            ) from None
        return _item("image", os.path.abspath(query)), image
    # Otherwise, a mistyped path of an image would be taken as a text.
    if is_image_name(query):
        raise DataError(
            f"the query looks like an image's path, but {query} does not exist; correct the path, "
            "or add words to make it a text",
            name=query,
        )
    if not query.strip():
        raise DataError("the query is empty; pass a text or the path of an image", name=query)
    return _item("text", query.strip()), None


def _item(modality: Modality, text: str) -> Item:
    image_path = Path(text) if modality == "image" else None
    return Item(modality, text, image_path)


def _is_same(item: Item, query: Item) -> bool:
    if item.image_path is None or query.image_path is None:
        return item.kind == query.kind and item.text == query.text
    # A link or another path to the same file is the same image; a copy is not.
    try:
        return item.image_path.samefile(query.image_path)
    except OSError:  # the item's file is no longer there
        return False


def write_contact_sheet(path: Path, answer: Answer) -> int:
    """Write an answer as a small HTML page with its pictures embedded.

    Args:
        path: The HTML file, which is written atomically.
        answer: The answer.

    Returns:
        The number of images that can no longer be read, and are replaced by their names.
    """
    items = [answer.query, *(hit.item for hit in answer.hits)]
    image_paths = [item.image_path for item in items if item.image_path is not None]
    shown = partial(_folder_and_name, Path(answer.index.source))
    return write_page(path, "search.html.jinja", image_paths, a=answer, shown=shown)


def _folder_and_name(source: Path, path: Path) -> tuple[str, str]:
    """Return folder and name of an image, relative to the index's source if it lies below it."""
    if path.is_relative_to(source):
        path = path.relative_to(source)
    folder = "" if path.parent == Path() else f"{path.parent}/"
    return folder, path.name
