"""Queries with their most similar candidates, marked right or wrong, to show in the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import faiss
import numpy as np

from cusa.data.embeddings import Head, SplitEmbeddings
from cusa.data.records import SplitView, csr
from cusa.eval.metrics.ranks import rank_bounds
from cusa.eval.metrics.relevance import Relevance, Task, relevance_of

# Number of hits shown for each query.
HITS_SHOWN = 5
Mark = Literal["right", "true, but not labelled", "wrong", "no label"]


@dataclass(frozen=True)
class Item:
    """An image or a text, as shown on a page.

    Attributes:
        kind: ``"image"`` or ``"text"``.
        text: The text, or the image's id or path.
        image_path: The image file; ``None`` for a text.
    """

    kind: Literal["image", "text"]
    text: str
    image_path: Path | None


@dataclass(frozen=True)
class GalleryHit:
    """A retrieved item.

    Attributes:
        item: The item.
        similarity: Its cosine similarity to the query.
        correct: Whether it is relevant by the data set's labels; ``None`` if these have no answer
            to the query.
        is_true: Whether image and caption belong together by the data set's known truth, whatever
            its labels say; ``None`` if no truth is known.
    """

    item: Item
    similarity: float
    correct: bool | None
    is_true: bool | None = None

    @property
    def mark(self) -> Mark:
        """The verdict in words; a hit that only the known truth calls right has its own."""
        if self.correct is None:
            return "no label"
        if self.correct:
            return "right"
        return "true, but not labelled" if self.is_true else "wrong"


@dataclass(frozen=True)
class GalleryQuery:
    """A query with its most similar candidates.

    Attributes:
        task: Direction of the retrieval.
        head: The head that answers.
        query: The query.
        hits: The most similar candidates, at most ``HITS_SHOWN``, most similar first.
        rank: Rank of the best relevant candidate, 0 being first; ``None`` if the labels have no
            answer.
        answer: That candidate; ``None`` if the labels have no answer.
    """

    task: Task
    head: Head
    query: Item
    hits: tuple[GalleryHit, ...]
    rank: int | None
    answer: GalleryHit | None


@dataclass(frozen=True)
class EmbeddedItems:
    """The embedded images and captions of a split, as items to show.

    Attributes:
        embeddings: The model's embeddings.
        split: The split.
        image_root: Folder of the images.
    """

    embeddings: SplitEmbeddings
    split: SplitView
    image_root: Path

    def image(self, position: int) -> Item:
        """Return the image of an embedding."""
        image_row = int(self.embeddings.image_rows[position])
        image_path = self.image_root / self.split.image_paths[image_row]
        return Item("image", self.split.image_ids[image_row], image_path)

    def caption(self, position: int) -> Item:
        """Return the caption of an embedding."""
        caption_row = int(self.embeddings.text_rows[position])
        return Item("text", self.split.captions[caption_row], None)

    def item(self, letter: str, position: int) -> Item:
        """Return the image (``"i"``) or caption (``"t"``) of an embedding."""
        return self.image(position) if letter == "i" else self.caption(position)

    def hits(
        self,
        task: Task,
        query: int,
        relevant: np.ndarray,
        neighbours: Mapping[int, float],
    ) -> tuple[GalleryHit, ...]:
        """Return the neighbours of a query as hits.

        Args:
            task: Direction of the retrieval.
            query: Position of the query.
            relevant: int64: its relevant candidates; empty if the labels have no answer.
            neighbours: Similarity by position of the candidate, greatest first.
        """
        hits = []
        for candidate, similarity in neighbours.items():
            correct = candidate in relevant if len(relevant) else None
            # The known truth tells nothing about two items of one modality.
            is_true = None
            if task == "i2t":
                is_true = self.is_true(caption=candidate, image=query)
            elif task == "t2i":
                is_true = self.is_true(caption=query, image=candidate)
            hits.append(GalleryHit(self.item(task[2], candidate), similarity, correct, is_true))
        return tuple(hits)

    def is_true(self, caption: int, image: int) -> bool | None:
        """Tell whether a caption is true of an image; ``None`` if no truth is known.

        Args:
            caption: Position of the caption among the embeddings.
            image: Position of the image among the embeddings.
        """
        truth = self.split.truth
        if truth is None:
            return None
        caption_row = int(self.embeddings.text_rows[caption])
        image_row = int(self.embeddings.image_rows[image])
        start, stop = truth.indptr[caption_row : caption_row + 2]
        return image_row in truth.indices[start:stop]

    def relevance(self, task: Task) -> Relevance:
        """Return the relevance by the data set's labels; or, without image labels, none."""
        if task == "i2i" and self.split.truth is None:
            n_images = len(self.embeddings.image_rows)
            no_indices = np.zeros(0, np.int64)
            return Relevance(
                task, np.zeros(n_images + 1, np.int64), no_indices, np.arange(n_images)
            )
        return relevance_of(task, self.embeddings, self.split)


def make_gallery(
    embeddings: SplitEmbeddings,
    split: SplitView,
    image_root: Path,
    head_by_task: dict[Task, Head],
    per_task: int,
    seed: int,
) -> tuple[GalleryQuery, ...]:
    """Draw random queries of each task and answer them.

    Queries are drawn from those to which the labels have an answer. If no query of a task has one,
    as among images without labels, they are drawn from all, and their hits are neither right nor
    wrong.

    Args:
        embeddings: The model's embeddings.
        split: The split.
        image_root: Folder of the images.
        head_by_task: The head that answers, by task.
        per_task: Number of queries per task.
        seed: Seed of the draw.
    """
    items = EmbeddedItems(embeddings, split, image_root)
    gallery: list[GalleryQuery] = []
    for number, (task, head) in enumerate(head_by_task.items()):
        relevance = items.relevance(task)
        n_relevant = np.diff(relevance.indptr)
        drawable = np.flatnonzero(n_relevant)
        if not len(drawable):
            drawable = np.arange(len(n_relevant))
        n_queries = min(per_task, len(drawable))
        # Each task has its own generator, so that the draws of one do not change another's.
        generator = np.random.default_rng([seed, number])
        drawn = np.sort(generator.choice(drawable, n_queries, replace=False))
        if n_queries:
            gallery += answer_queries(items, head, drawn, relevance)
    return tuple(gallery)


def answer_queries(
    items: EmbeddedItems, head: Head, queries: np.ndarray, relevance: Relevance
) -> Iterator[GalleryQuery]:
    """Yield queries, each with its hits and its best right answer.

    Args:
        items: The items of the split.
        head: The head that answers.
        queries: int64 ``[n]``, n at least 1: positions of the queries.
        relevance: Relevant candidates of all queries of the task.
    """
    query_features, candidate_features = relevance.sides(items.embeddings, head)
    query_features = query_features[queries]
    indptr = relevance.indptr
    relevant = [relevance.indices[indptr[query] : indptr[query + 1]] for query in queries]
    # Within a modality, the query itself is no candidate.
    excluded = np.full(len(queries), -1)
    if relevance.exclude is not None:
        excluded = relevance.exclude[queries]

    ranks = rank_bounds(query_features, candidate_features, *csr(relevant), excluded).pessimistic
    # Search for one more than is shown, since a query may find itself.
    similarities, neighbours = faiss.knn(
        query_features, candidate_features, HITS_SHOWN + 1, metric=faiss.METRIC_INNER_PRODUCT
    )
    task = relevance.task
    for number, query in enumerate(queries.tolist()):
        nearest = dict(zip(neighbours[number].tolist(), similarities[number].tolist(), strict=True))
        # FAISS returns -1 where there are too few candidates.
        for no_candidate in (-1, int(excluded[number])):
            nearest.pop(no_candidate, None)
        hits = items.hits(task, query, relevant[number], nearest)
        rank, answer = None, None
        if len(relevant[number]):
            rank = int(ranks[number])
            scores = candidate_features[relevant[number]] @ query_features[number]
            best_candidate = int(relevant[number][scores.argmax()])
            best_item = items.item(task[2], best_candidate)
            answer = GalleryHit(best_item, float(scores.max()), correct=True)
        yield GalleryQuery(task, head, items.item(task[0], query), hits[:HITS_SHOWN], rank, answer)
