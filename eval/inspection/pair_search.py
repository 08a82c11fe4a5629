"""The strongest pairs of images that the teachers know, found by comparing all with all, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from cusa.data.store.reader import Embeddings
from cusa.data.unit_rows import unit_rows
from cusa.train.loss.functions import fuse_similarities

MOST_CAPTIONS = 5  # of an image, that are looked at
DUPLICATE = 0.999  # cosine from which two images are likely the same picture
RANKINGS = ("image", "text", "both")

# What is being done, steps done, and their number.
Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sample:
    """Images with their captions, by row of the split.

    Attributes:
        images: int64 ``[n]``, ascending.
        captions: int64 ``[n, m]``: the first m captions of each image, over again where it has fewer.
        counts: int64 ``[n]``: how many of them are different, 1 to m.
    """

    images: np.ndarray
    captions: np.ndarray
    counts: np.ndarray


def draw_sample(images: np.ndarray, captions: np.ndarray, n: int, seed: int) -> Sample:
    """Random images of trainable pairs, all if there are no more than ``n``.

    Args:
        images: int64 ``[p]``: the image row of each pair.
        captions: int64 ``[p]``: its caption row.
        n: Number of images.
        seed: Of the choice.
    """
    order = np.lexsort((captions, images))
    rows, starts, counts = np.unique(images[order], return_index=True, return_counts=True)
    picked = np.random.default_rng(seed).choice(len(rows), min(n, len(rows)), replace=False)
    picked.sort()
    counts = np.minimum(counts[picked], MOST_CAPTIONS)
    places = starts[picked, None] + np.arange(counts.max()) % counts[:, None]
    return Sample(rows[picked], captions[order][places], counts)


def same_image_cosine(text_teacher: Embeddings, sample: Sample, block: int = 512) -> float:
    """Median cosine of two captions of the same image; NaN if no image has two.

    Args:
        text_teacher: Rows of the captions.
        sample: Images with their captions.
        block: Images at once.
    """
    found = [np.zeros(0)]
    for a in range(0, len(sample.images), block):
        captions, counts = sample.captions[a : a + block], sample.counts[a : a + block]
        rows = teacher_rows(text_teacher, captions)
        for c, d in combinations(range(captions.shape[1]), 2):
            found.append((rows[:, c] * rows[:, d]).sum(dim=1).double().numpy()[counts > d])
    cosines = np.concatenate(found)
    return float(np.median(cosines)) if len(cosines) else math.nan


def strongest_pairs(
    image_teacher: Embeddings,
    text_teacher: Embeddings,
    sample: Sample,
    n: int,
    block: int = 512,
    advance: Advance = lambda what, done, total: None,
) -> tuple[dict[str, list[tuple[int, int]]], int]:
    """The strongest pairs of different images in a sample, by a search over all of them, block by block.

    Two images are as alike in text as the most similar two of their captions. Of equal pairs, the first in the sample
    come first.

    Args:
        image_teacher: Rows of the images.
        text_teacher: Rows of the captions.
        sample: Images with their captions.
        n: How many of each ranking.
        block: Images at once: memory is that of ``(m * block) ** 2`` similarities and of the blocks' rows.
        advance: Told how far the search is.

    Returns:
        For each of ``RANKINGS`` positions ``(i, j)`` in the sample, i < j, strongest first; and how many pairs of
        images have a cosine of at least ``DUPLICATE``.
    """
    starts = range(0, len(sample.images), block)
    best = {ranking: (np.zeros(0), np.zeros((0, 2), np.int64)) for ranking in RANKINGS}
    n_duplicates = done = 0
    total = len(starts) * (len(starts) + 1) // 2
    for a in starts:
        images, captions = _block(image_teacher, text_teacher, sample, a, block)
        for b in starts[a // block :]:
            others = (
                (images, captions)
                if b == a
                else _block(image_teacher, text_teacher, sample, b, block)
            )
            by_image = images @ others[0].T
            by_text = (captions.flatten(0, 1) @ others[1].flatten(0, 1).T).view(
                len(captions), len(images), len(others[1]), len(others[0])
            )
            by_text = by_text.amax(dim=0).amax(dim=1)  # five times as fast as both at once
            by_both, _ = fuse_similarities(by_image, by_text, "dot")
            for ranking, scores in zip(RANKINGS, (by_image, by_text, by_both), strict=True):
                if a == b:  # each pair once, and no image with itself
                    scores.masked_fill_(
                        torch.ones_like(scores, dtype=torch.bool).tril(), -torch.inf
                    )
                best[ranking] = _best(best[ranking], scores.numpy(), a, b, n)
            n_duplicates += int((by_image >= DUPLICATE).sum())
            done += 1
            advance("strongest pairs", done, total)
    return {
        ranking: [(i, j) for i, j in places.tolist()] for ranking, (_, places) in best.items()
    }, n_duplicates


def teacher_rows(teacher: Embeddings, numbers: np.ndarray) -> torch.Tensor:
    """float32 ``[*numbers.shape, d]``, L2-normalised."""
    rows = unit_rows(teacher.gather(numbers.ravel()))
    return torch.from_numpy(rows).view(*numbers.shape, -1)


def _block(
    image_teacher: Embeddings, text_teacher: Embeddings, sample: Sample, start: int, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images ``[n, d]`` and captions ``[m, n, e]``, L2-normalised."""
    part = slice(start, start + size)
    return teacher_rows(image_teacher, sample.images[part]), teacher_rows(
        text_teacher, sample.captions[part].T
    )


def _best(
    best: tuple[np.ndarray, np.ndarray], scores: np.ndarray, a: int, b: int, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """The n best of those so far and of a block of scores whose corner is at (a, b); -inf is no score."""
    if n == 0:
        return best
    least = best[0][-1] if 0 < n == len(best[0]) else -np.inf
    i, j = np.nonzero((scores >= least) & (scores > -np.inf))
    values = np.concatenate([best[0], scores[i, j]])
    places = np.concatenate([best[1], np.stack([i + a, j + b], axis=1)])
    order = np.lexsort((places[:, 1], places[:, 0], -values))[:n]
    return values[order], places[order]
