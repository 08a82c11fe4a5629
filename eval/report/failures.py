"""Failures of a model and, likely, of the labels: worst queries and likely false negatives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cusa.data.embeddings import Head, SplitEmbeddings
from cusa.data.records import SplitView
from cusa.eval.metrics.ranks import rank_bounds
from cusa.eval.metrics.relevance import Task
from cusa.eval.report.false_negative_pairs import (
    RankedAbove,
    TeacherCosines,
    Teachers,
    each_pair_once,
    most_similar_first,
)
from cusa.eval.report.gallery import (
    EmbeddedItems,
    GalleryQuery,
    Item,
    answer_queries,
)


@dataclass(frozen=True)
class FalseNegative:
    """A caption, and an image that the labels likely call wrong by mistake.

    Attributes:
        caption: The caption, which is the query.
        own_image: The image that it was written for.
        retrieved: An image that the model ranks above its own.
        closest: The caption of the retrieved image that the text teacher finds most similar to the
            query; without a text teacher, the image's first caption.
        rank: Rank of the retrieved image, 0 being first.
        own_rank: Rank of the caption's own image, with ties counted against it.
        similarity: The model's cosine of the caption and the retrieved image.
        own_similarity: The model's cosine of the caption and its own image.
        image_cosine: The image teacher's cosine of the two images; ``None`` without an image
            teacher.
        text_cosine: The text teacher's cosine of the caption and the closest one; ``None`` without
            a text teacher.
        is_true: Whether the caption is true of the retrieved image; ``None`` if the data set does
            not tell.
    """

    caption: Item
    own_image: Item
    retrieved: Item
    closest: Item
    rank: int
    own_rank: int
    similarity: float
    own_similarity: float
    image_cosine: float | None
    text_cosine: float | None
    is_true: bool | None


def worst_failures(
    embeddings: SplitEmbeddings,
    split: SplitView,
    image_root: Path,
    head_by_task: dict[Task, Head],
    per_task: int,
) -> tuple[GalleryQuery, ...]:
    """Answer the queries of each task whose best relevant candidate ranks worst.

    The worst come first; equal ranks are in the order of the split. A query whose first hit is
    right, or to which the labels have no answer, is not a failure.

    Args:
        embeddings: The model's embeddings.
        split: The split.
        image_root: Folder of the images.
        head_by_task: The head that answers, by task.
        per_task: Most queries per task.
    """
    items = EmbeddedItems(embeddings, split, image_root)
    failures: list[GalleryQuery] = []
    for task, head in head_by_task.items():
        relevance = items.relevance(task)
        if per_task == 0 or not len(relevance.indices):
            continue
        queries, candidates = relevance.sides(embeddings, head)
        bounds = rank_bounds(
            queries, candidates, relevance.indptr, relevance.indices, relevance.exclude
        )
        ranks = bounds.pessimistic
        worst = np.argsort(-ranks, kind="stable")[:per_task]
        worst = worst[ranks[worst] > 0]
        if len(worst):
            failures += answer_queries(items, head, worst, relevance)
    return tuple(failures)


def likely_false_negatives(
    embeddings: SplitEmbeddings,
    split: SplitView,
    teachers: Teachers,
    image_root: Path,
    n_shown: int,
) -> tuple[FalseNegative, ...]:
    """Find captions with an image that the labels call wrong, but the model and teachers right.

    Candidates are pairs of a caption and an image among its first few hits that the cross head
    ranks above the caption's own image. The image teacher compares this image with the caption's
    own; the text teacher compares its closest caption with the query. Since the scales of the
    teachers' cosines differ, they are converted to ranks among all these pairs, and a pair gets the
    lower of its two ranks. The most similar pairs come first, and each two images appear once.
    Pairs for which a teacher has no row are left out.

    Args:
        embeddings: The model's embeddings.
        split: The split.
        teachers: The teachers' rows of the same split.
        image_root: Folder of the images.
        n_shown: Most false negatives to return.

    Returns:
        The false negatives, most similar first; none without any teacher.
    """
    if n_shown == 0 or (teachers.image is None and teachers.text is None):
        return ()
    pairs = RankedAbove.search(embeddings)
    cosines = TeacherCosines.compare(teachers, embeddings, pairs)
    chosen = each_pair_once(most_similar_first(pairs, cosines), pairs, n_shown)
    items = EmbeddedItems(embeddings, split, image_root)
    return _false_negatives(items, pairs, cosines, chosen)


def _false_negatives(
    items: EmbeddedItems,
    pairs: RankedAbove,
    cosines: TeacherCosines,
    chosen: list[int],
) -> tuple[FalseNegative, ...]:
    """Look up what the report shows of the chosen pairs."""
    images = items.embeddings.image["cross"]
    texts = items.embeddings.text["cross"]
    captions = pairs.captions[chosen]
    # Only its own image is relevant to a caption here.
    indptr = np.arange(len(chosen) + 1)
    own_ranks = rank_bounds(texts[captions], images, indptr, pairs.own_images[chosen]).pessimistic

    negatives = []
    for pair, own_rank in zip(chosen, own_ranks.tolist(), strict=True):
        caption = int(pairs.captions[pair])
        own_image = int(pairs.own_images[pair])
        retrieved = int(pairs.retrieved[pair])
        negative = FalseNegative(
            caption=items.caption(caption),
            own_image=items.image(own_image),
            retrieved=items.image(retrieved),
            closest=items.caption(int(cosines.closest[pair])),
            rank=int(pairs.ranks[pair]),
            own_rank=own_rank,
            similarity=float(pairs.similarities[pair]),
            own_similarity=float(texts[caption] @ images[own_image]),
            image_cosine=None if cosines.image is None else float(cosines.image[pair]),
            text_cosine=None if cosines.text is None else float(cosines.text[pair]),
            is_true=items.is_true(caption, retrieved),
        )
        negatives.append(negative)
    return tuple(negatives)
