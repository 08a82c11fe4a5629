"""Cross-modal teachers: dual encoders, one load of which gives the rows of both modalities."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from PIL import Image

from cusa.data.encoders.vision_encoder import is_dual_encoder, named_inputs
from cusa.data.errors import WEIGHTS, TeacherError
from cusa.data.hub import locate
from cusa.data.pretrained import lacking, load_embedding_model, load_image_processor
from cusa.data.store.cross_teachers import CROSS_TEACHER, LOGIT_BIAS, LOGIT_SCALE
from cusa.data.tokenization import load_tokenizer
from cusa.precompute.teachers.base import (
    FEATURE,
    Teacher,
    default_batch_size,
    each_tensor,
    loading,
    weights_digest,
)
from cusa.precompute.teachers.text_tower import tower_teacher
from cusa.precompute.teachers.vision import HuggingFaceTransform, probed_encoder

_PROBE_TEXTS = ["a dog on the beach", "two red cars", "people eating pizza"]
# Greatest difference of logits from scaled cosines, as a share of the scale: float32's rounding.
_TOLERANCE = 1e-4
_GREATEST_LOGARITHM = 100.0  # CLIP's scale is at most 100, of which this is far beyond


def load_half(
    source: str,
    model_id: str,
    modality: str,
    cross_teacher: str,
    device: str,
    batch_size: int | None,
) -> Teacher:
    """Load a dual encoder, and return its image or its text tower as a teacher.

    Rows are the embeddings that the model's logits are computed from: once of length one, their
    product times the logit scale, plus a bias if the model has one, is the model's own logit. That
    is tried on a few inputs, and scale and bias are recorded.

    Args:
        source: Hub name or folder.
        model_id: Name to record.
        modality: ``"image"`` or ``"text"``.
        cross_teacher: Name of the cross-modal teacher that both halves are known as.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: Items per forward pass; ``None``: the device's default.

    Raises:
        TeacherError: If it cannot be loaded, is no dual encoder, or has other logits.
    """
    key = (os.path.realpath(source) if os.path.isdir(source) else source, device)
    model = _loaded_models.get(key)
    if model is None:
        model = DualEncoder(source, device)
        _loaded_models[key] = model
    half = model.image_half if modality == "image" else model.text_half
    transform = {**half.transform, CROSS_TEACHER: cross_teacher, **model.logit_settings}
    own_default = half.batch_size
    return replace(
        half,
        model_id=model_id,
        weights_sha256=model.weights_sha256,
        source=source,  # which may be another path of the same folder than that of the load
        transform=transform,
        batch_size=batch_size or own_default,
    )


class DualEncoder:
    """A dual encoder of transformers, both towers of which are teachers.

    Args:
        source: Hub name or folder.
        device: ``"cpu"`` or ``"cuda"``.

    Attributes:
        image_half: The image tower as a teacher without a name.
        text_half: The text tower likewise.
        logit_settings: Logit scale and, if there is one, bias, for the settings of both.

    Raises:
        TeacherError: If it cannot be loaded, is no dual encoder, or has other logits.
    """

    def __init__(self, source: str, device: str) -> None:
        self._source = source
        with loading("dual encoder", source):
            files = locate(source, TeacherError)
            model, missing = load_embedding_model(files)
            if not is_dual_encoder(model):
                raise TeacherError(
                    f"{source!r} ({type(model).__name__}) is no dual encoder for images and texts; "
                    "leave out clip: for a model of one modality",
                    name=source,
                )
            if missing:
                raise TeacherError(lacking(source, missing), location=WEIGHTS, name=source)
            tokenizer = load_tokenizer(files, TeacherError)
            input_names = tuple(inspect.signature(model.get_image_features).parameters)
            preprocess = HuggingFaceTransform(load_image_processor(files), input_names)
            self._model = model.eval().to(device)
        self.image_half = self._image_half(preprocess, device)
        self.text_half = tower_teacher(
            self._model, tokenizer, self._encode_texts, source, "text_embeds", None
        )
        self.logit_settings = self._checked_logits(device)

    @functools.cached_property
    def weights_sha256(self) -> str:
        """Return the sha256 (hex) of the weights of both towers."""
        return weights_digest(self._model)

    def _image_half(
        self,
        preprocess: HuggingFaceTransform,
        device: str,
    ) -> Teacher:
        encoder = probed_encoder(self._model, self._source, preprocess)

        def encode(inputs: Any) -> torch.Tensor:
            return self._encode_images(encoder, inputs)

        return Teacher(
            modality="image",
            model_id="",
            weights_sha256="",
            dim=encoder.dim,
            transform={FEATURE: encoder.feature, **preprocess.describe()},
            source=self._source,
            encode=encode,
            batch_size=default_batch_size(device, on_cpu=16),
            preprocess=preprocess,
        )

    # Methods, so that the teachers hold this object, and the other half finds it.

    def _encode_images(
        self,
        encoder: Callable[[Any], torch.Tensor],
        inputs: Any,
    ) -> torch.Tensor:
        return encoder(inputs)

    def _encode_texts(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        features = self._model.get_text_features(**tokens)
        # Some versions of transformers return an output object.
        return features if isinstance(features, torch.Tensor) else features.pooler_output

    def _checked_logits(self, device: str) -> dict[str, float]:
        """Return the logit scale and bias, with which rows must give the model's own logits."""
        scale = _logit_scale(self._model)
        bias = _parameter(self._model, "logit_bias")
        with loading("dual encoder", self._source):
            cosines, logits = self._probe(device)
        if not _are_logits(logits, cosines, scale, bias or 0.0):
            raise TeacherError(
                f"{self._source!r} ({type(self._model).__name__}): its logits are not its "
                "embeddings' cosines times a scale, so its rows are no cross-modal teacher; leave "
                "out clip: for the rows of one modality",
                name=self._source,
            )
        settings = {LOGIT_SCALE: scale}
        if bias is not None:
            settings[LOGIT_BIAS] = bias
        return settings

    @torch.inference_mode()
    def _probe(self, device: str) -> tuple[np.ndarray, np.ndarray]:
        """Return cosines and logits, float ``[images, texts]`` each, of a few inputs."""
        generator = np.random.default_rng(0)
        pictures = []
        for _ in range(2):
            noise = generator.integers(0, 256, (48, 64, 3)).astype(np.uint8)
            pictures.append(Image.fromarray(noise))
        pixels = self.image_half.inputs(pictures)
        image_rows = self.image_half.rows(pixels, device, "fp32")
        text_rows = self.text_half.rows(_PROBE_TEXTS, device, "fp32")

        inputs = {**named_inputs(pixels), **self.text_half.tokens(_PROBE_TEXTS)}
        output = self._model(**each_tensor(inputs, lambda tensor: tensor.to(device)))
        return image_rows @ text_rows.T, output.logits_per_image.float().cpu().numpy()


# By source and device: while one half is a loaded teacher, the other half finds the model here.
_loaded_models: WeakValueDictionary[tuple[str, str], DualEncoder] = WeakValueDictionary()


def _are_logits(
    logits: np.ndarray,
    cosines: np.ndarray,
    scale: float,
    bias: float,
) -> bool:
    """Return whether logits are scaled cosines plus a bias; none are with a scale of NaN."""
    if logits.shape != cosines.shape:
        return False
    difference = np.abs(scale * cosines + bias - logits)
    return bool(difference.max() <= _TOLERANCE * max(scale, 1.0))


def _logit_scale(model: Any) -> float:
    """Return what a model multiplies cosines by: models have its logarithm or a temperature.

    NaN if it has neither.
    """
    logarithm = _parameter(model, "logit_scale")
    if logarithm is not None:
        return math.exp(min(logarithm, _GREATEST_LOGARITHM))
    temperature = _parameter(model, "temperature")
    if temperature:
        return 1 / temperature
    return math.nan


def _parameter(model: Any, name: str) -> float | None:
    value = getattr(model, name, None)
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    return None
