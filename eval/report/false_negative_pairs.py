"""Pairs of a caption and a wrong image that the model prefers, compared by the teachers."""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
from scipy.stats import rankdata

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.store.embeddings import Embeddings
from cusa.eval.inspection.batch_figures import COSINE_DECIMALS
from cusa.eval.inspection.pair_search import teacher_rows
from cusa.eval.metrics.caption_images import cross_modal_relevance
from cusa.eval.report.gallery import HITS_SHOWN

# Number of pairs whose teacher rows are in memory at once.
_BLOCK = 4096


@dataclass(frozen=True)
class Teachers:
    """The teachers' rows of a split: one per image row, one per caption row.

    Attributes:
        image: Rows of the image teacher; ``None`` without one.
        text: Rows of the text teacher; ``None`` without one.
    """

    image: Embeddings | None
    text: Embeddings | None


@dataclass(frozen=True)
class RankedAbove:
    """Pairs of a caption and an image that the model ranks above the caption's own.

    Attributes:
        captions: int64 ``[p]``: position of the caption among the embeddings.
        own_images: int64 ``[p]``: position of the image that the caption was written for.
        retrieved: int64 ``[p]``: position of the image that is ranked above it.
        ranks: int64 ``[p]``: rank of that image, less than ``HITS_SHOWN``.
        similarities: float32 ``[p]``: the model's cosine of the caption and that image.
    """

    captions: np.ndarray
    own_images: np.ndarray
    retrieved: np.ndarray
    ranks: np.ndarray
    similarities: np.ndarray

    @classmethod
    def search(cls, embeddings: SplitEmbeddings) -> RankedAbove:
        """Search the ``HITS_SHOWN`` nearest images of every caption by the cross head."""
        images = embeddings.image["cross"]
        caption_image = embeddings.caption_image
        n_hits = min(HITS_SHOWN, len(images))
        similarities, neighbours = faiss.knn(
            embeddings.text["cross"], images, n_hits, metric=faiss.METRIC_INNER_PRODUCT
        )
        is_own = neighbours == caption_image[:, None]
        from_own_on = np.logical_or.accumulate(is_own, axis=1)
        has_own = (caption_image >= 0)[:, None]
        captions, ranks = np.nonzero(~from_own_on & has_own)
        return cls(
            captions=captions,
            own_images=caption_image[captions],
            retrieved=neighbours[captions, ranks],
            ranks=ranks,
            similarities=similarities[captions, ranks],
        )


@dataclass(frozen=True)
class TeacherCosines:
    """The teachers' cosines for the pairs; NaN where a teacher has no row.

    Attributes:
        image: float64 ``[p]``: cosine of the two images; ``None`` without an image teacher.
        text: float64 ``[p]``: cosine of the caption and the retrieved image's closest caption;
            ``None`` without a text teacher.
        closest: int64 ``[p]``: position of that closest caption; without a text teacher, of the
            retrieved image's first caption.
        has_caption: bool ``[p]``: whether the retrieved image has a caption.
    """

    image: np.ndarray | None
    text: np.ndarray | None
    closest: np.ndarray
    has_caption: np.ndarray

    @classmethod
    def compare(
        cls,
        teachers: Teachers,
        embeddings: SplitEmbeddings,
        pairs: RankedAbove,
    ) -> TeacherCosines:
        """Compute the cosines of each teacher for every pair.

        Args:
            teachers: The teachers' rows of the split.
            embeddings: The model's embeddings of the split.
            pairs: The pairs.
        """
        n_images = len(embeddings.image_rows)
        (indptr, indices), _ = cross_modal_relevance(embeddings.caption_image, n_images)

        image_cosines = None
        if teachers.image is not None:
            own_rows = embeddings.image_rows[pairs.own_images]
            retrieved_rows = embeddings.image_rows[pairs.retrieved]
            image_cosines = _cosines(teachers.image, own_rows, retrieved_rows)

        text_cosines = None
        # For an image without captions this is any caption; has_caption excludes its pairs later.
        first_captions = np.minimum(indptr[pairs.retrieved], len(indices) - 1)
        closest = indices[first_captions]
        if teachers.text is not None:
            text_cosines, closest = _closest_captions(
                teachers.text, embeddings.text_rows, pairs, indptr, indices
            )
        has_caption = np.diff(indptr)[pairs.retrieved] > 0
        return cls(image_cosines, text_cosines, closest, has_caption)


def most_similar_first(
    pairs: RankedAbove,
    cosines: TeacherCosines,
) -> np.ndarray:
    """Order pairs by the teacher that finds them less similar, the most similar first.

    Args:
        pairs: The pairs.
        cosines: The teachers' cosines for them.

    Returns:
        int64: positions of the pairs for which every teacher has rows.
    """
    by_teacher = [values for values in (cosines.image, cosines.text) if values is not None]
    is_known = cosines.has_caption.copy()
    for values in by_teacher:
        is_known &= np.isfinite(values)

    percentiles = []
    for values in by_teacher:
        rounded = values.round(COSINE_DECIMALS)
        known_alone = np.where(is_known, rounded, -np.inf)
        percentiles.append(rankdata(known_alone))
    agreement = np.min(percentiles, axis=0)

    # The last key is the primary one.
    order = np.lexsort((pairs.retrieved, pairs.captions, -pairs.similarities, -agreement))
    return order[is_known[order]]


def each_pair_once(
    order: np.ndarray,
    pairs: RankedAbove,
    n_shown: int,
) -> list[int]:
    """Take the first pairs of an order, skipping those whose two images were taken before."""
    # A set of two images is the same whichever of them the caption was written for.
    image_pairs: set[frozenset[int]] = set()
    chosen: list[int] = []
    for pair in order.tolist():
        if len(chosen) == n_shown:
            break
        image_pair = frozenset((int(pairs.own_images[pair]), int(pairs.retrieved[pair])))
        if image_pair not in image_pairs:
            image_pairs.add(image_pair)
            chosen.append(pair)
    return chosen


def _cosines(
    teacher: Embeddings,
    first_rows: np.ndarray,
    second_rows: np.ndarray,
) -> np.ndarray:
    """Compute cosines of a teacher's rows, float64 ``[p]``; NaN where the teacher has no row."""
    blocks = [np.zeros(0)]
    for start in range(0, len(first_rows), _BLOCK):
        stop = start + _BLOCK
        first = teacher_rows(teacher, first_rows[start:stop]).double()
        second = teacher_rows(teacher, second_rows[start:stop]).double()
        blocks.append(np.einsum("pd,pd->p", first.numpy(), second.numpy()))
    return np.concatenate(blocks)


def _closest_captions(
    teacher: Embeddings,
    text_rows: np.ndarray,
    pairs: RankedAbove,
    indptr: np.ndarray,
    indices: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the caption of each retrieved image that is most similar to the query.

    Image i has the captions ``indices[indptr[i]:indptr[i + 1]]``; ``text_rows`` maps captions to
    rows of the split.

    Returns:
        Cosines, float64 ``[p]``, NaN for an image without captions; and captions, int64 ``[p]``.
    """
    n_pairs = len(pairs.captions)
    n_captions = np.diff(indptr)[pairs.retrieved]
    # One entry for each caption of each pair's retrieved image, in order.
    pair_numbers = np.repeat(np.arange(n_pairs), n_captions)
    first_entries = np.cumsum(n_captions) - n_captions
    within_image = np.arange(len(pair_numbers)) - first_entries[pair_numbers]
    candidates = indices[indptr[pairs.retrieved[pair_numbers]] + within_image]
    query_rows = text_rows[pairs.captions[pair_numbers]]
    cosines = _cosines(teacher, query_rows, text_rows[candidates])

    greatest = np.full(n_pairs, np.nan)
    closest = np.zeros(n_pairs, np.int64)
    # The last assignment to an index wins, so the greatest cosine comes last, and among equal ones
    # the first caption.
    sortable = np.where(np.isnan(cosines), -np.inf, cosines)
    order = np.lexsort((-within_image, sortable))
    greatest[pair_numbers[order]] = cosines[order]
    closest[pair_numbers[order]] = candidates[order]
    return greatest, closest
