"""The arguments of a loss: converted to tensors, and checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cusa.data.errors import EmbeddingsError
from cusa.train.loss.arrays import Rows, as_ids, as_mask, rows_in_words
from cusa.train.loss.batch import (
    NEITHER,
    NO_TEACHER,
    Candidates,
    ImageText,
    LossBatch,
    MaybeImageText,
    map_given,
    map_rows,
)
from cusa.train.loss.config import MODALITIES, LossConfig
from cusa.train.loss.teacher_inputs import (
    CrossTeachers,
    TeacherArgument,
    check_teacher_rows,
    named_rows,
    with_teachers,
)

_CANDIDATE_FEATURES = tuple(f"candidates.{field}" for field in Candidates._fields[:4])


def require_tensors(**features: object) -> None:
    """Refuse a student's features that are not tensors: the loss could not train anything.

    Raises:
        EmbeddingsError: If one is neither ``None`` nor a floating-point tensor with rows; ``name``
            is the argument.
    """
    for name, value in features.items():
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise EmbeddingsError(f"{name} must be a tensor, got {type(value).__name__}", name=name)
        if value.ndim == 0:
            raise EmbeddingsError(f"{name} must be a matrix, got a scalar", name=name)
        if not value.is_floating_point():
            raise EmbeddingsError(
                f"{name} must be of a floating-point type, got {value.dtype}", name=name
            )


def take_batch(
    cross: ImageText,
    uni: MaybeImageText,
    teacher: Sequence[TeacherArgument],
    cross_teachers: CrossTeachers,
    image_ids: Rows | None,
    candidates: Candidates | None,
    config: LossConfig,
) -> tuple[LossBatch, EmbeddingsError | None]:
    """Convert what the terms need to tensors on the features' device, and check it.

    Args:
        cross: Features or similarities ``[B, ...]`` from the cross-modal heads.
        uni: Features ``[B, ...]`` from the uni-modal heads, if given.
        teacher: Rows of the M candidates ``[M, ...]`` of image teachers and of text teachers, one
            or several each, if given.
        cross_teachers: Image rows and text rows of each cross-modal teacher, if given.
        image_ids: The image of each candidate, integers ``[M]``, if given.
        candidates: The M candidates; ``None``: the B pairs themselves.
        config: Settings of the loss.

    Returns:
        The batch, with the teacher's rows detached; and what is wrong with it, if anything is. The
        error is not raised here: with ``gather``, other ranks would wait forever.
    """
    own_rows = slice(0, len(cross[0]))
    bare = LossBatch(cross, NEITHER, cross, NEITHER, NO_TEACHER, NO_TEACHER, None, None, own_rows)
    try:
        batch = bare
        if candidates is not None:
            batch = _with_candidates(bare, candidates)
        batch = _with_ids(batch, image_ids)
        batch = with_teachers(batch, teacher, cross_teachers, config)
        if "usa" in config.terms:
            batch = _with_uni(batch, uni, candidates, config)
        _check(batch)
        return _with_empty_slots(batch), None
    except EmbeddingsError as error:
        return bare, error


def _with_candidates(
    batch: LossBatch,
    candidates: Candidates,
) -> LossBatch:
    if not isinstance(candidates, Candidates):
        raise EmbeddingsError(
            f"candidates must be cusa.Candidates, got {type(candidates).__name__}",
            name="candidates",
        )
    require_tensors(**dict(zip(_CANDIDATE_FEATURES, candidates[:4], strict=True)))
    for name, features in zip(_CANDIDATE_FEATURES[:2], candidates[:2], strict=True):
        if features is None:
            raise EmbeddingsError(f"{name} must be a tensor, got None", name=name)
    cross = candidates[:2]
    mask = candidates.mask
    if mask is not None:
        n_candidates = len(cross[0])
        mask = as_mask(mask, batch.cross[0].device, "candidates.mask", (n_candidates,))
    return batch._replace(candidate_cross=cross, mask=mask)


def _with_ids(
    batch: LossBatch,
    image_ids: Rows | None,
) -> LossBatch:
    if image_ids is None:
        return batch
    n_candidates = len(batch.candidate_cross[0])
    ids = as_ids(image_ids, batch.cross[0].device, "image_ids", (n_candidates,))
    return batch._replace(image_ids=ids)


def _with_uni(
    batch: LossBatch,
    uni: MaybeImageText,
    candidates: Candidates | None,
    config: LossConfig,
) -> LossBatch:
    """Add the uni-modal features of the modalities that have soft labels."""
    taught_uni = _where_taught(batch, uni, "", config)
    candidate_uni = taught_uni
    if candidates is not None:
        candidate_uni = _where_taught(batch, candidates[2:4], "candidates.", config)
    return batch._replace(uni=taught_uni, candidate_uni=candidate_uni)


def _where_taught(
    batch: LossBatch,
    features: MaybeImageText,
    prefix: str,
    config: LossConfig,
) -> MaybeImageText:
    """Return features of the modalities that have soft labels, and refuse to do without them."""
    taught: list[Tensor | None] = []
    for modality, rows, teacher in zip(MODALITIES, features, batch.teacher, strict=True):
        name = f"{prefix}uni_{modality}_features"
        is_taught = bool(teacher) and modality in config.soft_label_modalities
        if is_taught and rows is None:
            raise EmbeddingsError(f"USA needs {name} beside teacher_{modality}", name=name)
        taught.append(rows if is_taught else None)
    return taught


def _check(batch: LossBatch) -> None:
    # The checks depend on values, which would break a compiled graph.
    if torch.compiler.is_compiling():
        return
    _check_sizes(batch)
    _check_mask(batch)
    check_teacher_rows(batch)


def _check_sizes(batch: LossBatch) -> None:
    n_pairs = batch.rows.stop
    n_candidates = len(batch.candidate_cross[0])
    if n_pairs == 0:
        raise EmbeddingsError(
            "the batch is empty: a loss needs at least one pair", name="image_features"
        )
    if n_candidates < n_pairs:
        raise EmbeddingsError(
            f"candidates begin with the {n_pairs} pairs of the batch, but there are only "
            f"{n_candidates}; put the batch's own features before the queue's",
            name="candidates.image_features",
        )
    for name, tensor, n_rows, dim in _expected_sizes(batch):
        if tensor.ndim != 2 or tensor.shape != (n_rows, dim or tensor.shape[-1]):
            columns = "any" if dim is None else dim
            raise EmbeddingsError(
                f"{name} must be [{n_rows}, {columns}], got {list(tensor.shape)}", name=name
            )
    for name, rows, _ in named_rows(batch.teacher, batch.cross_teacher):
        if not rows.is_floating_point():
            raise EmbeddingsError(
                f"{name} must be of a floating-point type, got {rows.dtype}", name=name
            )
    if batch.image_ids is not None and batch.image_ids.shape != (n_candidates,):
        raise EmbeddingsError(
            f"image_ids must be [{n_candidates}], got {list(batch.image_ids.shape)}",
            name="image_ids",
        )


def _expected_sizes(batch: LossBatch) -> Iterator[tuple[str, Tensor, int, int | None]]:
    """Yield each matrix with its argument's name, its rows and its columns; ``None``: any."""
    n_pairs = batch.rows.stop
    n_candidates = len(batch.candidate_cross[0])
    has_candidates = batch.candidate_cross is not batch.cross
    dim = None
    for modality, features in zip(MODALITIES, batch.cross, strict=True):
        yield f"{modality}_features", features, n_pairs, dim
        # Both modalities are compared with each other.
        dim = features.shape[-1]
    if has_candidates:
        for modality, features in zip(MODALITIES, batch.candidate_cross, strict=True):
            yield f"candidates.{modality}_features", features, n_candidates, dim
    for number, modality in enumerate(MODALITIES):
        uni = batch.uni[number]
        if uni is not None:
            yield f"uni_{modality}_features", uni, n_pairs, None
        candidate_uni = batch.candidate_uni[number]
        if has_candidates and uni is not None and candidate_uni is not None:
            name = f"candidates.uni_{modality}_features"
            yield name, candidate_uni, n_candidates, uni.shape[-1]
    for name, rows, columns in named_rows(batch.teacher, batch.cross_teacher):
        yield name, rows, n_candidates, columns


def _check_mask(batch: LossBatch) -> None:
    mask = batch.mask
    if mask is None:
        return
    n_candidates = len(batch.candidate_cross[0])
    if mask.dtype != torch.bool or mask.shape != (n_candidates,):
        raise EmbeddingsError(
            f"candidates.mask must be bool [{n_candidates}], True where there is a candidate, got "
            f"{mask.dtype} {list(mask.shape)}",
            name="candidates.mask",
        )
    is_absent = ~mask[batch.rows]
    if is_absent.any():
        location = rows_in_words(is_absent.nonzero().flatten().tolist())
        raise EmbeddingsError(
            f"candidates.mask hides {location} of the batch itself; only slots of the queue, which "
            "come after the batch, can be empty",
            location=location,
            name="candidates.mask",
        )


def _with_empty_slots(batch: LossBatch) -> LossBatch:
    """Put zeros into the empty slots: NaN would remain NaN when multiplied by zero."""
    if batch.mask is None:
        return batch
    is_absent = ~batch.mask[:, None]

    def empty(rows: Tensor) -> Tensor:
        return rows.masked_fill(is_absent, 0)

    return batch._replace(
        candidate_cross=[empty(features) for features in batch.candidate_cross],
        candidate_uni=map_given(empty, batch.candidate_uni),
        teacher=map_rows(empty, batch.teacher),
        cross_teacher=map_rows(empty, batch.cross_teacher),
    )
