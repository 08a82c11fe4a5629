"""A trained student that embeds new images and texts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cusa.data.captions import normalizer
from cusa.data.embeddings import HEADS, Head, Rows
from cusa.data.hub import is_remote
from cusa.eval.models.devices import chosen_device, one_at_a_time
from cusa.eval.models.frozen_encoder import load_frozen, refuse_unstored, source_of
from cusa.eval.models.inputs import (
    ImageLike,
    batches,
    checked_texts,
    one_or_many_images,
    one_or_many_texts,
    opened_images,
)
from cusa.eval.models.usable_rows import refuse_unusable
from cusa.precompute.teachers.base import Teacher, weights_digest
from cusa.train.config_building import deciding
from cusa.train.encode_split import embed
from cusa.train.saving.hub_student import local_student
from cusa.train.saving.provenance import StoredTeacher
from cusa.train.saving.student_folder import BEST_FOLDER, SavedStudent, load_saved
from cusa.train.student import Features


class StudentEncoder:
    """A trained student that embeds images and texts.

    The frozen encoders of stored towers are loaded on first use.

    Args:
        saved: The student.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        encoders: Sources of frozen encoders, of stored towers only, by ``"image"`` and ``"text"``,
            as ``cusa-precompute --teacher`` takes them; by default those that stage one used.
        source: Folder or name on the hub that the student was loaded from; its name.

    Attributes:
        student: The module, on ``device``.
        processors: What makes the inputs of towers that are not stored.
        name: Name of the run or folder.
        heads: Both heads.
        modalities: Both modalities.
        origin: The run that trained it: settings, provenance, epoch, validation recalls.
        dim: Dimension of all embeddings.
        uni_head: The head to use within a modality: ``"uni"`` if USA trained it, else ``"cross"``.
        encoder: Returns a stored tower's frozen encoder of a modality, loaded on the first call.
    """

    heads: tuple[Head, ...] = HEADS
    modalities: frozenset[str] = frozenset({"image", "text"})

    def __init__(
        self,
        saved: SavedStudent,
        device: str = "cpu",
        encoders: dict[str, str] | None = None,
        source: Path = Path("student"),
    ) -> None:
        self.student = saved.student.to(device)
        self.processors, self.origin = saved.processors, saved.origin
        self.name = _name_of_student(source)
        # All heads end in a linear layer of the same output dimension.
        head_weight = saved.student.state_dict()["image_heads.cross.1.weight"]
        self.dim = int(head_weight.shape[0])
        self.uni_head: Head = saved.origin.uni_head
        self._device = device
        self._source = source
        self._encoder_sources = encoders or {}
        refuse_unstored(self._encoder_sources, saved.origin.provenance.encoders)
        self._computing = one_at_a_time(device)
        self.encoder = cache(self._load_encoder)

    def __repr__(self) -> str:
        student_name = Path(self.origin.config.student.title).name
        settings = f"student={student_name!r}, dim={self.dim}, device={self._device!r}"
        return f"StudentEncoder({str(self._source)!r}, {settings})"

    def encode_image(
        self,
        images: ImageLike | Iterable[ImageLike],
        head: Head = "cross",
        batch_size: int = 64,
    ) -> np.ndarray:
        """Embed images.

        Args:
            images: One image: a path, a Pillow image, a uint8 array ``[h, w]`` or
                ``[h, w, channels]``, or a uint8 tensor ``[h, w]`` or ``[channels, h, w]``, with 1,
                3 or 4 channels (grey, RGB, RGBA). Or several: an array ``[n, h, w, channels]``, a
                tensor ``[n, channels, h, w]``, or any iterable of images of any kinds and sizes.
            head: ``"cross"`` to compare with captions, ``"uni"`` to compare with images.
            batch_size: Number of images per batch.

        Returns:
            float32 ``[n, d]``, L2-normalised; ``[d]`` for one image.

        Raises:
            CusaError: If an item is no image, a file is missing or cannot be decoded, an embedding
                is not finite or all zeros, or a stored tower's encoder cannot be loaded.
            ValueError: If ``head`` is unknown, or ``batch_size`` is below 1.
        """
        _check_head(head)
        is_single, image_list = one_or_many_images(images)
        rows = self.image_rows(image_list, batch_size)[head]
        return rows[0] if is_single else rows

    def encode_text(
        self,
        texts: str | Iterable[str],
        head: Head = "cross",
        batch_size: int = 256,
    ) -> np.ndarray:
        """Embed texts.

        Args:
            texts: A text, or any iterable of texts.
            head: ``"cross"`` to compare with images, ``"uni"`` to compare with texts.
            batch_size: Number of texts per batch.

        Returns:
            float32 ``[n, d]``, L2-normalised; ``[d]`` for one text.

        Raises:
            CusaError: If an item is no text, an embedding is not finite or all zeros, or a stored
                tower's encoder cannot be loaded.
            ValueError: If ``head`` is unknown, or ``batch_size`` is below 1.
        """
        _check_head(head)
        is_single, text_list = one_or_many_texts(texts)
        rows = self.text_rows(text_list, batch_size)[head]
        return rows[0] if is_single else rows

    def image_rows(self, images: Iterable[ImageLike], batch_size: int = 64) -> Rows:
        """Embed images with both heads.

        Args:
            images: As in :meth:`encode_image`.
            batch_size: Images per forward pass.

        Returns:
            float32 ``[n, d]`` by head, L2-normalised.
        """
        items = enumerate(images)
        return self._rows(self.student.encode_image, self._image_inputs, items, batch_size)

    def text_rows(self, texts: Iterable[str], batch_size: int = 256) -> Rows:
        """Embed texts with both heads.

        Args:
            texts: As in :meth:`encode_text`.
            batch_size: Texts per forward pass.

        Returns:
            float32 ``[n, d]`` by head, L2-normalised.
        """
        items = checked_texts(texts)
        return self._rows(self.student.encode_text, self._text_inputs, items, batch_size)

    @property
    def normalizer(self) -> str:
        """Name of the caption normaliser that the student was trained with."""
        encoders = self.origin.provenance.encoders
        if "text" in encoders:
            return encoders["text"].settings.normalizer
        return self.origin.config.data.normalizer

    @property
    def description(self) -> dict[str, Any]:
        """Description of the run, JSON-compatible."""
        origin = self.origin
        config, provenance = origin.config, origin.provenance
        return {
            "kind": "run",
            "source": str(self._source),
            "normalizer": self.normalizer,
            "student": config.student.title,
            "loss_terms": list(config.loss.term_titles),
            "epoch": origin.epoch,
            "step": origin.step,
            "dataset": provenance.dataset,
            "n_pairs": origin.n_pairs,
            "teachers": provenance.teacher_names(),
            "encoders": _names(provenance.encoders),
            "settings": deciding(config),
        }

    def _rows(
        self,
        encode: Callable[[Any], Features],
        prepare: Callable[[Any], Any],
        items: Iterable[Any],
        batch_size: int,
    ) -> Rows:
        """Embed items of one modality with both heads, a batch at a time."""
        no_rows = np.zeros((0, self.dim), np.float32)
        head_batches: dict[Head, list[np.ndarray]] = {head: [no_rows] for head in HEADS}
        n_embedded = 0
        for batch in batches(items, batch_size):
            # Inputs are prepared before the lock, so that threads read images while one computes.
            inputs = prepare(batch)
            with self._computing:
                batch_rows = embed(encode, inputs, self._device)
            refuse_unusable(batch_rows, self.name, n_embedded)
            n_embedded += len(batch)
            for head in HEADS:
                head_batches[head].append(batch_rows[head])
        return {head: np.concatenate(rows) for head, rows in head_batches.items()}

    def _image_inputs(
        self,
        images: Sequence[tuple[int, ImageLike]],
    ) -> torch.Tensor:
        opened = opened_images(images)
        preparation = self.processors.image
        if preparation is None:
            return self._stored_rows("image", opened)
        # One at a time, so that few decoded pictures are in memory.
        return torch.cat([preparation.pixels([image]) for image in opened])

    def _text_inputs(self, texts: Sequence[str]) -> Any:
        normalize = normalizer(self.normalizer)
        captions = [normalize(text) for text in texts]
        if self.processors.text is None:
            return self._stored_rows("text", captions)
        return self.processors.text.tokens(captions)

    def _stored_rows(self, modality: str, items: Any) -> torch.Tensor:
        """Encode inputs with a frozen encoder, as stage one did: float32 ``[n, d]``."""
        teacher = self.encoder(modality)
        settings = self.origin.provenance.encoders[modality].settings
        inputs = teacher.inputs(items)
        with self._computing:
            rows = teacher.rows(inputs, self._device, settings.precision)
        rounded = rows.astype(settings.dtype)  # as the store rounds them
        return torch.from_numpy(rounded).float()

    @cached_property
    def weights_sha256(self) -> str:
        """sha256 (hex) of the student's weights."""
        return weights_digest(self.student)

    def _load_encoder(self, modality: str) -> Teacher:
        stored = self.origin.provenance.encoders[modality]
        source = self._encoder_sources.get(modality) or source_of(stored)
        return load_frozen(source, stored.name, stored.settings, self._device)


def load_student(
    path: str | os.PathLike[str],
    device: str | None = None,
    encoders: dict[str, str] | None = None,
) -> StudentEncoder:
    """Load a trained student.

    Args:
        path: A run directory of cusa-train, whose best student is loaded, its ``best/``, or an
            exported folder; or ``"owner/model"``, the repository of such a folder on the Hugging
            Face hub.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; ``None`` for a GPU if there is one.
        encoders: As :class:`StudentEncoder` takes them.

    Raises:
        CusaError: If there is no student, it is damaged, or there is no such device.
        HubError: If the hub does not answer, or does not show the repository.
    """
    saved = load_saved(local_student(os.fspath(path)))
    return StudentEncoder(saved, chosen_device(device), encoders, Path(path))


def _name_of_student(source: Path) -> str:
    """Return the name of a run or folder, or that of a repository on the hub."""
    if is_remote(str(source)):
        return str(source)
    return folder_name(source.parent if source.name == BEST_FOLDER else source)


def folder_name(folder: Path) -> str:
    """Return the name of a folder, even if it is given as ``.`` or ``..``."""
    return os.path.basename(os.path.abspath(folder))


def _names(by_modality: Mapping[str, StoredTeacher]) -> dict[str, str]:
    return {modality: teacher.name for modality, teacher in by_modality.items()}


def _check_head(head: Head) -> None:
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
