"""Tiles of a batch: the teachers' cosines of some queries, as matrices or as rows to multiply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from cusa.train.loss.batch import (
    NEITHER,
    NO_TEACHER,
    LossBatch,
    TeacherRows,
    in_one_dtype,
    normalized,
    products,
)
from cusa.train.loss.config import MODALITIES, LossConfig
from cusa.train.loss.rules.tile import CosinesOver, Teachers, Tile
from cusa.train.loss.teacher_inputs import (
    CrossTeachers,
    TeacherArgument,
    check_teacher_rows,
    teacher_weights,
    with_mean_similarities,
    with_teachers,
)

# Takes the rows of a teacher ``[M, e]``, those that they are compared with, and the queries.
MakeCosines = Callable[[Tensor, Tensor, slice], CosinesOver]


def as_matrix(
    rows: Tensor,
    candidates: Tensor,
    queries: slice,
) -> CosinesOver:
    """Return cosines as a matrix, which is computed once, when they are first asked for."""
    return _Matrix(rows, candidates, queries)


def as_product(
    rows: Tensor,
    candidates: Tensor,
    queries: slice,
) -> CosinesOver:
    """Return cosines that are computed when they are asked for."""
    return partial(_product, rows[queries], candidates)


class _Matrix:
    """A teacher's cosines, for several terms at several temperatures."""

    def __init__(self, rows: Tensor, candidates: Tensor, queries: slice) -> None:
        self._factors = (rows, candidates, queries)
        self._cosines: Tensor | None = None

    def __call__(self, tau: Tensor | float) -> Tensor:
        if self._cosines is None:
            self._cosines = products(*self._factors)
        return self._cosines / tau


def _product(query_rows: Tensor, candidates: Tensor, tau: Tensor | float) -> Tensor:
    # Divide [n, e] by the temperature, which is cheaper than dividing [n, M].
    return (query_rows / tau) @ candidates.T


def tiles_of_rows(
    teachers: Sequence[TeacherArgument],
    cross_teachers: CrossTeachers,
    image_ids: Tensor,
    config: LossConfig,
) -> tuple[Tile, Tile]:
    """Return a batch as two tiles, images and captions as queries, without a student.

    Args:
        teachers: Rows ``[B, e]`` of the image teachers and of the text teachers.
        cross_teachers: Image rows and text rows of each cross-modal teacher.
        image_ids: int64 ``[B]``.
        config: Settings of the loss.

    Raises:
        EmbeddingsError: If the loss lacks rows, or cannot use them.
    """
    no_features = [torch.zeros(len(image_ids), 1)] * 2
    queries = slice(0, len(image_ids))
    batch = LossBatch(
        no_features, NEITHER, no_features, NEITHER, NO_TEACHER, NO_TEACHER, image_ids, None, queries
    )
    batch = with_teachers(batch, teachers, cross_teachers, config)
    check_teacher_rows(batch)
    unit_batch = in_one_dtype(normalized(batch, with_cross=False))
    batch = with_mean_similarities(unit_batch, config)
    images = make_tile(batch, config, 0, queries, as_matrix)
    captions = make_tile(batch, config, 1, queries, as_matrix)
    return images, captions


def make_tile(
    batch: LossBatch,
    config: LossConfig,
    modality: int,
    queries: slice,
    make_cosines: MakeCosines,
) -> Tile:
    """Make the tile of some queries.

    Args:
        batch: L2-normalised, of one dtype.
        config: Settings of the loss.
        modality: Of the queries: 0 for images, 1 for captions.
        queries: Their positions.
        make_cosines: :func:`as_matrix` or :func:`as_product`.
    """
    uni = []
    for name, rows_of_teachers in zip(MODALITIES, batch.teacher, strict=True):
        cosines = [make_cosines(rows, rows, queries) for rows in rows_of_teachers]
        uni.append(_teachers(config, name, cosines))
    cross = cross_teachers(batch, config, modality, queries, make_cosines)
    candidates = batch.candidate_cross[1 - modality]
    return Tile(
        modality=modality,
        uni=(uni[0], uni[1]),
        cross=cross,
        student=None,
        queries=queries,
        reference=candidates,
        n_candidates=len(candidates),
        image_ids=batch.image_ids,
        mask=batch.mask,
    )


def cross_teachers(
    batch: LossBatch,
    config: LossConfig,
    modality: int,
    queries: slice,
    make_cosines: MakeCosines,
) -> Teachers:
    """Return the cross-modal teachers' cosines of some queries; arguments as of `make_tile`."""
    cosines = []
    rows_of_teachers: TeacherRows = (
        batch.cross_teacher[modality],
        batch.cross_teacher[1 - modality],
    )
    for rows, candidates in zip(*rows_of_teachers, strict=True):
        cosines.append(make_cosines(rows, candidates, queries))
    return _teachers(config, "cross", cosines)


def _teachers(
    config: LossConfig,
    kind: str,
    cosines: Sequence[CosinesOver],
) -> Teachers:
    weights = teacher_weights(config, kind, len(cosines)) if cosines else ()
    return Teachers(cosines, weights, getattr(config, f"{kind}_teacher_taus"))
