"""Which candidates are relevant to which query, per task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cusa.data.embeddings import Head, SplitEmbeddings
from cusa.data.records import SplitView, csr
from cusa.eval.metrics.ranks import cross_modal_relevance

Task = Literal["i2t", "t2i", "t2t", "i2i"]


@dataclass(frozen=True)
class Relevance:
    """Relevant candidates of every query.

    Attributes:
        task: First letter: what the queries are; last: what the candidates are (image or text).
        indptr: int64 ``[n_queries + 1]``.
        indices: int64; query q's relevant candidates are ``indices[indptr[q]:indptr[q + 1]]``.
        exclude: int64 ``[n_queries]``: the query's own position where queries and candidates are the same items.
    """

    task: Task
    indptr: np.ndarray
    indices: np.ndarray
    exclude: np.ndarray | None

    def sides(self, embeddings: SplitEmbeddings, head: Head) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings of the queries and of the candidates."""
        by_letter = {"i": embeddings.image[head], "t": embeddings.text[head]}
        return by_letter[self.task[0]], by_letter[self.task[2]]


def relevance_of(task: Task, embeddings: SplitEmbeddings, split: SplitView) -> Relevance:
    """Relevance by the data set's labels.

    Image-to-text and text-to-image: the captions written for the image. Text-to-text: the other captions of the same
    image. Image-to-image: the other images with the same label, which only some data sets have.
    """
    of = embeddings.caption_image
    if task in ("i2t", "t2i"):
        i2t, t2i = cross_modal_relevance(of, len(embeddings.image_rows))
        return Relevance(task, *(i2t if task == "i2t" else t2i), None)
    if task == "t2t":
        return Relevance(task, *same_group(of), np.arange(len(of)))
    assert split.truth is not None, "image-to-image relevance is asked for only where it is known"
    labels = split.truth.image_labels[embeddings.image_rows]
    return Relevance(task, *same_group(labels), np.arange(len(labels)))


def same_group(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Relevance among items of one kind: the others of the same group, never the item itself.

    Args:
        groups: int64 ``[n]``; a negative group is nobody's.

    Returns:
        indptr int64 ``[n + 1]`` and indices int64.
    """
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], groups, "left")
    stops = np.searchsorted(groups[order], groups, "right")
    empty = np.zeros(0, np.int64)
    rows = [order[a:b] for a, b in zip(starts, stops, strict=True)]
    return csr([row[row != i] if groups[i] >= 0 else empty for i, row in enumerate(rows)])


def true_relevance(
    task: Literal["i2t", "t2i"], embeddings: SplitEmbeddings, split: SplitView
) -> Relevance:
    """Relevance by the known truth: every image that a caption is true of, whoever it was written for."""
    truth = split.truth
    assert truth is not None, "only asked for where the truth is known"
    position = np.full(split.n_images, -1, np.int64)
    position[embeddings.image_rows] = np.arange(len(embeddings.image_rows))
    images = [
        position[truth.indices[truth.indptr[c] : truth.indptr[c + 1]]]
        for c in embeddings.text_rows.tolist()
    ]
    images = [row[row >= 0] for row in images]
    if task == "t2i":
        return Relevance(task, *csr(images), None)
    captions = np.repeat(np.arange(len(images)), [len(row) for row in images])
    flat = np.concatenate(images) if images else np.zeros(0, np.int64)
    order = np.argsort(flat, kind="stable")
    bounds = np.searchsorted(flat[order], np.arange(len(embeddings.image_rows) + 1))
    return Relevance(task, bounds, captions[order], None)
