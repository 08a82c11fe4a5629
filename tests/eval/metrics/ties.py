"""Equal embeddings tie: every ranking function against the rule spelled out, on many shapes with
copies of rows.

``python -c 'from tests.eval.metrics.ties import check_shapes; check_shapes()'`` runs it under other
settings of the BLAS.
"""

from __future__ import annotations

import numpy as np

from cusa.eval.metrics.by_class import image_retrieval
from cusa.eval.metrics.caption_images import cross_modal_relevance
from cusa.eval.metrics.full_ranking import rank_all
from cusa.eval.metrics.ranks import rank_bounds, two_way_rank_bounds

_CLEAR = 1e-4  # scores that are closer may change places with the rounding; equal ones never do


def check_shapes(n_shapes: int = 250) -> None:
    """Raise AssertionError at the first shape where equal rows do not tie."""
    for seed in range(n_shapes):
        for dtype in (np.float32, np.float64):
            rng = np.random.default_rng(seed)
            _check_both_ways(rng, dtype)
            _check_one_set(rng, dtype)


def _with_copies(rng: np.random.Generator, dtype: type, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of which some are equal, and which of the different rows each is."""
    n_rows, n_different = int(rng.integers(2, 60)), int(rng.integers(1, 40))
    which = rng.integers(0, n_different, n_rows)
    return rng.normal(size=(n_different, dim)).astype(dtype)[which], which


def _exact_products(
    queries: np.ndarray, candidates: np.ndarray, which: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """float64 ``[n, m]``: once for two different rows, so that equal rows have equal products."""
    scores = np.empty((len(queries), len(candidates)))
    products: dict[tuple[int, int], float] = {}
    for i, query in enumerate(which[0].tolist()):
        for j, candidate in enumerate(which[1].tolist()):
            if (query, candidate) not in products:
                products[query, candidate] = float(
                    queries[i].astype(np.float64) @ candidates[j].astype(np.float64)
                )
            scores[i, j] = products[query, candidate]
    return scores


def _check(
    bounds, scores: np.ndarray, indptr: np.ndarray, indices: np.ndarray, exclude=None
) -> None:
    """Compare ranks with the rule, where no score is close to the best one without being equal."""
    for query in range(len(scores)):
        row, relevant = scores[query].copy(), indices[indptr[query] : indptr[query + 1]]
        if not len(relevant):
            assert bounds.pessimistic[query] == bounds.optimistic[query] == -1
            continue
        best = row[relevant].max()
        if exclude is not None:
            row[exclude[query]] = -np.inf
        if ((row != best) & (np.abs(row - best) < _CLEAR)).any():
            continue
        irrelevant = np.delete(row, relevant)
        assert bounds.pessimistic[query] == np.count_nonzero(irrelevant >= best)
        assert bounds.optimistic[query] == np.count_nonzero(irrelevant > best)


def _check_both_ways(rng: np.random.Generator, dtype: type) -> None:
    dim = int(rng.integers(1, 90))
    (images, which_image), (texts, which_text) = (_with_copies(rng, dtype, dim) for _ in range(2))
    caption_image = rng.integers(-1, len(images), len(texts))
    scores = _exact_products(images, texts, (which_image, which_text))
    i2t, t2i = cross_modal_relevance(caption_image, len(images))
    by_image, by_text = two_way_rank_bounds(images, texts, caption_image)
    for bounds in (by_image, rank_bounds(images, texts, *i2t), rank_all(images, texts, *i2t).best):
        _check(bounds, scores, *i2t)
    for bounds in (by_text, rank_bounds(texts, images, *t2i)):
        _check(bounds, scores.T, *t2i)


def _check_one_set(rng: np.random.Generator, dtype: type) -> None:
    """All equal, half of them relevant: the others are ahead, whatever is near by rounding."""
    n, dim = int(rng.integers(4, 60)), int(rng.integers(1, 1100))
    rows = np.tile(rng.normal(size=dim).astype(dtype), (n, 1))
    for normalize in (True, False):
        figures = image_retrieval(rows, np.arange(n) * 2 // n, normalize=normalize)
        assert (figures["r1"], figures["r_precision"], figures["tied"]) == (0.0, 0.0, n), (
            n,
            dim,
            normalize,
        )
