"""The teachers of a run: any number of each modality, and cross-modal ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")
Other = TypeVar("Other")

# The rows of no teacher, of one, or of several.
MaybeRows = Tensor | tuple[Tensor, ...] | None


@dataclass(frozen=True)
class TeacherSet(Generic[T]):
    """The teachers of a run, each described by its name, its provenance or its rows.

    Attributes:
        image: Image teachers, in the order of their weights.
        text: Text teachers.
        cross: Cross-modal teachers: image rows and text rows of each.
    """

    image: tuple[T, ...] = ()
    text: tuple[T, ...] = ()
    cross: tuple[tuple[T, T], ...] = ()

    def map(self, function: Callable[[T], Other]) -> TeacherSet[Other]:
        """Apply a function to each description."""
        cross = [(function(image), function(text)) for image, text in self.cross]
        return TeacherSet(
            image=tuple(map(function, self.image)),
            text=tuple(map(function, self.text)),
            cross=tuple(cross),
        )

    def __iter__(self) -> Iterator[T]:
        """Yield every description: of images, of captions, then of cross-modal teachers."""
        yield from self.image
        yield from self.text
        for pair in self.cross:
            yield from pair

    def by_kind(self) -> dict[str, tuple[T, ...]]:
        """Return the descriptions by ``"image"``, ``"text"`` and ``"cross"``, without empty kinds.

        Of a cross-modal teacher, its image rows are followed by its text rows.
        """
        both_rows = tuple(itertools.chain(*self.cross))
        kinds = {"image": self.image, "text": self.text, "cross": both_rows}
        return {kind: models for kind, models in kinds.items() if models}

    def __bool__(self) -> bool:
        """Return whether there is any teacher."""
        return bool(self.image or self.text or self.cross)

    @property
    def of_images(self) -> tuple[T, ...]:
        """Return all that have a row for each image."""
        return (*self.image, *(image for image, _ in self.cross))

    @property
    def of_captions(self) -> tuple[T, ...]:
        """Return all that have a row for each caption."""
        return (*self.text, *(text for _, text in self.cross))


@dataclass(frozen=True)
class TeacherTensors:
    """The teachers' rows of B pairs, as :class:`cusa.CUSALoss` takes them.

    Attributes:
        image: float16 or float32 ``[B, e]`` of the image teacher, a tuple of several teachers', or
            ``None``.
        text: The text teachers' likewise.
        cross: Image rows and text rows of each cross-modal teacher, ``[B, e]``.
    """

    image: MaybeRows
    text: MaybeRows
    cross: tuple[tuple[Tensor, Tensor], ...]


def gather_rows(
    teachers: TeacherSet[T],
    rows_of_images: Callable[[T], Tensor],
    rows_of_captions: Callable[[T], Tensor],
) -> TeacherTensors:
    """Gather the rows of a batch.

    Args:
        teachers: The teachers.
        rows_of_images: Gathers a teacher's rows for the images of the batch: ``[B, e]``.
        rows_of_captions: Gathers a teacher's rows for its captions.
    """
    cross = []
    for image, text in teachers.cross:
        cross.append((rows_of_images(image), rows_of_captions(text)))
    return TeacherTensors(
        image=_one_or_several([rows_of_images(teacher) for teacher in teachers.image]),
        text=_one_or_several([rows_of_captions(teacher) for teacher in teachers.text]),
        cross=tuple(cross),
    )


def _one_or_several(rows: Sequence[Tensor]) -> MaybeRows:
    if not rows:
        return None
    if len(rows) == 1:
        return rows[0]
    return tuple(rows)
