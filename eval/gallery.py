"""Queries with their top hits, right and wrong marked: what the report shows in pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import faiss
import numpy as np

from cusa.data.records import csr
from cusa.data.store import Split
from cusa.eval.relevance import Relevance, Task, relevance_of
from cusa.train.encode import SplitEmbeddings
from cusa.train.ranks import best_ranks
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
    for number, (task, head) in enumerate(head_of.items()):
        relevance = relevance_of(task, embeddings, split)
        with_answer = np.flatnonzero(np.diff(relevance.indptr))
        rng = np.random.default_rng([seed, number])
        picked = np.sort(rng.choice(with_answer, min(per_task, len(with_answer)), replace=False))
        if len(picked):
            shown += _answers(task, head, picked, relevance, embeddings, split, image_root)
    return tuple(shown)


def _answers(
    task: Task,
    head: Head,
    picked: np.ndarray,
    relevance: Relevance,
    embeddings: SplitEmbeddings,
    split: Split,
    image_root: Path,
) -> Iterator[GalleryQuery]:
    queries, candidates = relevance.sides(embeddings, head)
    relevant = [relevance.indices[relevance.indptr[q] : relevance.indptr[q + 1]] for q in picked]
    exclude = None if relevance.exclude is None else relevance.exclude[picked]
    ranks = best_ranks(queries[picked], candidates, *csr(relevant), exclude)
    # One more than is shown: the query may find itself.
    similarities, found = faiss.knn(queries[picked], candidates, TOP + 1, metric=faiss.METRIC_INNER_PRODUCT)
    for n, query in enumerate(picked.tolist()):
        own = -1 if exclude is None else int(exclude[n])
        hits = [
            Hit(_item(task[2], c, embeddings, split, image_root), similarity, c in relevant[n])
            for c, similarity in zip(found[n].tolist(), similarities[n].tolist(), strict=True)
            if c not in (-1, own)  # -1: there are fewer candidates than asked for
        ]
        shown = _item(task[0], query, embeddings, split, image_root)
        yield GalleryQuery(task, head, shown, tuple(hits[:TOP]), int(ranks[n]))


def _item(letter: str, position: int, embeddings: SplitEmbeddings, split: Split, image_root: Path) -> Item:
    if letter == "i":
        row = int(embeddings.image_rows[position])
        return Item("image", split.image_ids[row], image_root / split.image_paths[row])
    return Item("text", split.captions[int(embeddings.text_rows[position])], None)
