"""Where a model fails, and where likely the labels do: its worst queries, and "wrong" hits that look right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from scipy.stats import rankdata

from cusa.data.embeddings import Head, SplitEmbeddings
from cusa.data.records import SplitView
from cusa.data.store.reader import Embeddings
from cusa.eval.inspection.pair_search import teacher_rows
from cusa.eval.metrics.ranks import best_ranks, cross_modal_relevance
from cusa.eval.metrics.relevance import Task
from cusa.eval.report.gallery import (
    TOP,
    GalleryQuery,
    Item,
    answer_queries,
    is_true,
    known_relevance,
    shown_item,
)

_BLOCK = 4096  # pairs whose teacher rows are held at once


@dataclass(frozen=True)
class Teachers:
    """The teachers' rows of a split: one per image row, one per caption row; ``None`` where there is no teacher."""

    image: Embeddings | None
    text: Embeddings | None


@dataclass(frozen=True)
class FalseNegative:
    """A caption, and an image that is wrong for it by the labels alone.

    Attributes:
        caption: The query.
        own: The image that it was written for.
        retrieved: The image that the model ranks above that.
        closest: The caption of the retrieved image that the text teacher finds most like the query; without a text
            teacher, its first.
        rank: Rank of the retrieved image, 0 being first.
        own_rank: Rank of its own image, ties counting against it.
        similarity: The model's cosine of caption and retrieved image.
        own_similarity: That of caption and own image.
        image_cosine: The image teacher's cosine of the two images; ``None`` without an image teacher.
        text_cosine: The text teacher's cosine of the caption and the closest one; ``None`` without a text teacher.
        true: Whether the caption is true of the retrieved image; ``None`` where the data set does not know.
    """

    caption: Item
    own: Item
    retrieved: Item
    closest: Item
    rank: int
    own_rank: int
    similarity: float
    own_similarity: float
    image_cosine: float | None
    text_cosine: float | None
    true: bool | None


def worst_failures(
    embeddings: SplitEmbeddings,
    split: SplitView,
    image_root: Path,
    head_of: dict[Task, Head],
    per_task: int,
) -> tuple[GalleryQuery, ...]:
    """The queries of each task whose best relevant candidate ranks worst.

    Worst first; of equal ranks, the first of the split come first. A query that is answered right, or that the labels
    know no answer to, is no failure.

    Args:
        embeddings: The model's embeddings.
        split: The split.
        image_root: Folder of the images.
        head_of: Tasks to show, and the head that answers each.
        per_task: Queries per task, at most.
    """
    shown: list[GalleryQuery] = []
    for task, head in head_of.items():
        relevance = known_relevance(task, embeddings, split)
        if per_task == 0 or not len(relevance.indices):
            continue
        ranks = best_ranks(
            *relevance.sides(embeddings, head),
            relevance.indptr,
            relevance.indices,
            relevance.exclude,
        )
        worst = np.argsort(-ranks, kind="stable")[:per_task]
        worst = worst[ranks[worst] > 0]
        if len(worst):
            shown += answer_queries(head, worst, relevance, embeddings, split, image_root)
    return tuple(shown)


def likely_false_negatives(
    embeddings: SplitEmbeddings, split: SplitView, teachers: Teachers, image_root: Path, n: int
) -> tuple[FalseNegative, ...]:
    """Captions with an image that the labels call wrong, and that the model and the teachers call right.

    Looked at is every image among the first ``TOP`` of a caption that the cross head ranks above the caption's own. The
    image teacher compares it with the caption's own image, the text teacher its closest caption with the query. Each
    teacher's cosines become percentile ranks among all these pairs, since one teacher's 0.8 is not another's; a pair is
    as alike as the teacher says that finds it less so. Most alike first, and two images together only once. Pairs that
    a teacher has no row for are left out.

    Args:
        embeddings: The model's embeddings.
        split: The split.
        teachers: Their rows of the same split.
        image_root: Folder of the images.
        n: How many to show, at most.

    Returns:
        At most ``n``; none without any teacher. Only ``TOP`` candidates of each caption are held, never all scores.
    """
    if n == 0 or (teachers.image is None and teachers.text is None):
        return ()
    images, texts = embeddings.image["cross"], embeddings.text["cross"]
    (indptr, indices), _ = cross_modal_relevance(embeddings.caption_image, len(images))
    captions, places, retrieved, similarities = _ranked_above(
        images, texts, embeddings.caption_image
    )
    own = embeddings.caption_image[captions]
    cosines: dict[str, np.ndarray] = {}
    closest = indices[np.minimum(indptr[retrieved], len(indices) - 1)]
    if teachers.image is not None:
        rows = embeddings.image_rows
        cosines["image"] = _cosines(teachers.image, rows[own], rows[retrieved])
    if teachers.text is not None:
        cosines["text"], closest = _closest_captions(
            teachers.text, embeddings, captions, retrieved, indptr, indices
        )
    known = np.logical_and.reduce(
        [np.isfinite(c) for c in cosines.values()] + [np.diff(indptr)[retrieved] > 0]
    )
    # Cosines that differ by rounding alone, which depends on the machine, are ties.
    agreement = np.min(
        [rankdata(np.where(known, c.round(5), -np.inf)) for c in cosines.values()], axis=0
    )
    order = np.lexsort((retrieved, captions, -similarities, -agreement))
    chosen = _each_pair_once(order[known[order]], own, retrieved, n)
    asked = captions[chosen]
    own_ranks = best_ranks(texts[asked], images, np.arange(len(asked) + 1), own[chosen])
    return tuple(
        FalseNegative(
            shown_item("t", int(captions[p]), embeddings, split, image_root),
            shown_item("i", int(own[p]), embeddings, split, image_root),
            shown_item("i", int(retrieved[p]), embeddings, split, image_root),
            shown_item("t", int(closest[p]), embeddings, split, image_root),
            int(places[p]),
            int(own_rank),
            float(similarities[p]),
            float(texts[captions[p]] @ images[own[p]]),
            float(cosines["image"][p]) if "image" in cosines else None,
            float(cosines["text"][p]) if "text" in cosines else None,
            is_true(
                split,
                int(embeddings.text_rows[captions[p]]),
                int(embeddings.image_rows[retrieved[p]]),
            ),
        )
        for p, own_rank in zip(chosen, own_ranks, strict=True)
    )


def _ranked_above(
    images: np.ndarray, texts: np.ndarray, caption_image: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Captions, places, images and similarities, each ``[p]``, of images in the first few, before the caption's own."""
    similarities, found = faiss.knn(
        texts, images, min(TOP, len(images)), metric=faiss.METRIC_INNER_PRODUCT
    )
    is_own = found == caption_image[:, None]
    above = np.logical_not(np.logical_or.accumulate(is_own, axis=1)) & (caption_image >= 0)[:, None]
    captions, places = np.nonzero(above)
    return captions, places, found[captions, places], similarities[captions, places]


def _cosines(teacher: Embeddings, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """float64 ``[p]``: cosines of a teacher's rows, a block at a time; NaN where one is skipped."""
    parts = [np.zeros(0)]
    for a in range(0, len(first), _BLOCK):
        one, two = (
            teacher_rows(teacher, rows[a : a + _BLOCK]).double().numpy() for rows in (first, second)
        )
        parts.append(np.einsum("pd,pd->p", one, two))
    return np.concatenate(parts)


def _closest_captions(
    teacher: Embeddings,
    embeddings: SplitEmbeddings,
    captions: np.ndarray,
    retrieved: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Per pair the greatest cosine of the caption with one of the image's, and that one; NaN for an image without."""
    counts = np.diff(indptr)[retrieved]
    pair = np.repeat(np.arange(len(captions)), counts)
    within = np.arange(len(pair)) - np.repeat(np.cumsum(counts) - counts, counts)
    other = indices[indptr[retrieved[pair]] + within]
    cosines = _cosines(teacher, embeddings.text_rows[captions[pair]], embeddings.text_rows[other])
    best, closest = np.full(len(captions), np.nan), np.zeros(len(captions), np.int64)
    # The last write wins: from the least to the greatest cosine, and of equals the first caption last.
    order = np.lexsort((-within, np.where(np.isnan(cosines), -np.inf, cosines)))
    best[pair[order]], closest[pair[order]] = cosines[order], other[order]
    return best, closest


def _each_pair_once(order: np.ndarray, own: np.ndarray, retrieved: np.ndarray, n: int) -> list[int]:
    seen: set[frozenset[int]] = set()
    chosen: list[int] = []
    for p in order.tolist():
        if len(chosen) == n:
            break
        if (images := frozenset((int(own[p]), int(retrieved[p])))) not in seen:
            seen.add(images)
            chosen.append(p)
    return chosen
