"""An encoder for models without student heads; it computes embeddings as teachers do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from cusa.data.captions import normalizer
from cusa.data.embeddings import Head, Rows
from cusa.data.errors import EmbeddingsError
from cusa.eval.models.devices import one_at_a_time
from cusa.eval.models.inputs import ImageLike, batches, checked_texts, opened_images
from cusa.eval.models.usable_rows import refuse_unusable
from cusa.precompute.first_batch import FirstBatchCheck
from cusa.precompute.teachers.base import Teacher

_PRECISION = "fp32"
_NORMALIZER = "none"  # models that are no students get captions as written


class ModelEncoder:
    """A model with one embedding per item, made of a teacher for each modality that it embeds.

    Args:
        name: Name for tables.
        kind: ``"hf"``, ``"sentence-transformers"`` or ``"teacher"``.
        towers: A teacher of images, of texts, or both, which then embed into the same space.
        device: Device that the teachers are on.
    """

    heads: tuple[Head, ...] = ("cross",)
    uni_head: Head = "cross"

    def __init__(
        self,
        name: str,
        kind: str,
        towers: Sequence[Teacher],
        device: str,
    ) -> None:
        self._towers = {tower.modality: tower for tower in towers}
        self._device = device
        self._computing = one_at_a_time(device)
        self._checks: dict[str, FirstBatchCheck] = {}
        transforms: dict[str, dict[str, Any]] = {}
        for modality, tower in self._towers.items():
            self._checks[modality] = FirstBatchCheck(tower, device, _PRECISION)
            transforms[modality] = dict(tower.transform)

        self.name = name
        self.modalities = frozenset(self._towers)
        # Both towers are of the same model, and agree in what follows.
        first_tower = towers[0]
        self.weights_sha256 = first_tower.weights_sha256
        self.description = {
            "kind": kind,
            "source": first_tower.source,
            "model_id": first_tower.model_id,
            "normalizer": _NORMALIZER,
            "dim": first_tower.dim,
            "transform": transforms,
        }

    def __repr__(self) -> str:
        kind = self.description["kind"]
        dim = self.description["dim"]
        return f"ModelEncoder({self.name!r}, kind={kind!r}, dim={dim}, device={self._device!r})"

    def image_rows(self, images: Iterable[ImageLike], batch_size: int = 64) -> Rows:
        """Embed images: float32 ``[n, d]``, L2-normalised, under ``"cross"``.

        Raises:
            CusaError: If the model embeds no images, a file cannot be read, an embedding is not
                finite or all zeros, or a GPU's memory is too small.
            ValueError: If ``batch_size`` is below 1.
        """
        return self._rows("image", enumerate(images), opened_images, batch_size)

    def text_rows(self, texts: Iterable[str], batch_size: int = 256) -> Rows:
        """Embed texts as they are written: float32 ``[n, d]``, L2-normalised, under ``"cross"``.

        Raises:
            CusaError: If the model embeds no texts, a text is blank, an embedding is not finite or
                all zeros, or a GPU's memory is too small.
            ValueError: If ``batch_size`` is below 1.
        """
        captions = map(normalizer(_NORMALIZER), checked_texts(texts))
        return self._rows("text", captions, list, batch_size)

    def _rows(
        self,
        modality: str,
        items: Iterable[Any],
        prepare: Callable[[Sequence[Any]], Iterable[Any]],
        batch_size: int,
    ) -> Rows:
        """Embed items in batches; the first batch of each modality also checks the model."""
        tower = self._tower(modality)
        rows = [np.zeros((0, tower.dim), np.float32)]
        n_embedded = 0
        for batch in batches(items, batch_size):
            # Inputs are prepared before the lock, so that threads read images while one computes.
            inputs = tower.inputs(prepare(batch))
            with self._computing:
                rows.append(tower.rows(inputs, self._device, _PRECISION))
                # The check compares rows of different texts.
                texts = batch if modality == "text" else None
                self._checks[modality](self.name, inputs, rows[-1], texts)
            refuse_unusable({"cross": rows[-1]}, self.name, n_embedded)
            n_embedded += len(batch)
        return {"cross": np.concatenate(rows)}

    def _tower(self, modality: str) -> Teacher:
        if modality not in self._towers:
            embedded = next(iter(self._towers))
            raise EmbeddingsError(
                f"model {self.name!r} embeds no {modality}s, only {embedded}s; pass a model that "
                f"embeds {modality}s",
                name=self.name,
                location=modality,
            )
        return self._towers[modality]
