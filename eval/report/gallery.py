"""Queries with their top hits, right and wrong marked: what the report shows in pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import faiss
import numpy as np

from cusa.data.embeddings import Head, SplitEmbeddings
from cusa.data.records import SplitView, csr
from cusa.eval.metrics.ranks import best_ranks
from cusa.eval.metrics.relevance import Relevance, Task, relevance_of

TOP = 5
Mark = Literal["right", "true, but not labelled", "wrong", "no label"]


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
    """A retrieved item.

    Attributes:
        item: The item.
        similarity: Its cosine similarity to the query.
        correct: Whether it is relevant by the data set's labels; ``None`` where these know no answer to the query.
        is_true: Whether image and caption belong together by the data set's own truth, whatever its
            labels say; ``None`` where it knows none.
    """

    item: Item
    similarity: float
    correct: bool | None
    is_true: bool | None = None

    @property
    def mark(self) -> Mark:
        """What is said of it: a hit that the labels call wrong and the truth calls right is neither."""
        if self.correct is None:
            return "no label"
        if self.correct:
            return "right"
        return "true, but not labelled" if self.is_true else "wrong"


@dataclass(frozen=True)
class GalleryQuery:
    """A query with its top hits.

    Attributes:
        task: What is asked for by what.
        head: The head that answers.
        query: The query.
        hits: The most similar candidates, best first, at most ``TOP``.
        rank: Rank of the best relevant candidate, 0 being first; ``None`` where the labels know no answer.
        answer: That candidate; ``None`` as above.
    """

    task: Task
    head: Head
    query: Item
    hits: tuple[Hit, ...]
    rank: int | None
    answer: Hit | None


def make_gallery(
    embeddings: SplitEmbeddings,
    split: SplitView,
    image_root: Path,
    head_of: dict[Task, Head],
    per_task: int,
    seed: int,
) -> tuple[GalleryQuery, ...]:
    """Random queries of each task; the same for every model of a split and seed.

    Queries are drawn from those with an answer. Where no query of a task has one, as among images without labels, they
    are drawn from all, and their hits are neither right nor wrong.

    Args:
        embeddings: The model's embeddings.
        split: The split.
        image_root: Folder of the images.
        head_of: Tasks to show, and the head that answers each.
        per_task: Queries per task.
        seed: Seed of the choice.
    """
    shown: list[GalleryQuery] = []
    for number, (task, head) in enumerate(head_of.items()):
        relevance = known_relevance(task, embeddings, split)
        counts = np.diff(relevance.indptr)
        drawable = np.flatnonzero(counts) if counts.any() else np.arange(len(counts))
        rng = np.random.default_rng([seed, number])
        picked = np.sort(rng.choice(drawable, min(per_task, len(drawable)), replace=False))
        if len(picked):
            shown += answer_queries(head, picked, relevance, embeddings, split, image_root)
    return tuple(shown)


def known_relevance(task: Task, embeddings: SplitEmbeddings, split: SplitView) -> Relevance:
    """Relevance by the data set's labels; among images without labels, none for any query."""
    if task == "i2i" and split.truth is None:
        n = len(embeddings.image_rows)
        return Relevance(task, np.zeros(n + 1, np.int64), np.zeros(0, np.int64), np.arange(n))
    return relevance_of(task, embeddings, split)


def answer_queries(
    head: Head,
    picked: np.ndarray,
    relevance: Relevance,
    embeddings: SplitEmbeddings,
    split: SplitView,
    image_root: Path,
) -> Iterator[GalleryQuery]:
    """Queries with their top hits and their best right answer.

    Args:
        head: The head that answers.
        picked: int64 ``[n]``, n at least 1: positions of the queries.
        relevance: Relevant candidates of all queries of the task.
        embeddings: The model's embeddings.
        split: The split.
        image_root: Folder of the images.
    """
    task = relevance.task
    queries, candidates = relevance.sides(embeddings, head)
    relevant = [relevance.indices[relevance.indptr[q] : relevance.indptr[q + 1]] for q in picked]
    exclude = None if relevance.exclude is None else relevance.exclude[picked]
    ranks = best_ranks(queries[picked], candidates, *csr(relevant), exclude)
    # One more than is shown: the query may find itself.
    similarities, found = faiss.knn(
        queries[picked], candidates, TOP + 1, metric=faiss.METRIC_INNER_PRODUCT
    )
    for n, query in enumerate(picked.tolist()):
        own = -1 if exclude is None else int(exclude[n])
        known = len(relevant[n]) > 0
        hits = []
        for candidate, similarity in zip(found[n].tolist(), similarities[n].tolist(), strict=True):
            if candidate in (-1, own):  # -1: there are fewer candidates than asked for
                continue
            item = shown_item(task[2], candidate, embeddings, split, image_root)
            correct = candidate in relevant[n] if known else None
            hits.append(
                Hit(
                    item,
                    similarity,
                    correct,
                    belongs_together(task, query, candidate, embeddings, split),
                )
            )
        rank, answer = None, None
        if known:
            right = candidates[relevant[n]] @ queries[query]
            best = int(relevant[n][right.argmax()])
            rank = int(ranks[n])
            answer = Hit(
                shown_item(task[2], best, embeddings, split, image_root), float(right.max()), True
            )
        asked = shown_item(task[0], query, embeddings, split, image_root)
        yield GalleryQuery(task, head, asked, tuple(hits[:TOP]), rank, answer)


def belongs_together(
    task: Task, query: int, candidate: int, embeddings: SplitEmbeddings, split: SplitView
) -> bool | None:
    """Whether a caption is true of an image by the data set; ``None`` where it does not know.

    Args:
        task: Across modalities; within one, the truth says nothing beyond the labels.
        query: Position of the query among the embeddings.
        candidate: Position of the candidate.
        embeddings: The model's embeddings.
        split: The split.
    """
    if split.truth is None or task not in ("i2t", "t2i"):
        return None
    image, text = (query, candidate) if task == "i2t" else (candidate, query)
    return is_true(split, int(embeddings.text_rows[text]), int(embeddings.image_rows[image]))


def is_true(split: SplitView, caption_row: int, image_row: int) -> bool | None:
    """Whether a caption is true of an image; ``None`` where the data set does not know.

    Args:
        split: The split.
        caption_row: The caption's row of the split.
        image_row: The image's.
    """
    truth = split.truth
    if truth is None:
        return None
    return image_row in truth.indices[truth.indptr[caption_row] : truth.indptr[caption_row + 1]]


def shown_item(
    letter: str, position: int, embeddings: SplitEmbeddings, split: SplitView, image_root: Path
) -> Item:
    """The image (``"i"``) or caption (``"t"``) of an embedding."""
    if letter == "i":
        row = int(embeddings.image_rows[position])
        return Item("image", split.image_ids[row], image_root / split.image_paths[row])
    return Item("text", split.captions[int(embeddings.text_rows[position])], None)
