"""The inputs of a loss: converted to tensors, checked, normalised, turned into similarities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cusa.data.errors import EmbeddingsError
from cusa.train.loss.arrays import Rows, as_ids, as_rows, rows_in_words
from cusa.train.loss.config import Term
from cusa.train.loss.unit_features import unit_features

ImageText = Sequence[Tensor]  # the images' tensor and the texts'; or empty

_ARGUMENTS = (
    ("image_features", "text_features"),
    ("uni_image_features", "uni_text_features"),
    ("teacher_image", "teacher_text"),
)


class LossInputs(NamedTuple):
    """The inputs of a loss, for images and for texts.

    They are embeddings ``[B, d]``, or similarities ``[n, m]`` of n queries and m candidates.

    Attributes:
        cross: From the cross-modal heads; as similarities, image-to-text and text-to-image.
        uni: From the uni-modal heads; empty if no term needs them.
        teacher: From the teachers; empty if no term needs them.
    """

    cross: ImageText
    uni: ImageText = ()
    teacher: ImageText = ()

    def tensors(self) -> list[Tensor]:
        """Return all tensors."""
        return [tensor for _, tensor in self.named_tensors()]

    def named_tensors(self) -> list[tuple[str, Tensor]]:
        """Return all tensors with the names of the loss's arguments."""
        named: list[tuple[str, Tensor]] = []
        for names, pair in zip(_ARGUMENTS, self, strict=True):
            named += zip(names, pair, strict=False)
        return named

    def map(self, function: Callable[[Tensor], Tensor]) -> LossInputs:
        """Apply a function to each tensor."""
        return LossInputs(*[[function(tensor) for tensor in pair] for pair in self])


def require_tensors(**features: object) -> None:
    """Refuse a student's features that are not tensors: the loss could not train anything.

    Raises:
        EmbeddingsError: If one is neither a tensor nor ``None``; ``name`` is the argument.
    """
    for name, value in features.items():
        if value is not None and not isinstance(value, Tensor):
            raise EmbeddingsError(f"{name} must be a tensor, got {type(value).__name__}", name=name)


def take_inputs(
    cross: ImageText,
    uni: tuple[Tensor | None, Tensor | None],
    teacher: tuple[Rows | None, Rows | None],
    image_ids: Rows | None,
    terms: tuple[Term, ...],
) -> tuple[LossInputs, Tensor | None, EmbeddingsError | None]:
    """Convert what the terms need to tensors on the features' device, and check it.

    Args:
        cross: Features or similarities ``[B, ...]`` of the cross-modal heads.
        uni: Features ``[B, ...]`` of the uni-modal heads, if given.
        teacher: Teacher rows ``[B, ...]``, if given.
        image_ids: The image of each pair, integers ``[B]``, if given.
        terms: Terms of the loss.

    Returns:
        The inputs, with the teacher's detached; the image ids; and what is wrong with them, if
        anything is. The error is not raised here: with ``gather``, other ranks would wait forever.
    """
    try:
        return *_checked_inputs(cross, uni, teacher, image_ids, terms), None
    except EmbeddingsError as error:
        return LossInputs(cross), None, error


def _checked_inputs(
    cross: ImageText,
    uni: tuple[Tensor | None, Tensor | None],
    teacher: tuple[Rows | None, Rows | None],
    image_ids: Rows | None,
    terms: tuple[Term, ...],
) -> tuple[LossInputs, Tensor | None]:
    n_pairs = len(cross[0])
    device = cross[0].device
    teacher_rows = []
    for name, rows in zip(_ARGUMENTS[2], teacher, strict=True):
        if rows is not None:
            # No gradient flows into the teacher.
            teacher_rows.append(as_rows(rows, device, name, (n_pairs, None)).detach())
    ids = None
    if image_ids is not None:
        ids = as_ids(image_ids, device, "image_ids", (n_pairs,))

    inputs = LossInputs(cross)
    if "csa" in terms or "usa" in terms:
        if len(teacher_rows) < 2:
            raise EmbeddingsError(
                "CSA and USA need teacher_image and teacher_text", name="teacher_image"
            )
        inputs = inputs._replace(teacher=teacher_rows)
    if "usa" in terms:
        if uni[0] is None or uni[1] is None:
            raise EmbeddingsError(
                "USA needs uni_image_features and uni_text_features", name="uni_image_features"
            )
        inputs = inputs._replace(uni=(uni[0], uni[1]))
    # These checks depend on values, which would break a compiled graph.
    if not torch.compiler.is_compiling():
        _check_sizes(inputs, ids)
        _check_teacher_rows(inputs)
    return inputs, ids


def _check_sizes(
    inputs: LossInputs,
    image_ids: Tensor | None,
) -> None:
    n_pairs = len(inputs.cross[0])
    if n_pairs == 0:
        raise EmbeddingsError(
            "the batch is empty: a loss needs at least one pair", name="image_features"
        )
    for name, tensor in inputs.named_tensors():
        if tensor.ndim != 2 or len(tensor) != n_pairs:
            raise EmbeddingsError(
                f"{name} must be a matrix of {n_pairs} rows, like the first one, got "
                f"{list(tensor.shape)}",
                name=name,
            )
    for name, rows in zip(_ARGUMENTS[2], inputs.teacher, strict=False):
        if not rows.is_floating_point():
            raise EmbeddingsError(
                f"{name} must be of a floating-point type, got {rows.dtype}", name=name
            )
    image_features, text_features = inputs.cross
    image_dim, text_dim = image_features.shape[1], text_features.shape[1]
    if image_dim != text_dim:
        raise EmbeddingsError(
            "image_features and text_features must have the same number of columns, got "
            f"{image_dim} and {text_dim}",
            name="text_features",
        )
    if image_ids is not None and image_ids.shape != (n_pairs,):
        raise EmbeddingsError(
            f"image_ids must be [{n_pairs}], got {list(image_ids.shape)}", name="image_ids"
        )


def _check_teacher_rows(inputs: LossInputs) -> None:
    """Refuse teacher rows that cannot be normalised."""
    if not inputs.teacher:
        return
    usable = [_can_be_normalized(rows) for rows in inputs.teacher]
    # Wait for a GPU once, not once per modality.
    if torch.stack([row_is_usable.all() for row_is_usable in usable]).all():
        return
    for modality, row_is_usable in zip(("image", "text"), usable, strict=True):
        rows = (~row_is_usable).nonzero().flatten().tolist()
        if not rows:
            continue
        location = rows_in_words(rows)
        raise EmbeddingsError(
            f"the {modality} teacher's {location} of the batch are zero or have no finite length "
            f"({len(rows)} of {len(row_is_usable)}); leave these pairs out, or make the rows again",
            location=location,
            name=f"teacher_{modality}",
        )


def _can_be_normalized(rows: Tensor) -> Tensor:
    """Return which rows have a finite length that is not zero: bool ``[n]``."""
    lengths = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return (lengths > 0) & lengths.isfinite()


def in_one_dtype(inputs: LossInputs) -> LossInputs:
    """Convert the inputs to float32, or to float64 if any of the student's features is float64."""
    is_wide = any(tensor.dtype == torch.float64 for tensor in (*inputs.cross, *inputs.uni))
    dtype = torch.float64 if is_wide else torch.float32
    return inputs.map(lambda tensor: tensor.to(dtype))


def normalized(
    inputs: LossInputs,
    with_cross: bool,
) -> LossInputs:
    """L2-normalise the inputs, in float32 or wider.

    Each tensor keeps its own dtype (float16 becomes float32): float32 cannot hold the lengths of
    all float64 rows.

    Args:
        inputs: Embeddings.
        with_cross: Whether to normalise those of the cross-modal heads, too.
    """
    if with_cross:
        return inputs.map(_wide_unit_features)
    return inputs._replace(cross=()).map(_wide_unit_features)._replace(cross=inputs.cross)


def _wide_unit_features(features: Tensor) -> Tensor:
    wide_dtype = torch.promote_types(features.dtype, torch.float32)
    return unit_features(features.to(wide_dtype))


def uni_similarities(
    features: LossInputs,
    queries: slice,
) -> LossInputs:
    """Compute the similarities of some queries and all candidates of their own modality.

    Args:
        features: L2-normalised, ``[m, d]`` each.
        queries: The n queries, as positions among the m candidates.

    Returns:
        ``[n, m]`` each; ``cross`` is returned as it is.
    """
    uni = similarities(features.uni, features.uni, queries)
    return LossInputs(
        features.cross, uni, similarities(features.teacher, features.teacher, queries)
    )


def similarities(
    features: ImageText,
    candidates: ImageText,
    queries: slice,
) -> ImageText:
    """Return the products of the queries' features and all candidates, ``[n, m]`` each."""
    if features and queries.stop - queries.start < len(features[0]):
        # Only slice if some rows are left out: a slice costs a copy in the backward pass.
        features = [rows[queries] for rows in features]
    return [rows @ candidate.T for rows, candidate in zip(features, candidates, strict=True)]
