"""What a loss is computed from: taken as tensors, checked, normalised, turned into similarities."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cusa.data.errors import EmbeddingsError
from cusa.train.loss.arrays import Rows, as_ids, as_rows, rows_in_words
from cusa.train.loss.config import Term
from cusa.train.loss.unit_features import unit_features

ImageText = tuple[Tensor, Tensor]  # one of the images, one of the texts

_ARGUMENTS = (
    ("image_features", "text_features"),
    ("uni_image_features", "uni_text_features"),
    ("teacher_image", "teacher_text"),
)


class LossInputs(NamedTuple):
    """What a loss is computed from, of the images and of the texts each.

    Embeddings ``[B, d]``; or similarities ``[n, m]`` of n queries with m candidates.

    Attributes:
        cross: Of the cross-modal heads; as similarities, image-to-text and text-to-image.
        uni: Of the uni-modal heads, if a term needs them.
        teacher: Of the teachers, if a term needs them.
    """

    cross: ImageText
    uni: ImageText | None
    teacher: ImageText | None

    def tensors(self) -> list[Tensor]:
        """Return all tensors."""
        return [tensor for _, tensor in self.named_tensors()]

    def named_tensors(self) -> list[tuple[str, Tensor]]:
        """Return all tensors with their names as arguments of the loss."""
        named: list[tuple[str, Tensor]] = []
        for names, pair in zip(_ARGUMENTS, self, strict=True):
            if pair is not None:
                named += zip(names, pair, strict=True)
        return named

    def map(self, function: Callable[[Tensor], Tensor]) -> LossInputs:
        """Return a function of each tensor."""
        cross = function(self.cross[0]), function(self.cross[1])
        return LossInputs(
            cross,
            _of_each(self.uni, function),
            _of_each(self.teacher, function),
        )


def _of_each(
    pair: ImageText | None,
    function: Callable[[Tensor], Tensor],
) -> ImageText | None:
    if pair is None:
        return None
    return function(pair[0]), function(pair[1])


def require_tensors(**features: object) -> None:
    """Refuse a student's features that are no tensors: nothing could be learnt from the loss.

    Raises:
        EmbeddingsError: Names them.
    """
    for name, value in features.items():
        if value is not None and not isinstance(value, Tensor):
            message = f"{name} must be a tensor, got {type(value).__name__}"
            raise EmbeddingsError(message, name=name)


def take_inputs(
    cross: ImageText,
    uni: tuple[Tensor | None, Tensor | None],
    teacher: tuple[Rows | None, Rows | None],
    image_ids: Rows | None,
    terms: tuple[Term, ...],
) -> tuple[LossInputs, Tensor | None, EmbeddingsError | None]:
    """Take what the terms need as tensors where the features are, and check it.

    Args:
        cross: Features or similarities ``[B, ...]`` of the cross-modal heads.
        uni: Features of the uni-modal heads, as far as they are given.
        teacher: Teacher rows, as far as they are given.
        image_ids: The image of each pair, integers ``[B]``.
        terms: Terms of the loss.

    Returns:
        The inputs, without gradients of the teacher; the image ids; and what is wrong with them, if
        anything is. It is not raised here: with ``gather``, other ranks would wait for this one.
    """
    n_pairs = len(cross[0])
    device = cross[0].device
    teacher_image = teacher_text = ids = None
    try:
        if teacher[0] is not None:
            teacher_image = as_rows(teacher[0], device, "teacher_image", (n_pairs, None))
        if teacher[1] is not None:
            teacher_text = as_rows(teacher[1], device, "teacher_text", (n_pairs, None))
        if image_ids is not None:
            ids = as_ids(image_ids, device, "image_ids", (n_pairs,))
        inputs = _used_inputs(cross, uni, (teacher_image, teacher_text), terms)
        _check_inputs(inputs, ids, terms)
    except EmbeddingsError as error:
        return LossInputs(cross, None, None), None, error
    return inputs, ids, None


def _used_inputs(
    cross: ImageText,
    uni: tuple[Tensor | None, Tensor | None],
    teacher: tuple[Tensor | None, Tensor | None],
    terms: tuple[Term, ...],
) -> LossInputs:
    """Leave out what no term needs; no gradient flows into the teacher."""
    uni_image, uni_text = uni
    teacher_image, teacher_text = teacher
    used_uni = used_teacher = None
    if "usa" in terms and uni_image is not None and uni_text is not None:
        used_uni = uni_image, uni_text
    if _use_soft_labels(terms) and teacher_image is not None and teacher_text is not None:
        used_teacher = teacher_image.detach(), teacher_text.detach()
    return LossInputs(cross, used_uni, used_teacher)


def _use_soft_labels(terms: tuple[Term, ...]) -> bool:
    return "csa" in terms or "usa" in terms


def _check_inputs(
    inputs: LossInputs,
    image_ids: Tensor | None,
    terms: tuple[Term, ...],
) -> None:
    """Refuse a batch that does not fit the terms.

    While compiling, sizes and rows are not looked at.
    """
    if _use_soft_labels(terms) and inputs.teacher is None:
        message = "CSA and USA need teacher_image and teacher_text"
        raise EmbeddingsError(message, name="teacher_image")
    if "usa" in terms and inputs.uni is None:
        message = "USA needs uni_image_features and uni_text_features"
        raise EmbeddingsError(message, name="uni_image_features")
    # A graph that looks at values cannot be compiled as one.
    if not torch.compiler.is_compiling():
        _check_sizes(inputs, image_ids)
        _check_teacher_rows(inputs)


def _check_sizes(inputs: LossInputs, image_ids: Tensor | None) -> None:
    n_pairs = len(inputs.cross[0])
    if n_pairs == 0:
        message = "the batch is empty: a loss needs at least one pair"
        raise EmbeddingsError(message, name="image_features")
    for name, tensor in inputs.named_tensors():
        if tensor.ndim != 2 or len(tensor) != n_pairs:
            expected = f"features and teacher rows must be matrices of {n_pairs} rows"
            message = f"{expected} like the first, got {list(tensor.shape)}"
            raise EmbeddingsError(message, name=name)
    for name, rows in zip(_ARGUMENTS[2], inputs.teacher or (), strict=False):
        if not rows.is_floating_point():
            message = f"{name} must be of a floating-point type, got {rows.dtype}"
            raise EmbeddingsError(message, name=name)
    image_features, text_features = inputs.cross
    image_dim, text_dim = image_features.shape[1], text_features.shape[1]
    if image_dim != text_dim:
        expected = "image_features and text_features must have one dimension"
        message = f"{expected}, got {image_dim} and {text_dim}"
        raise EmbeddingsError(message, name="text_features")
    if image_ids is not None and image_ids.shape != (n_pairs,):
        message = f"image_ids must be [{n_pairs}], got {list(image_ids.shape)}"
        raise EmbeddingsError(message, name="image_ids")


def _check_teacher_rows(inputs: LossInputs) -> None:
    """Refuse teacher rows that have no direction."""
    if inputs.teacher is None:
        return
    usable = [_has_direction(rows) for rows in inputs.teacher]
    # One wait for a GPU, not one for each modality.
    if torch.stack([row_is_usable.all() for row_is_usable in usable]).all():
        return
    for modality, row_is_usable in zip(("image", "text"), usable, strict=True):
        rows = (~row_is_usable).nonzero().flatten().tolist()
        if not rows:
            continue
        location = rows_in_words(rows)
        problem = (
            f"the {modality} teacher's {location} of the batch are zero or have no finite length"
        )
        count = f"({len(rows)} of {len(row_is_usable)})"
        remedy = "leave these pairs out, or make the rows again"
        raise EmbeddingsError(
            f"{problem} {count}; {remedy}",
            location=location,
            name=f"teacher_{modality}",
        )


def _has_direction(rows: Tensor) -> Tensor:
    """Return which rows are finite and not zero: bool ``[n]``."""
    lengths = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return (lengths > 0) & lengths.isfinite()


def in_one_dtype(inputs: LossInputs) -> LossInputs:
    """Return the inputs in float32 or, if any feature of the student is float64, in that."""
    features = [*inputs.cross, *(inputs.uni or ())]
    dtype = torch.float32
    if any(tensor.dtype == torch.float64 for tensor in features):
        dtype = torch.float64
    return inputs.map(lambda tensor: tensor.to(dtype))


def normalized(
    inputs: LossInputs,
    with_cross: bool,
) -> LossInputs:
    """Return the inputs L2-normalised, in float32 or wider.

    Each stays in its own dtype: float32 does not hold the lengths of all float64 rows.

    Args:
        inputs: Embeddings.
        with_cross: Whether those of the cross-modal heads are to be normalised, too.
    """
    uni = _of_each(inputs.uni, _wide_unit_features)
    teacher = _of_each(inputs.teacher, _wide_unit_features)
    cross = inputs.cross
    if with_cross:
        cross = _wide_unit_features(cross[0]), _wide_unit_features(cross[1])
    return LossInputs(cross, uni, teacher)


def _wide_unit_features(features: Tensor) -> Tensor:
    wide_dtype = torch.promote_types(features.dtype, torch.float32)
    return unit_features(features.to(wide_dtype))


def all_similarities(
    features: LossInputs,
    queries: slice,
) -> LossInputs:
    """Return the similarities of some queries with all candidates.

    Args:
        features: L2-normalised ``[m, d]``.
        queries: The n queries, as positions among the m candidates.

    Returns:
        ``[n, m]`` each.
    """
    image, text = features.cross
    cross = similarities((image, text), (text, image), queries)
    return uni_similarities(features, queries)._replace(cross=cross)


def uni_similarities(
    features: LossInputs,
    queries: slice,
) -> LossInputs:
    """Return the similarities of some queries with all candidates of their own modality.

    ``cross`` stays as it is; otherwise as :func:`all_similarities`.
    """
    uni = teacher = None
    if features.uni is not None:
        uni = similarities(features.uni, features.uni, queries)
    if features.teacher is not None:
        teacher = similarities(features.teacher, features.teacher, queries)
    return LossInputs(features.cross, uni, teacher)


def similarities(
    features: ImageText,
    candidates: ImageText,
    queries: slice,
) -> ImageText:
    """Return the products of some rows of features with all candidates, ``[n, m]`` each."""
    image, text = features
    if queries.stop - queries.start < len(image):
        # Of all rows there is no slice: it would be a copy in the backward pass.
        image, text = image[queries], text[queries]
    return image @ candidates[0].T, text @ candidates[1].T
