"""A split of a store as it would be trained on, and the pairs that the page shows of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cusa.data.errors import DataError
from cusa.data.store.embeddings import Embeddings
from cusa.data.store.mapped_split import Split
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.teacher_choice import pick_cross_teachers
from cusa.eval.inspection.pair_search import (
    DUPLICATE_COSINE,
    Positions,
    Sample,
    teacher_rows,
)
from cusa.eval.inspection.results import Settings, StrongPair
from cusa.eval.report.gallery import Item
from cusa.train.chosen_teachers import require_teachers
from cusa.train.loader import EpochOrder, Pairs
from cusa.train.loss.config import LossConfig
from cusa.train.loss.functions import fuse_similarities
from cusa.train.loss.rules.requirements import needed_teachers
from cusa.train.student_inputs import StudentInputs
from cusa.train.teacher_set import TeacherSet
from cusa.train.used_teachers import with_logits_of


@dataclass(frozen=True)
class OpenedSplit:
    """A split of a store as it would be trained on, without the student's inputs.

    Attributes:
        split: The split.
        image_teacher: Rows of the image teacher.
        text_teacher: Rows of the text teacher.
        pairs: The trainable pairs.
        order: The batches of each epoch.
        image_rows: int64 ``[p]``: the image row of each pair.
        caption_rows: int64 ``[p]``: its caption row.
        n_images: Images that have a pair.
        image_root: Folder of the images.
        loss: The loss to show the targets of, at the temperatures and with the bias that the store
            records of its cross-modal teachers; ``None``: none.
    """

    split: Split
    image_teacher: Embeddings
    text_teacher: Embeddings
    pairs: Pairs
    order: EpochOrder
    image_rows: np.ndarray
    caption_rows: np.ndarray
    n_images: int
    image_root: Path
    loss: LossConfig | None

    def batches(self, n_batches: int) -> Iterator[np.ndarray]:
        """Yield the pairs of the first batches of a run, in as many epochs as that takes.

        Args:
            n_batches: How many batches.

        Returns:
            int64 ``[B]`` each.
        """
        for number in range(n_batches):
            self.order.epoch, batch_number = divmod(number, len(self.order))
            # A new epoch has a new order.
            if batch_number == 0:
                epoch_batches = list(self.order)
            yield epoch_batches[batch_number]

    def read_pair(
        self,
        sample: Sample,
        positions: Positions,
    ) -> StrongPair:
        """Look up two images of the sample, with the most similar two of their captions.

        Args:
            sample: The sample.
            positions: Positions of the two images in it.
        """
        chosen = list(positions)
        first_image, second_image = teacher_rows(self.image_teacher, sample.images[chosen])
        image_cosine = first_image @ second_image

        caption_rows = sample.captions[chosen]
        first_captions, second_captions = teacher_rows(self.text_teacher, caption_rows)
        text_cosines = first_captions @ second_captions.T
        first, second = divmod(int(text_cosines.argmax()), text_cosines.shape[1])
        text_cosine = text_cosines[first, second]

        # The loss fuses matrices, so each cosine is passed as a matrix of one entry.
        fused_cosines, _ = fuse_similarities(
            image_cosine.reshape(1, 1), text_cosine.reshape(1, 1), "dot"
        )
        first_row, second_row = sample.images[chosen].tolist()
        captions = self.split.captions
        return StrongPair(
            images=(self._item(first_row), self._item(second_row)),
            captions=(
                captions[int(caption_rows[0, first])],
                captions[int(caption_rows[1, second])],
            ),
            image_cosine=float(image_cosine),
            text_cosine=float(text_cosine),
            fused_cosine=fused_cosines.item(),
            is_duplicate=float(image_cosine) >= DUPLICATE_COSINE,
        )

    def _item(self, row: int) -> Item:
        path = self.image_root / self.split.image_paths[row]
        return Item("image", self.split.image_ids[row], path)


def _count_images(image_rows: np.ndarray, split: str) -> int:
    """Return the number of distinct images, of which soft labels need two."""
    n_images = len(np.unique(image_rows))
    if n_images < 2:
        raise DataError(
            f"split {split!r} has pairs of one image only, and soft labels need at least two "
            "images; pass another --split",
            name=split,
        )
    return n_images


def open_split(store: EmbeddingStore, settings: Settings) -> OpenedSplit:
    """Open a split as a training run would.

    Args:
        store: The store.
        settings: The split, the teachers and the batches to open.

    Raises:
        CusaError: If the split or a teacher does not exist, or the split has fewer pairs than a
            batch, or pairs of a single image only.
    """
    split = store.split(settings.split)
    image_name = store.pick_teacher("image", settings.image_teacher, "--image-teacher")
    text_name = store.pick_teacher("text", settings.text_teacher, "--text-teacher")
    image_teacher = store.embeddings(image_name, settings.split)
    text_teacher = store.embeddings(text_name, settings.split)

    inputs = _no_inputs(store, settings.split)
    cross_teachers = _cross_teachers(store, settings)
    loss = settings.loss
    if loss is not None:
        loss = with_logits_of(loss, [image_rows.settings for image_rows, _ in cross_teachers])
    teachers = TeacherSet(image=(image_teacher,), text=(text_teacher,), cross=cross_teachers)
    pairs = Pairs(split, inputs, teachers)
    order = EpochOrder(len(pairs), settings.batch_size, settings.seed)
    # Checked after the batches, whose error says more if there are no pairs at all.
    image_rows, caption_rows = pairs.rows(np.arange(len(pairs)))
    n_images = _count_images(image_rows, settings.split)
    return OpenedSplit(
        split=split,
        image_teacher=image_teacher,
        text_teacher=text_teacher,
        pairs=pairs,
        order=order,
        image_rows=image_rows,
        caption_rows=caption_rows,
        n_images=n_images,
        image_root=settings.image_root or store.image_root,
        loss=loss,
    )


def _cross_teachers(
    store: EmbeddingStore,
    settings: Settings,
) -> tuple[tuple[Embeddings, Embeddings], ...]:
    """Return image rows and text rows of the cross-modal teachers that the loss needs.

    Raises:
        StoreError: If a teacher that settings name is not there, whether it is needed or not.
    """
    is_needed = False
    if settings.loss is not None:
        is_needed = "cross-modal" in needed_teachers(settings.loss)
        if is_needed:
            require_teachers(settings.loss, store)
    if not is_needed and not settings.cross_teacher:
        return ()
    names = pick_cross_teachers(
        str(store.path), store.teachers, settings.cross_teacher, "--cross-teacher"
    )
    if not is_needed:
        return ()
    rows = []
    for image_name, text_name in names:
        image_rows = store.embeddings(image_name, settings.split)
        text_rows = store.embeddings(text_name, settings.split)
        rows.append((image_rows, text_rows))
    return tuple(rows)


def _no_inputs(
    store: EmbeddingStore,
    split: str,
) -> StudentInputs:
    no_image, no_text = store.skipped(split)
    return StudentInputs(
        image=_NoInputs(no_image),
        text=_NoInputs(no_text),
    )


class _NoInputs:
    """Placeholder for the inputs of a tower that reads files; it reads none.

    Such a tower could not read the images or captions that stage one skipped.
    """

    def __init__(self, skipped: np.ndarray) -> None:
        self.missing = skipped

    def read(self, rows: np.ndarray) -> torch.Tensor:
        return torch.empty(len(rows), 0)
