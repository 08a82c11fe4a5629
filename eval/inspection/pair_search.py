"""Search for the most similar pairs of images, comparing all with all, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import numpy as np
import torch

from cusa.data.store.embeddings import Embeddings
from cusa.data.unit_rows import unit_rows
from cusa.train.loss.functions import fuse_similarities

# Number of captions of an image that are compared.
MAX_CAPTIONS = 5
# Least cosine at which two images are likely the same picture.
DUPLICATE_COSINE = 0.999
RANKINGS = ("image", "text", "both")

# Called with the task, the number of steps done, and the number of all steps.
Advance = Callable[[str, int, int], None]

# Positions of two images in a sample, the smaller one first.
Positions = tuple[int, int]


# L2-normalised float32 teacher rows of some images, [n, d], and of their captions, [m, n, e].
_TeacherRows = tuple[torch.Tensor, torch.Tensor]

# The most similar pairs so far, most similar first: scores, float [k], and positions in the sample,
# int64 [k, 2].
_Ranking = tuple[np.ndarray, np.ndarray]
_NO_PAIRS: _Ranking = (np.zeros(0), np.zeros((0, 2), np.int64))


def silent(
    _task: str,
    _n_done: int,
    _n_steps: int,
) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Sample:
    """Images with their captions, by row of the split.

    Attributes:
        images: int64 ``[n]``, ascending.
        captions: int64 ``[n, m]``: the first m captions of each image, repeated cyclically if it
            has fewer.
        counts: int64 ``[n]``: number of distinct captions among them, 1 to m.
    """

    images: np.ndarray
    captions: np.ndarray
    counts: np.ndarray


def draw_sample(
    image_rows: np.ndarray,
    caption_rows: np.ndarray,
    n_images: int,
    seed: int,
) -> Sample:
    """Draw random images of trainable pairs, or take all if there are at most ``n_images``.

    Args:
        image_rows: int64 ``[p]``: the image row of each pair.
        caption_rows: int64 ``[p]``: its caption row.
        n_images: Number of images to draw.
        seed: Seed of the draw.
    """
    # Sort the captions of an image side by side, in the order of the split.
    order = np.lexsort((caption_rows, image_rows))
    images, starts, counts = np.unique(image_rows[order], return_index=True, return_counts=True)
    n_drawn = min(n_images, len(images))
    drawn = np.random.default_rng(seed).choice(len(images), n_drawn, replace=False)
    drawn.sort()

    # Number each image's captions from its first one, cyclically if it has fewer than the columns.
    counts = np.minimum(counts[drawn], MAX_CAPTIONS)
    within_image = np.arange(counts.max()) % counts[:, None]
    captions = caption_rows[order][starts[drawn, None] + within_image]
    return Sample(images[drawn], captions, counts)


def same_image_cosine(
    text_teacher: Embeddings,
    sample: Sample,
    block: int = 512,
) -> float:
    """Compute the median cosine of two captions of the same image; NaN if no image has two.

    Args:
        text_teacher: Rows of the captions.
        sample: Images with their captions.
        block: Number of images per block.
    """
    cosine_blocks = [np.zeros(0)]
    for start in range(0, len(sample.images), block):
        counts = sample.counts[start : start + block]
        captions = sample.captions[start : start + block]
        rows = teacher_rows(text_teacher, captions)
        for first, second in combinations(range(captions.shape[1]), 2):
            products = rows[:, first] * rows[:, second]
            cosines = products.sum(dim=1).double().numpy()
            # An image with fewer captions repeats them: a caption would be compared with itself.
            cosine_blocks.append(cosines[counts > second])
    cosines = np.concatenate(cosine_blocks)
    return float(np.median(cosines)) if len(cosines) else math.nan


def strongest_pairs(
    image_teacher: Embeddings,
    text_teacher: Embeddings,
    sample: Sample,
    n_pairs: int,
    block: int = 512,
    advance: Advance = silent,
) -> tuple[dict[str, list[Positions]], int]:
    """Find the most similar pairs of different images in a sample, comparing all with all.

    The text similarity of two images is that of the most similar two of their captions. Equally
    similar pairs are in the order of the sample.

    Args:
        image_teacher: Rows of the images.
        text_teacher: Rows of the captions.
        sample: Images with their captions.
        n_pairs: Number of pairs in each ranking.
        block: Number of images per block; ``(m * block) ** 2`` similarities are in memory.
        advance: Called after each two blocks.

    Returns:
        Pairs by ranking, most similar first; and the number of likely duplicates among all pairs.
    """
    rankings = dict.fromkeys(RANKINGS, _NO_PAIRS)
    n_duplicates = 0
    # Each two blocks once, including each block with itself.
    corners = list(combinations_with_replacement(range(0, len(sample.images), block), 2))
    for step, (start, later_start) in enumerate(corners, 1):
        chosen = slice(later_start, later_start + block)
        image_rows = teacher_rows(image_teacher, sample.images[chosen])
        columns = (image_rows, teacher_rows(text_teacher, sample.captions[chosen].T))
        if start == later_start:
            rows = columns
        similarities = _similarities(rows, columns)
        for name, scores in similarities.items():
            rankings[name] = _merge(rankings[name], scores, (start, later_start), n_pairs)
        n_duplicates += int((similarities["image"] >= DUPLICATE_COSINE).sum())
        advance("strongest pairs", step, len(corners))
    return _position_pairs(rankings), n_duplicates


def _position_pairs(rankings: dict[str, _Ranking]) -> dict[str, list[Positions]]:
    pairs = {}
    for name, (_, positions) in rankings.items():
        pairs[name] = list(zip(*positions.T.tolist(), strict=True))
    return pairs


def teacher_rows(
    teacher: Embeddings,
    row_numbers: np.ndarray,
) -> torch.Tensor:
    """Read rows of a teacher: float32 ``[*row_numbers.shape, d]``, L2-normalised."""
    rows = unit_rows(teacher.gather(row_numbers.ravel()))
    return torch.from_numpy(rows).view(*row_numbers.shape, -1)


def _similarities(
    rows: _TeacherRows,
    columns: _TeacherRows,
) -> dict[str, torch.Tensor]:
    """Compute the similarities of the images of two blocks, float32 ``[n, m]``, by ranking.

    Within one block, only the entries above the diagonal are kept, and all others are -inf: each
    pair counts once, and no image with itself.
    """
    row_images, row_captions = rows
    column_images, column_captions = columns
    by_image = row_images @ column_images.T
    by_caption = row_captions.flatten(0, 1) @ column_captions.flatten(0, 1).T
    # The axes are captions and images of the rows, then of the columns. Reducing one axis after the
    # other is five times as fast as both at once.
    by_caption = by_caption.view(*row_captions.shape[:2], *column_captions.shape[:2])
    by_text = by_caption.amax(dim=0).amax(dim=1)

    fused, _ = fuse_similarities(by_image, by_text, "dot")
    similarities = {"image": by_image, "text": by_text, "both": fused}
    if rows is columns:
        below_diagonal = torch.ones_like(by_image, dtype=torch.bool).tril()
        for scores in similarities.values():
            scores.masked_fill_(below_diagonal, -torch.inf)
    return similarities


def _merge(
    ranking: _Ranking,
    block_scores: torch.Tensor,
    corner: tuple[int, int],
    n_pairs: int,
) -> _Ranking:
    """Merge a block of scores into a ranking of the ``n_pairs`` best; -inf marks no pair.

    The corner holds the positions in the sample of the block's first row and first column.
    """
    best_scores, best_positions = ranking
    if n_pairs == 0:
        return ranking
    scores = block_scores.numpy()
    # Scores below the last of a full ranking cannot enter it, which excludes most of a block.
    least_score = best_scores[-1] if len(best_scores) == n_pairs else -np.inf
    is_eligible = (scores >= least_score) & (scores > -np.inf)

    positions = np.concatenate([best_positions, np.argwhere(is_eligible) + corner])
    all_scores = np.concatenate([best_scores, scores[is_eligible]])
    # The last key is the primary one: by score, then by position in the sample.
    first, second = positions.T
    order = np.lexsort((second, first, -all_scores))[:n_pairs]
    return all_scores[order], positions[order]
