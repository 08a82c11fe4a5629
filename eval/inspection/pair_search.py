"""Search for the most similar pairs of images, comparing all with all block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from cusa.data.store.reader import Embeddings
from cusa.data.unit_rows import unit_rows
from cusa.train.loss.functions import fuse_similarities

# Captions of an image that are compared.
MAX_CAPTIONS = 5
# Cosine from which two images are likely the same picture.
DUPLICATE_COSINE = 0.999
RANKINGS = ("image", "text", "both")

# Called with the task, the steps done, and the number of steps.
Advance = Callable[[str, int, int], None]

# Positions of two images in a sample, the first being the lesser.
Positions = tuple[int, int]


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
        captions: int64 ``[n, m]``: the first m captions of each image, repeated from the first on
            where it has fewer.
        counts: int64 ``[n]``: how many of them are different, 1 to m.
    """

    images: np.ndarray
    captions: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class _TeacherBlock:
    """L2-normalised float32 teacher rows of some images of the sample.

    Attributes:
        start: Position of the first image in the sample.
        images: ``[n, d]``.
        captions: ``[m, n, e]``.
    """

    start: int
    images: torch.Tensor
    captions: torch.Tensor


@dataclass(frozen=True)
class _Ranking:
    """The most similar pairs so far, most similar first.

    Attributes:
        scores: float ``[k]``.
        positions: int64 ``[k, 2]``, positions in the sample.
    """

    scores: np.ndarray
    positions: np.ndarray


_NO_PAIRS = _Ranking(
    scores=np.zeros(0),
    positions=np.zeros((0, 2), np.int64),
)


def draw_sample(
    image_rows: np.ndarray,
    caption_rows: np.ndarray,
    n_images: int,
    seed: int,
) -> Sample:
    """Draw random images of trainable pairs, all if there are no more than ``n_images``.

    Args:
        image_rows: int64 ``[p]``: the image row of each pair.
        caption_rows: int64 ``[p]``: its caption row.
        n_images: Number of images to draw.
        seed: Seed of the choice.
    """
    # The captions of an image side by side, in the order of the split.
    order = np.lexsort((caption_rows, image_rows))
    images, starts, counts = np.unique(
        image_rows[order],
        return_index=True,
        return_counts=True,
    )
    rng = np.random.default_rng(seed)
    n_drawn = min(n_images, len(images))
    drawn = rng.choice(len(images), n_drawn, replace=False)
    drawn.sort()

    # An image's captions from its first on, and again from the first where it has fewer.
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
        block: Images at once.
    """
    cosine_blocks = [np.zeros(0)]
    for start in range(0, len(sample.images), block):
        counts = sample.counts[start : start + block]
        captions = sample.captions[start : start + block]
        n_most = captions.shape[1]
        rows = teacher_rows(text_teacher, captions)
        for first, second in combinations(range(n_most), 2):
            products = rows[:, first] * rows[:, second]
            cosines = products.sum(dim=1).double().numpy()
            # An image with fewer captions repeats them, and would be compared with itself.
            has_both = counts > second
            cosine_blocks.append(cosines[has_both])
    cosines = np.concatenate(cosine_blocks)
    if not len(cosines):
        return math.nan
    return float(np.median(cosines))


def strongest_pairs(
    image_teacher: Embeddings,
    text_teacher: Embeddings,
    sample: Sample,
    n_pairs: int,
    block: int = 512,
    advance: Advance = silent,
) -> tuple[dict[str, list[Positions]], int]:
    """Find the most similar pairs of different images in a sample, comparing all with all.

    Two images are as similar in text as the most similar two of their captions. Of equal pairs, the
    first in the sample come first.

    Args:
        image_teacher: Rows of the images.
        text_teacher: Rows of the captions.
        sample: Images with their captions.
        n_pairs: Pairs in each ranking.
        block: Images at once; ``(m * block) ** 2`` similarities are in memory.
        advance: Called after each block.

    Returns:
        The most similar pairs by ranking, most similar first; and the number of pairs of images
        with a cosine of at least ``DUPLICATE_COSINE``.
    """
    rankings = dict.fromkeys(RANKINGS, _NO_PAIRS)
    n_duplicates = 0
    n_blocks = math.ceil(len(sample.images) / block)
    n_steps = math.comb(n_blocks + 1, 2)
    block_pairs = _block_pairs(image_teacher, text_teacher, sample, block)
    for step, (rows, columns) in enumerate(block_pairs, 1):
        similarities = _similarities(rows, columns)
        corner = (rows.start, columns.start)
        for name, scores in similarities.items():
            rankings[name] = _merge(rankings[name], scores.numpy(), corner, n_pairs)
        n_duplicates += int((similarities["image"] >= DUPLICATE_COSINE).sum())
        advance("strongest pairs", step, n_steps)
    return _position_pairs(rankings), n_duplicates


def teacher_rows(teacher: Embeddings, row_numbers: np.ndarray) -> torch.Tensor:
    """Read rows of a teacher: float32 ``[*row_numbers.shape, d]``, L2-normalised."""
    rows = unit_rows(teacher.gather(row_numbers.ravel()))
    return torch.from_numpy(rows).view(*row_numbers.shape, -1)


def _block_pairs(
    image_teacher: Embeddings,
    text_teacher: Embeddings,
    sample: Sample,
    size: int,
) -> Iterator[tuple[_TeacherBlock, _TeacherBlock]]:
    """Read each two blocks of the sample once, a block with itself first."""

    def read(start: int) -> _TeacherBlock:
        images = sample.images[start : start + size]
        captions = sample.captions[start : start + size]
        return _TeacherBlock(
            start,
            images=teacher_rows(image_teacher, images),
            captions=teacher_rows(text_teacher, captions.T),
        )

    starts = range(0, len(sample.images), size)
    for number, start in enumerate(starts):
        rows = read(start)
        yield rows, rows
        for later_start in starts[number + 1 :]:
            yield rows, read(later_start)


def _similarities(
    rows: _TeacherBlock,
    columns: _TeacherBlock,
) -> dict[str, torch.Tensor]:
    """Compute how similar the images of two blocks are, float32 ``[n, m]`` by ranking.

    Within a block each pair has a similarity once, and no image with itself; the rest is -inf.
    """
    by_image = rows.images @ columns.images.T

    all_row_captions = rows.captions.flatten(0, 1)
    all_column_captions = columns.captions.flatten(0, 1)
    by_caption = (all_row_captions @ all_column_captions.T).view(
        len(rows.captions),
        len(rows.images),
        len(columns.captions),
        len(columns.images),
    )
    # One axis after the other is five times as fast as both at once.
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
    scores: np.ndarray,
    corner: tuple[int, int],
    n_pairs: int,
) -> _Ranking:
    """Take the ``n_pairs`` best of a ranking and of a block of scores.

    Args:
        ranking: The best so far.
        scores: float ``[n, m]``; -inf stands for no score.
        corner: Position in the sample of the block's first row and column.
        n_pairs: How many to keep.
    """
    if n_pairs == 0:
        return ranking
    # Scores below the last of a full ranking cannot enter it: most of a block is dropped here.
    is_full = len(ranking.scores) == n_pairs
    least_score = ranking.scores[-1] if is_full else -np.inf
    is_eligible = (scores >= least_score) & (scores > -np.inf)

    eligible = np.argwhere(is_eligible)
    positions = np.concatenate([ranking.positions, eligible + corner])
    all_scores = np.concatenate([ranking.scores, scores[is_eligible]])

    # The last key sorts first: by score, then by position in the sample.
    first, second = positions.T
    order = np.lexsort((second, first, -all_scores))[:n_pairs]
    return _Ranking(all_scores[order], positions[order])


def _position_pairs(rankings: dict[str, _Ranking]) -> dict[str, list[Positions]]:
    by_ranking = {}
    for name, ranking in rankings.items():
        by_ranking[name] = [(first, second) for first, second in ranking.positions.tolist()]
    return by_ranking
