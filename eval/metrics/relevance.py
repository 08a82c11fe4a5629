"""Relevance of candidates to queries, by retrieval task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cusa.data.embeddings import Head, SplitEmbeddings, SplitItems
from cusa.data.records import (
    SplitView,
    Truth,
    csr,
)
from cusa.eval.metrics.caption_images import RelevantRows, cross_modal_relevance

Task = Literal["i2t", "t2i", "t2t", "i2i"]


@dataclass(frozen=True)
class Relevance:
    """Relevant candidates of every query.

    Attributes:
        task: The task; its first letter tells what the queries are, its last what the candidates
            are (image or text).
        indptr: int64 ``[n_queries + 1]``.
        indices: int64; query q's relevant candidates are ``indices[indptr[q]:indptr[q + 1]]``.
        exclude: int64 ``[n_queries]``: each query's own position among the candidates, if both are
            the same items; else ``None``.
    """

    task: Task
    indptr: np.ndarray
    indices: np.ndarray
    exclude: np.ndarray | None

    def sides(
        self,
        embeddings: SplitEmbeddings,
        head: Head,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the embeddings of the queries and of the candidates: float32 ``[n, d]`` each."""
        features = {
            "i": embeddings.image[head],
            "t": embeddings.text[head],
        }
        query_letter, _, candidate_letter = self.task
        return features[query_letter], features[candidate_letter]


def relevance_of(
    task: Task,
    embeddings: SplitEmbeddings,
    split: SplitView,
) -> Relevance:
    """Return the relevance by the data set's labels.

    Between images and texts, an image and the captions written for it are relevant to each other.
    Text-to-text, the other captions of the same image are; image-to-image, the other images with
    the same label, which only some data sets have.
    """
    caption_image = embeddings.caption_image
    if task in ("i2t", "t2i"):
        i2t, t2i = cross_modal_relevance(caption_image, len(embeddings.image_rows))
        indptr, indices = i2t if task == "i2t" else t2i
        return Relevance(task, indptr, indices, None)

    groups = caption_image
    if task == "i2i":
        assert split.truth is not None, "image-to-image retrieval needs a split with image labels"
        groups = split.truth.image_labels[embeddings.image_rows]
    own_positions = np.arange(len(groups))
    return Relevance(task, *same_group(groups), own_positions)


def same_group(groups: np.ndarray) -> RelevantRows:
    """List the other members of each item's group.

    Args:
        groups: int64 ``[n]``: group of each item; negative for an item of no group.
    """
    relevant: list[np.ndarray] = []
    for item, positions in enumerate(group_members(groups, groups)):
        # Captions without an image have the group -1, and do not form one.
        is_other = (positions != item) & (groups[item] >= 0)
        relevant.append(positions[is_other])
    return csr(relevant)


def group_members(
    groups: np.ndarray,
    wanted_groups: np.ndarray,
) -> list[np.ndarray]:
    """List the items of each wanted group.

    Args:
        groups: int64 ``[m]``: group of each item.
        wanted_groups: int64 ``[n]``: the wanted groups.

    Returns:
        For each wanted group the positions of its items, int64, ascending; empty for a group
        without items.
    """
    # A stable sort keeps the items of a group in ascending order.
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.searchsorted(ordered, wanted_groups, "left")
    stops = np.searchsorted(ordered, wanted_groups, "right")
    bounds = zip(starts.tolist(), stops.tolist(), strict=True)
    return [order[start:stop] for start, stop in bounds]


def positions_of_rows(
    embedded_rows: np.ndarray,
    n_rows: int,
) -> np.ndarray:
    """Map a split's rows to positions among its embeddings.

    Args:
        embedded_rows: int64 ``[n]``: row of each embedding.
        n_rows: Number of rows of the split.

    Returns:
        int64 ``[n_rows]``: position of each row's embedding; -1 for a row without one.
    """
    positions = np.full(n_rows, -1, np.int64)
    positions[embedded_rows] = np.arange(len(embedded_rows))
    return positions


def true_relevance(
    task: Literal["i2t", "t2i"],
    items: SplitItems,
    split: SplitView,
) -> Relevance:
    """Return the relevance by the known truth.

    A caption and every image that it is true of are relevant to each other, whether or not it was
    written for that image.
    """
    assert split.truth is not None, "true relevance needs a split whose truth is known"
    true_images = _embedded_true_images(split.truth, items, split.n_images)
    if task == "t2i":
        return Relevance(task, *csr(true_images), None)

    indptr, images = csr(true_images)
    all_captions = np.arange(len(true_images))
    captions = np.repeat(all_captions, np.diff(indptr))
    (bounds, order), _ = cross_modal_relevance(images, len(items.image_rows))
    return Relevance(task, bounds, captions[order], None)


def _embedded_true_images(
    truth: Truth,
    items: SplitItems,
    n_images: int,
) -> list[np.ndarray]:
    """List the images that each embedded caption is true of, as positions among the items."""
    position_of_row = positions_of_rows(items.image_rows, n_images)
    true_images: list[np.ndarray] = []
    for caption in items.text_rows.tolist():
        start, stop = truth.indptr[caption : caption + 2]
        positions = position_of_row[truth.indices[start:stop]]
        # Images without an embedding, such as unreadable ones, are no candidates.
        true_images.append(positions[positions >= 0])
    return true_images
