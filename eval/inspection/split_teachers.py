"""All teachers that have rows of a split, and what they say of its pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cusa.data.store.cross_teachers import cross_teachers
from cusa.data.store.embeddings import Embeddings
from cusa.data.store.reader import EmbeddingStore
from cusa.eval.inspection.pair_search import teacher_rows
from cusa.eval.inspection.results import TeacherKind


@dataclass(frozen=True)
class SplitTeacher:
    """A teacher with rows of a split.

    Attributes:
        name: Its name in the store.
        kind: ``"image"`` or ``"text"``, if it compares images or captions with each other;
            ``"cross"``, if it compares images with captions.
        image_rows: The rows of images; ``None`` for a text teacher.
        text_rows: The rows of captions; ``None`` for an image teacher.
    """

    name: str
    kind: TeacherKind
    image_rows: Embeddings | None
    text_rows: Embeddings | None

    @property
    def model_id(self) -> str:
        """Return the name of its model."""
        rows = self.image_rows or self.text_rows
        assert rows is not None, "a teacher has rows of a modality"
        return rows.settings.model_id

    def similarity(
        self,
        images: np.ndarray,
        captions: np.ndarray,
    ) -> torch.Tensor:
        """Return the cosines of B pairs: float32 ``[B, B]``.

        Those of a cross-modal teacher are of images, which are the rows, and captions.

        Args:
            images: int64 ``[B]``: image rows.
            captions: int64 ``[B]``: caption rows.
        """
        sides = []
        if self.image_rows is not None:
            sides.append(teacher_rows(self.image_rows, images))
        if self.text_rows is not None:
            sides.append(teacher_rows(self.text_rows, captions))
        return sides[0] @ sides[-1].T


def teachers_of_split(
    store: EmbeddingStore,
    split: str,
) -> list[SplitTeacher]:
    """Return the teachers that have rows of a split: image, text, then cross-modal ones.

    The two halves of a cross-modal teacher are also an image teacher and a text teacher.

    Args:
        store: The store.
        split: Name of the split.

    Raises:
        StoreError: If rows of a teacher are missing.
    """
    rows_of: dict[str, dict[str, Embeddings]] = {"image": {}, "text": {}}
    for name, settings in store.teachers.items():
        if split in store.splits_of(name):
            rows_of[settings.modality][name] = store.embeddings(name, split)
    teachers = []
    for name, rows in rows_of["image"].items():
        teachers.append(SplitTeacher(name, "image", rows, None))
    for name, rows in rows_of["text"].items():
        teachers.append(SplitTeacher(name, "text", None, rows))
    for name, (image_name, text_name) in cross_teachers(store.teachers).items():
        image_rows = rows_of["image"].get(image_name)
        text_rows = rows_of["text"].get(text_name)
        if image_rows is not None and text_rows is not None:
            teachers.append(SplitTeacher(name, "cross", image_rows, text_rows))
    return teachers
