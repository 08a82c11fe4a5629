"""Where a model's embeddings come from: the model itself, or files of embeddings under ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cusa.data.errors import CusaError
from cusa.data.unit_rows import unit_rows
from cusa.eval.embedding_files import align, read_embeddings
from cusa.eval.encode_items import encode_images, encode_texts
from cusa.eval.models import Encoder, Model
from cusa.train.encode import Rows
from cusa.train.student import Head

# Told what is being embedded, how many more are done, and how many there are.
Advance = Callable[[str, int, int], None]


class Source(Model, Protocol):
    """Embeddings of one model, L2-normalised float32 by head."""

    def images(self, ids: Sequence[str], paths: Sequence[Path]) -> Rows:
        """Of images, by id or by file."""

    def texts(self, ids: Sequence[str], texts: Sequence[str]) -> Rows:
        """Of texts, by id or as they are."""


@dataclass(frozen=True)
class EncoderSource:
    """A model that embeds what it is given.

    Attributes:
        encoder: The model.
        batch_size: Items at a time.
        image_batch_size: Images at a time, in each of the threads.
        workers: Threads that read images.
        advance: Told how far it is.
    """

    encoder: Encoder
    batch_size: int
    image_batch_size: int
    workers: int
    advance: Advance

    @property
    def name(self) -> str:
        """For tables."""
        return self.encoder.name

    @property
    def heads(self) -> tuple[Head, ...]:
        """The model's heads."""
        return self.encoder.heads

    @property
    def uni_head(self) -> Head:
        """The head to use within a modality."""
        return self.encoder.uni_head

    @property
    def modalities(self) -> frozenset[str]:
        """Of ``"image"`` and ``"text"``."""
        return self.encoder.modalities

    @property
    def description(self) -> Mapping[str, Any]:
        """What the model is."""
        return {**self.encoder.description, "weights_sha256": self.encoder.weights_sha256}

    def images(self, ids: Sequence[str], paths: Sequence[Path]) -> Rows:
        """Embeddings of image files."""
        n = len(paths)
        return encode_images(
            self.encoder, paths, self.image_batch_size, self.workers, lambda done: self.advance("images", done, n)
        )

    def texts(self, ids: Sequence[str], texts: Sequence[str]) -> Rows:
        """Embeddings of texts."""
        n = len(texts)
        return encode_texts(self.encoder, texts, self.batch_size, lambda done: self.advance("texts", done, n))


class FileSource:
    """Other people's embeddings: files of rows under ids (:mod:`cusa.eval.embedding_files`).

    Args:
        image: File of image embeddings and that of their ids, or ``None``.
        text: Same for texts.
        name: For tables; ``None``: the files' names.

    Raises:
        CusaError: If a file is missing or malformed, rows and ids do not fit, or dimensions differ.
    """

    heads: tuple[Head, ...] = ("cross",)
    uni_head: Head = "cross"

    def __init__(
        self,
        image: tuple[Path, Path | None] | None,
        text: tuple[Path, Path | None] | None,
        name: str | None = None,
    ) -> None:
        files = {"image": image, "text": text}
        self._read = {m: read_embeddings(*f) for m, f in files.items() if f is not None}
        dims = {m: rows.shape[1] for m, (_, rows) in self._read.items()}
        if len(set(dims.values())) > 1:
            raise CusaError(
                f"image embeddings have {dims['image']} dimensions, text embeddings {dims['text']}; both must be of "
                "one space: pass those of one model, or one modality alone"
            )
        self.modalities = frozenset(self._read)
        self.name = name or ", ".join(f[0].stem for f in files.values() if f is not None)
        digest = hashlib.sha256()
        for ids, rows in self._read.values():
            digest.update("\0".join(ids).encode() + rows.tobytes())
        sources = {m: str(f[0].absolute()) for m, f in files.items() if f is not None}
        self.description = {"kind": "files", "source": sources, "weights_sha256": digest.hexdigest()}

    def images(self, ids: Sequence[str], paths: Sequence[Path]) -> Rows:
        """Rows of images by id."""
        return self._rows("image", ids, "images")

    def texts(self, ids: Sequence[str], texts: Sequence[str]) -> Rows:
        """Rows of texts by id."""
        return self._rows("text", ids, "captions")

    def _rows(self, modality: str, wanted: Sequence[str], what: str) -> Rows:
        if modality not in self._read:
            raise CusaError(f"no {modality} embeddings are given; pass --{modality}-embeddings FILE")
        rows, _ = align(*self._read[modality], wanted, what)
        return {"cross": unit_rows(rows)}
