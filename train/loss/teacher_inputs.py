"""The teachers' rows of a batch: converted to tensors, and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cusa.data.errors import EmbeddingsError
from cusa.train.loss.arrays import Rows, as_rows, rows_in_words
from cusa.train.loss.batch import LossBatch, TeacherRows
from cusa.train.loss.config import MODALITIES, LossConfig
from cusa.train.loss.rules.requirements import ARTICLES, missing_teacher, teachers_read

TeacherArgument = Rows | Sequence[Rows] | None
CrossTeachers = Sequence[tuple[Rows, Rows]] | None

# Matrices of all kinds of teachers: ranks that gather exchange a header of fixed length.
MOST_TEACHER_ROWS = 16

_ARGUMENTS = {
    "image": "teacher_image",
    "text": "teacher_text",
    "image or text": "teacher_image",
    "cross-modal": "cross_teachers",
}


def with_teachers(
    batch: LossBatch,
    teacher: Sequence[TeacherArgument],
    cross_teachers: CrossTeachers,
    config: LossConfig,
) -> LossBatch:
    """Add the rows of the teachers that a term needs, detached.

    Args:
        batch: The batch without them.
        teacher: Rows of the image teachers and of the text teachers, one or several each.
        cross_teachers: Image rows and text rows of each cross-modal teacher.
        config: Settings of the loss.

    Raises:
        EmbeddingsError: If rows are missing, or are no rows; ``name`` is the argument.
    """
    uni = [_uni_rows(batch, *named) for named in zip(MODALITIES, teacher, strict=True)]
    cross = _cross_rows(batch, cross_teachers)
    _require_teachers(config, {"image": uni[0], "text": uni[1], "cross-modal": cross[0]})
    kinds = teachers_read(config)
    for position, modality in enumerate(MODALITIES):
        if modality not in kinds:
            uni[position] = []
    if "cross-modal" not in kinds:
        cross = [[], []]
    batch = batch._replace(teacher=uni, cross_teacher=cross)
    _check_numbers(batch, config)
    return batch


def _require_teachers(
    config: LossConfig,
    given: Mapping[str, Sequence[Tensor]],
) -> None:
    """Refuse to do without the rows of a teacher that a term needs."""
    kinds = [kind for kind, rows in given.items() if rows]
    missing = missing_teacher(config, kinds)
    if missing is not None:
        kind, user = missing
        raise EmbeddingsError(
            f"{user} needs {ARTICLES[kind]} {kind} teacher, and the batch has rows of "
            f"{', '.join(kinds) or 'none'}; give {_ARGUMENTS[kind]}, or change loss.rule, "
            "loss.terms, loss.soft_label_modalities or loss.soft_label_source",
            name=_ARGUMENTS[kind],
        )


def _uni_rows(
    batch: LossBatch,
    modality: str,
    argument: TeacherArgument,
) -> list[Tensor]:
    """Return the rows of each teacher of a modality."""
    name = f"teacher_{modality}"
    if argument is None:
        return []
    if isinstance(argument, Tensor | np.ndarray) or not isinstance(argument, Sequence):
        return [_teacher_rows(batch, argument, name)]
    tensors = []
    for number, rows in enumerate(argument):
        tensors.append(_teacher_rows(batch, rows, _numbered(name, number, len(argument))))
    return tensors


def _cross_rows(
    batch: LossBatch,
    cross_teachers: CrossTeachers,
) -> list[list[Tensor]]:
    """Return the image rows and the text rows of each cross-modal teacher."""
    image_rows, text_rows = [], []
    if cross_teachers is None:
        cross_teachers = ()
    if not isinstance(cross_teachers, Sequence):
        raise EmbeddingsError(
            "cross_teachers must be a list with the image rows and the text rows of each teacher, "
            f"got {type(cross_teachers).__name__}; give [(image_rows, text_rows)]",
            name="cross_teachers",
        )
    for number, pair in enumerate(cross_teachers):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise EmbeddingsError(
                f"cross_teachers[{number}] must be a teacher's image rows and its text rows, got "
                f"{type(pair).__name__}",
                name="cross_teachers",
            )
        image_rows.append(_teacher_rows(batch, pair[0], f"cross_teachers[{number}][0]"))
        text_rows.append(_teacher_rows(batch, pair[1], f"cross_teachers[{number}][1]"))
    return [image_rows, text_rows]


def _teacher_rows(
    batch: LossBatch,
    rows: Rows,
    name: str,
) -> Tensor:
    n_candidates = len(batch.candidate_cross[0])
    # No gradient flows into the teacher.
    return as_rows(rows, batch.cross[0].device, name, (n_candidates, None)).detach()


def _check_numbers(
    batch: LossBatch,
    config: LossConfig,
) -> None:
    """Refuse too many teachers, and weights or temperatures of another number of them."""
    n_teachers = {
        "image": len(batch.teacher[0]),
        "text": len(batch.teacher[1]),
        "cross": len(batch.cross_teacher[0]),
    }
    n_matrices = sum(n_teachers.values()) + n_teachers["cross"]
    if n_matrices > MOST_TEACHER_ROWS:
        raise EmbeddingsError(
            f"a loss takes at most {MOST_TEACHER_ROWS} matrices of teacher rows, two for each "
            f"cross-modal teacher, got {n_matrices}; leave some teachers out",
            name="teacher_image",
        )
    for kind, number in n_teachers.items():
        for setting in (f"{kind}_teacher_weights", f"{kind}_teacher_taus"):
            values = getattr(config, setting)
            if number and values and len(values) != number:
                raise EmbeddingsError(
                    f"loss.{setting} has {len(values)} numbers for {number} teachers; give one "
                    "for each, or leave it empty",
                    name=setting,
                )


def named_rows(
    teacher: TeacherRows,
    cross_teacher: TeacherRows,
) -> Iterator[tuple[str, Tensor, int | None]]:
    """Yield each teacher's rows with their name and their columns; ``None``: any."""
    for modality, rows_of_teachers in zip(MODALITIES, teacher, strict=True):
        n_teachers = len(rows_of_teachers)
        for number, rows in enumerate(rows_of_teachers):
            yield _numbered(f"teacher_{modality}", number, n_teachers), rows, None
    for number, (image_rows, text_rows) in enumerate(zip(*cross_teacher, strict=True)):
        yield f"cross_teachers[{number}][0]", image_rows, None
        # Both modalities are compared with each other.
        yield f"cross_teachers[{number}][1]", text_rows, image_rows.shape[-1]


def _numbered(
    name: str,
    number: int,
    n_teachers: int,
) -> str:
    return name if n_teachers == 1 else f"{name}[{number}]"


def check_teacher_rows(batch: LossBatch) -> None:
    """Refuse teacher rows that cannot be normalised.

    Raises:
        EmbeddingsError: If a row is zero or has no finite length; ``location`` is the rows.
    """
    # Most lengths are seen in float32; only float64 tells the others from zero and infinity.
    for dtype in (torch.float32, torch.float64):
        usable = _usable_rows(batch, dtype)
        # Wait for a GPU once, not once per teacher.
        if not usable or torch.stack([rows.all() for rows in usable.values()]).all():
            return
    for name, is_usable in usable.items():
        row_numbers = (~is_usable).nonzero().flatten().tolist()
        if not row_numbers:
            continue
        location = rows_in_words(row_numbers)
        raise EmbeddingsError(
            f"{location} of {name} are zero or have no finite length ({len(row_numbers)} of "
            f"{len(is_usable)} in the batch); leave these pairs out, or make the rows again",
            location=location,
            name=name,
        )


def _usable_rows(
    batch: LossBatch,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Return by name which rows have a finite length in a dtype that is not zero: bool ``[M]``."""
    usable: dict[str, Tensor] = {}
    for name, rows, _ in named_rows(batch.teacher, batch.cross_teacher):
        lengths = torch.linalg.vector_norm(rows.to(dtype), dim=1)
        is_usable = (lengths > 0) & lengths.isfinite()
        usable[name] = is_usable if batch.mask is None else is_usable | ~batch.mask
    return usable


def with_mean_similarities(
    batch: LossBatch,
    config: LossConfig,
) -> LossBatch:
    """Join several teachers of a modality to one, whose cosines are their weighted mean.

    Rows of length one are scaled by the square roots of the weights and put side by side: one
    product then sums the weighted cosines.

    Args:
        batch: With teacher rows of length one.
        config: Settings; with ``teacher_mean="labels"``, nothing is joined.
    """
    if config.teacher_mean == "labels":
        return batch
    joined = []
    for modality, rows_of_teachers in zip(MODALITIES, batch.teacher, strict=True):
        if len(rows_of_teachers) < 2:
            joined.append(rows_of_teachers)
            continue
        scaled = []
        weights = teacher_weights(config, modality, len(rows_of_teachers))
        for weight, rows in zip(weights, rows_of_teachers, strict=True):
            scaled.append(weight**0.5 * rows)
        joined.append([torch.cat(scaled, dim=1)])
    return batch._replace(teacher=joined)


def teacher_weights(
    config: LossConfig,
    kind: str,
    n_teachers: int,
) -> list[float]:
    """Return the weights of some teachers, which sum to one.

    Args:
        config: Settings.
        kind: ``"image"``, ``"text"`` or ``"cross"``.
        n_teachers: How many there are.
    """
    weights = getattr(config, f"{kind}_teacher_weights")
    # Joined teachers are one, whatever the weights.
    if n_teachers != len(weights):
        return [1 / n_teachers] * n_teachers
    return [weight / sum(weights) for weight in weights]
