"""A trained student that embeds new images and texts."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cusa.data.captions import normalizer
from cusa.data.embeddings import HEADS, Head, Rows
from cusa.data.errors import CusaError, SettingError
from cusa.eval.models.inputs import (
    ImageLike,
    batches,
    checked_texts,
    one_or_many_images,
    one_or_many_texts,
    opened_images,
)
from cusa.eval.models.usable_rows import refuse_unusable
from cusa.precompute.teachers import KNOWN, parse_teacher
from cusa.precompute.teachers.base import Teacher, weights_digest
from cusa.train.encode_split import embed
from cusa.train.saving.provenance import StoredTeacher
from cusa.train.saving.student_folder import BEST_FOLDER, SavedStudent, load_saved
from cusa.train.student import Features


class StudentEncoder:
    """Embeds images and texts with a trained student; an adapter's frozen encoders load on first use.

    Args:
        saved: The student.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        encoders: Adapter: where to load its encoders from, as ``--teacher`` takes it, by ``"image"`` and ``"text"``;
            by default from where stage one did.
        source: Where the student was loaded from; it is named after this folder.

    Attributes:
        name: Name of the run or folder.
        heads: Both.
        modalities: Both.
        origin: The run that it comes from: settings, provenance, epoch, validation recalls.
        dim: Dimension of all embeddings.
        uni_head: The head to use within a modality: ``"uni"`` if USA trained it, else ``"cross"``.
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
        self.processors, self.origin, self._device = saved.processors, saved.origin, device
        self._alone, self._source = one_at_a_time(device), source
        self.name = folder_name(source.parent if source.name == BEST_FOLDER else source)
        self._encoders = encoders or {}
        self.dim = int(saved.student.state_dict()["image_heads.cross.1.weight"].shape[0])
        self.uni_head: Head = saved.origin.uni_head

    def __repr__(self) -> str:
        student = Path(self.origin.config.student.name).name
        about = f"student={student!r}, dim={self.dim}, device={self._device!r}"
        return f"StudentEncoder({str(self._source)!r}, {about})"

    def encode_image(
        self, images: ImageLike | Iterable[ImageLike], head: Head = "cross", batch_size: int = 64
    ) -> np.ndarray:
        """Embed images.

        Args:
            images: One image: a path, a Pillow image, a uint8 array ``[h, w]`` or
                ``[h, w, channels]``, or a uint8 tensor ``[h, w]`` or ``[channels, h, w]``, with 1,
                3 or 4 channels (grey, RGB, RGBA). Or several: an array ``[n, h, w, channels]``, a
                tensor ``[n, channels, h, w]``, or a list, generator or other iterable of images,
                of any kinds and sizes.
            head: ``"cross"`` to compare with captions, ``"uni"`` to compare with images.
            batch_size: Images at a time.

        Returns:
            float32 ``[n, d]``, L2-normalised; ``[d]`` for one image.

        Raises:
            CusaError: If an item is no image, a file is missing or cannot be decoded, an embedding
                is not finite or all zeros, or an adapter's encoder cannot be loaded.
            ValueError: If ``head`` is neither, or ``batch_size`` is below 1.
        """
        head = _checked(head)
        is_single, several = one_or_many_images(images)
        rows = self.image_rows(several, batch_size)[head]
        return rows[0] if is_single else rows

    def encode_text(
        self, texts: str | Iterable[str], head: Head = "cross", batch_size: int = 256
    ) -> np.ndarray:
        """Embed texts.

        Args:
            texts: A text, or a list, generator or other iterable of texts.
            head: ``"cross"`` to compare with images, ``"uni"`` to compare with texts.
            batch_size: Texts at a time.

        Returns:
            float32 ``[n, d]``, L2-normalised; ``[d]`` for one text.

        Raises:
            CusaError: If an item is no text, an embedding is not finite or all zeros, or an
                adapter's encoder cannot be loaded.
            ValueError: If ``head`` is neither, or ``batch_size`` is below 1.
        """
        head = _checked(head)
        is_single, several = one_or_many_texts(texts)
        rows = self.text_rows(several, batch_size)[head]
        return rows[0] if is_single else rows

    def image_rows(self, images: Iterable[ImageLike], batch_size: int = 64) -> Rows:
        """Embeddings of images from both heads: float32 ``[n, d]`` each, L2-normalised."""
        return self._rows(
            self.student.encode_image, self._image_inputs, enumerate(images), batch_size
        )

    def text_rows(self, texts: Iterable[str], batch_size: int = 256) -> Rows:
        """Embeddings of texts from both heads: float32 ``[n, d]`` each, L2-normalised."""
        return self._rows(
            self.student.encode_text, self._text_inputs, checked_texts(texts), batch_size
        )

    @property
    def normalizer(self) -> str:
        """Name of the caption normaliser that it was trained with."""
        encoders = self.origin.provenance.encoders
        return (
            encoders["text"].settings.normalizer if encoders else self.origin.config.data.normalizer
        )

    @property
    def description(self) -> dict[str, Any]:
        """What it is; JSON-compatible."""
        return {
            "kind": "run",
            "source": str(self._source),
            "normalizer": self.normalizer,
            "student": self.origin.config.student.name,
            "loss_terms": list(self.origin.config.loss.terms),
            "epoch": self.origin.epoch,
            "step": self.origin.step,
        }

    def _rows(
        self,
        encode: Callable[[Any], Features],
        read: Callable[[Any], Any],
        items: Iterable[Any],
        batch_size: int,
    ) -> Rows:
        parts = []
        n_done = 0
        for batch in batches(items, batch_size):
            inputs = read(batch)
            with self._alone:
                rows = embed(encode, inputs, self._device)
            refuse_unusable(rows, self.name, n_done)
            parts.append(rows)
            n_done += len(batch)
        return {
            h: np.concatenate([np.zeros((0, self.dim), np.float32), *(p[h] for p in parts)])
            for h in HEADS
        }

    def _image_inputs(self, images: Sequence[tuple[int, ImageLike]]) -> torch.Tensor:
        if self.processors is not None:
            return torch.cat([self.processors.pixels([image]) for image in opened_images(images)])
        return self._stored_rows("image", self._image_encoder, opened_images(images))

    def _text_inputs(self, texts: Sequence[str]) -> Any:
        normalize = normalizer(self.normalizer)
        captions = [normalize(text) for text in texts]
        if self.processors is not None:
            return self.processors.tokens(captions)
        return self._stored_rows("text", self._text_encoder, captions)

    def _stored_rows(self, modality: str, teacher: Teacher, items: Any) -> torch.Tensor:
        settings = self.origin.provenance.encoders[modality].settings
        inputs = teacher.inputs(items)
        with self._alone:
            rows = teacher.rows(inputs, self._device, settings.precision)
        return torch.from_numpy(
            rows.astype(settings.dtype)
        ).float()  # rounded as the store rounds them

    @cached_property
    def weights_sha256(self) -> str:
        """sha256 (hex) over the weights, wherever they were loaded from."""
        return weights_digest(self.student)

    @cached_property
    def _image_encoder(self) -> Teacher:
        return self._load("image")

    @cached_property
    def _text_encoder(self) -> Teacher:
        return self._load("text")

    def _load(self, modality: str) -> Teacher:
        stored = self.origin.provenance.encoders[modality]
        request = parse_teacher(self._encoders.get(modality) or _where(stored))
        teacher = request.load_as(stored.settings, self._device)
        if teacher.weights_sha256 != stored.settings.weights_sha256:
            raise CusaError(
                f"the {modality} encoder loaded from {teacher.source} has other weights than {stored.name!r}, which "
                f"the adapter was trained on; pass encoders={{{modality!r}: 'NAME=PATH'}} with the right ones"
            )
        return teacher


def load_student(
    path: str | Path, device: str | None = None, encoders: dict[str, str] | None = None
) -> StudentEncoder:
    """Load a trained student.

    Args:
        path: A run directory of cusa-train (its best student is taken), its ``best/``, or an exported folder.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; ``None``: a GPU if there is one.
        encoders: Adapter: where to load its frozen encoders from, as ``cusa-precompute --teacher`` takes it, by
            ``"image"`` and ``"text"``; by default from where stage one did.

    Raises:
        CusaError: If there is no student, it is damaged, or the device is not there.
    """
    return StudentEncoder(load_saved(Path(path)), chosen_device(device), encoders, Path(path))


def chosen_device(device: str | None) -> str:
    """Check a device's name; ``None`` chooses a GPU if there is one.

    Raises:
        SettingError: If there is no such device.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise SettingError(f"unknown device {device!r}; legal: cpu, cuda, cuda:N", name="device")
    n_gpus = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= n_gpus:
        message = f"there is no device {device!r}: torch sees {n_gpus} GPUs; pass cpu or nothing"
        raise SettingError(message, name="device")
    return str(chosen)


def folder_name(folder: Path) -> str:
    """Its name, also where it is written as ``.`` or ``..``."""
    return os.path.basename(os.path.abspath(folder))


def one_at_a_time(device: str) -> contextlib.AbstractContextManager[Any]:
    """What threads that share a model enter to compute: on a GPU one of them at a time, as its memory is scarce."""
    return contextlib.nullcontext() if torch.device(device).type == "cpu" else threading.Lock()


def _where(stored: StoredTeacher) -> str:
    """What names a teacher: where stage one found it, or else its name alone."""
    if Path(stored.source).exists():
        return f"{stored.name}={stored.source}"
    return stored.name if stored.name in KNOWN else f"{stored.name}={stored.settings.model_id}"


def _checked(head: Head) -> Head:
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
    return head
