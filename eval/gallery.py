"""Queries with their top hits, right and wrong marked: what the report shows in pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cusa.data.store import Split
from cusa.eval.relevance import Relevance, Task, relevance_of
from cusa.train.encode import SplitEmbeddings
from cusa.train.student import Head

TOP = 5


@dataclass(frozen=True)
class Item:
    """An image or a caption, as shown.

    Attributes:
        kind: ``"image"`` or ``"text"``.
        text: The caption, or the image's id.
        image_path: The image file; ``None`` for a caption.
    """

    kind: Literal["image", "text"]
    text: str
    image_path: Path | None


@dataclass(frozen=True)
class Hit:
    """A retrieved item: its cosine similarity, and whether it is relevant by the data set's labels."""

    item: Item
    similarity: float
    correct: bool


@dataclass(frozen=True)
class GalleryQuery:
    """A query with its top hits, best first; ``rank`` is that of the best relevant candidate, 0 being first."""

    task: Task
    head: Head
    query: Item
    hits: tuple[Hit, ...]
    rank: int


def make_gallery(
    embeddings: SplitEmbeddings, split: Split, image_root: Path, head_of: dict[Task, Head], per_task: int, seed: int
) -> tuple[GalleryQuery, ...]:
    """Random queries of each task; the same for every run of a split and seed.

    Args:
        embeddings: The student's embeddings.
        split: The split.
        image_root: Folder of the images.
        head_of: Tasks to show, and the head that answers each.
        per_task: Queries per task.
        seed: Seed of the choice.
    """
    shown: list[GalleryQuery] = []
    for task, head in head_of.items():
        relevance = relevance_of(task, embeddings, split)
        with_answer = np.flatnonzero(np.diff(relevance.indptr))
        rng = np.random.default_rng([seed, len(shown)])
        picked = rng.choice(with_answer, min(per_task, len(with_answer)), replace=False)
        for query in np.sort(picked).tolist():
            shown.append(_answer(task, head, query, relevance, embeddings, split, image_root))
    return tuple(shown)


def _answer(
    task: Task,
    head: Head,
    query: int,
    relevance: Relevance,
    embeddings: SplitEmbeddings,
    split: Split,
    image_root: Path,
) -> GalleryQuery:
    queries, candidates = relevance.sides(embeddings, head)
    scores = candidates @ queries[query]
    if relevance.exclude is not None:
        scores[relevance.exclude[query]] = -np.inf
    relevant = relevance.indices[relevance.indptr[query] : relevance.indptr[query + 1]]
    order = np.argsort(-scores, kind="stable")
    correct = np.isin(order, relevant)
    hits = tuple(
        Hit(_item(task[2], int(c), embeddings, split, image_root), float(scores[c]), bool(good))
        for c, good in zip(order[:TOP], correct[:TOP], strict=True)
    )
    return GalleryQuery(task, head, _item(task[0], query, embeddings, split, image_root), hits, int(np.argmax(correct)))


def _item(letter: str, position: int, embeddings: SplitEmbeddings, split: Split, image_root: Path) -> Item:
    if letter == "i":
        row = int(embeddings.image_rows[position])
        return Item("image", split.image_ids[row], image_root / split.image_paths[row])
    return Item("text", split.captions[int(embeddings.text_rows[position])], None)
