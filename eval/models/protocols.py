"""Protocols of the models that an evaluation measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from cusa.data.embeddings import Head, Rows
from cusa.eval.models.inputs import ImageLike


class Model(Protocol):
    """A model under evaluation, wherever its embeddings come from."""

    @property
    def name(self) -> str:
        """Name for tables: the run's or folder's name, or the model's."""

    @property
    def heads(self) -> tuple[Head, ...]:
        """Heads: ``("cross", "uni")`` for a student, ``("cross",)`` for any other model."""

    @property
    def uni_head(self) -> Head:
        """Head to use within a modality."""

    @property
    def modalities(self) -> frozenset[str]:
        """Modalities that it embeds: ``"image"``, ``"text"``, or both."""

    @property
    def description(self) -> Mapping[str, Any]:
        """Description for results files, JSON-compatible.

        It has at least ``kind`` (``"run"``, ``"hf"``, ``"sentence-transformers"``, ``"teacher"``,
        ``"files"`` or ``"scores"``) and ``source``; for a model that encodes captions, also
        ``normalizer``.
        """


class Encoder(Model, Protocol):
    """A model that embeds images, texts, or both."""

    @property
    def weights_sha256(self) -> str:
        """sha256 (hex) of its weights."""

    def image_rows(self, images: Iterable[ImageLike], batch_size: int = 64) -> Rows:
        """Embed images; several threads may call it at a time.

        Args:
            images: One or more images, each as :meth:`cusa.StudentEncoder.encode_image` takes it.
            batch_size: Images per forward pass.

        Returns:
            float32 ``[n, d]`` by head, L2-normalised.
        """

    def text_rows(self, texts: Iterable[str], batch_size: int = 256) -> Rows:
        """Embed texts; only one thread may call it at a time, as tokenisers are not thread-safe.

        Args:
            texts: Texts as written.
            batch_size: Texts per forward pass.

        Returns:
            float32 ``[n, d]`` by head, L2-normalised.
        """
