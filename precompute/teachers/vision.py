"""Hugging Face vision models as image teachers: DINOv2/v3, MLCD, the image towers of CLIP and SigLIP, ViT, ..."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from cusa.data.errors import TeacherError, first_line
from cusa.data.hub import locate
from cusa.data.pretrained import lacking, load_embedding_model, load_image_processor, processed
from cusa.precompute.teachers.base import (
    FEATURE,
    FEATURE_OF_POOLING,
    POOLING,
    Pooling,
    Preprocessed,
    Teacher,
    loading,
    stacked,
    weights_digest,
)

_PIXELS = "pixel_values"
_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")


def load_vision(
    source: str, model_id: str, device: str, batch_size: int | None, pooling: Pooling | None = None
) -> Teacher:
    """Load a Hugging Face vision model with its own preprocessing.

    A picture's row is, in this order of preference: the projected image features of a dual encoder
    (``image_features``) or of an image tower with a projection (``image_embeds``); the pooled
    output (``pooler``), where the weights bring what it needs; the class token of the last layer
    (``first_token``), where the model has one; the mean over the patches or the map (``mean``).

    Args:
        source: Hub name or folder.
        model_id: Name to record.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: Images per forward pass; ``None``: what suits the device.
        pooling: What becomes the row instead.

    Raises:
        TeacherError: If model or preprocessing cannot be loaded, weights are missing, or the model
            takes other inputs than images or has no such pooling.
    """
    with loading("vision model", source):
        files = locate(source, TeacherError)
        model, missing = load_embedding_model(files)
        unpooled = [key for key in missing if "pooler" in key.split(".")]
        _refuse_missing(source, sorted(set(missing) - set(unpooled)))
        _refuse_other_models(model)
        preprocess = HuggingFaceTransform(load_image_processor(files), _input_names(model))
        model = model.eval().to(device)
    try:
        blank = preprocess(Image.new("RGB", (64, 48)))
        encode = _Encoder(model, bool(unpooled), pooling, _moved(stacked([blank, blank]), device))
    except TeacherError:
        raise
    except Exception as error:  # a model's own code raises nearly anything on what it does not take
        message = (
            f"{source!r} ({type(model).__name__}) fails on an image as its image processor makes "
            f"it ({first_line(error)}); check preprocessor_config.json, or use another model"
        )
        raise TeacherError(message, name=source) from None
    return Teacher(
        modality="image",
        model_id=model_id,
        weights_sha256=weights_digest(model),
        dim=encode.dim,
        transform={FEATURE: encode.feature, **preprocess.describe()},
        source=source,
        encode=encode,
        batch_size=batch_size or (256 if torch.device(device).type == "cuda" else 16),
        preprocess=preprocess,
        input_size=preprocess.input_size,
    )


def _refuse_missing(source: str, missing: list[str]) -> None:
    needed = [key for key in missing if not key.endswith("mask_token")]  # used in pretraining alone
    if needed:
        raise TeacherError(lacking(source, needed), name=source)


def _refuse_other_models(model: Any) -> None:
    """Refuse what is no encoder of images: generative models, detectors, models of texts."""
    name = type(model).__name__
    if _is_dual_encoder(model):
        return
    if model.main_input_name != _PIXELS:
        problem = f"takes {model.main_input_name}, not pixels"
    elif getattr(model.config, "is_encoder_decoder", False) or hasattr(model, "get_image_features"):
        problem = "is more than an image encoder"
    else:
        return
    raise TeacherError(f"{name} {problem}; use another model as image teacher", name=name)


def _is_dual_encoder(model: Any) -> bool:
    return hasattr(model, "get_image_features") and hasattr(model, "get_text_features")


def _input_names(model: Any) -> tuple[str, ...]:
    """Names of the inputs that a model's image side takes."""
    forward = model.get_image_features if _is_dual_encoder(model) else model.forward
    return tuple(inspect.signature(forward).parameters)


def _moved(inputs: Any, device: str) -> dict[str, torch.Tensor]:
    named = inputs if isinstance(inputs, Mapping) else {_PIXELS: inputs}
    return {name: tensor.to(device) for name, tensor in named.items()}


class _Encoder:
    """A vision model as a function of its inputs.

    Args:
        model: A transformers model in eval mode.
        lacks_pooler: Whether the weights lack what the pooled output needs.
        pooling: What becomes a picture's row; ``None``: the best that the model has.
        probe: Inputs of several images to try it on.

    Attributes:
        feature: What becomes a picture's row.
        dim: Embedding dimension.

    Raises:
        TeacherError: If the model has no such pooling.
    """

    def __init__(
        self,
        model: Any,
        lacks_pooler: bool,
        pooling: Pooling | None,
        probe: Mapping[str, torch.Tensor],
    ) -> None:
        self._model, self._tower, self._lacks_pooler = model, model, lacks_pooler
        self._name = type(model).__name__
        parameters = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
        self._has_class_token = bool(parameters & set(_CLASS_TOKENS))
        self._leading_tokens = _count_leading_tokens(parameters, model.config)
        if pooling is not None and _is_dual_encoder(model):
            self._tower = getattr(model, "vision_model", None)
            if self._tower is None:
                self._refuse("its image tower cannot be had alone; leave out --pooling")
        with torch.inference_mode():
            if pooling is None and _is_dual_encoder(model):
                self.feature = "image_features"
            else:
                output = self._run(probe)
                if _begins_with_pooled_output(output):
                    self._leading_tokens = max(self._leading_tokens, 1)
                self.feature = self._choose(output, pooling, probe)
            rows = self(probe)
        if rows.ndim != 2 or len(rows) != len(probe[_PIXELS]):
            raise ValueError(f"its output is {list(rows.shape)}, not one row for each image")
        self.dim = rows.shape[1]

    def __call__(self, inputs: torch.Tensor | Mapping[str, torch.Tensor]) -> torch.Tensor:
        named = inputs if isinstance(inputs, Mapping) else {_PIXELS: inputs}
        if self.feature == "image_features":
            features = self._model.get_image_features(**named)
            return features if isinstance(features, torch.Tensor) else features.pooler_output
        output = self._run(named)
        if self.feature == "image_embeds":
            return output.image_embeds
        if self.feature == "pooler":
            return output.pooler_output.flatten(1)  # convolutional models pool to [n, dim, 1, 1]
        if self.feature == "first_token":
            return output.last_hidden_state[:, 0]
        return self._mean(output.last_hidden_state, named)

    def _run(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        if "MAE" not in self._name:
            return self._tower(**inputs)
        # A masked autoencoder sorts its patches by random numbers. In their own order, rows repeat.
        patches = self._count_patches(inputs[_PIXELS]) or 0
        order = torch.arange(patches, dtype=torch.float32, device=inputs[_PIXELS].device)
        return self._tower(**inputs, noise=order.expand(len(inputs[_PIXELS]), -1))

    def _choose(
        self,
        output: Any,
        pooling: Pooling | None,
        probe: Mapping[str, torch.Tensor],
    ) -> str:
        if pooling is None and getattr(output, "image_embeds", None) is not None:
            return "image_embeds"
        is_pooled = not self._lacks_pooler and getattr(output, "pooler_output", None) is not None
        begins_with_class_token = self._begins_with_class_token(output, probe)
        if pooling == "pooler" and not is_pooled:
            self._refuse("it has no pooled output, or no weights for one; pass --pooling mean")
        if pooling == "cls" and not begins_with_class_token:
            self._refuse("it has no class token; pass --pooling mean")
        if pooling is not None:
            return FEATURE_OF_POOLING[pooling]
        if is_pooled:
            return "pooler"
        return "first_token" if begins_with_class_token else "mean"

    def _begins_with_class_token(self, output: Any, probe: Mapping[str, torch.Tensor]) -> bool:
        tokens = getattr(output, "last_hidden_state", None)
        if not self._has_class_token or tokens is None or tokens.ndim != 3:
            return False
        patches = self._count_patches(probe[_PIXELS])
        return patches is None or tokens.shape[1] >= self._leading_tokens + patches

    def _mean(self, features: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Over a map ``[n, dim, h, w]``, or over the patches among tokens ``[n, tokens, dim]``."""
        if features.ndim == 4:
            return features.mean(dim=(2, 3))
        if "pixel_attention_mask" in inputs:
            weights = inputs["pixel_attention_mask"][..., None].to(features.dtype)
            return (features * weights).sum(dim=1) / weights.sum(dim=1)
        first = self._leading_tokens
        patches = self._count_patches(inputs[_PIXELS])
        if patches is None or features.shape[1] < first + patches:
            return features[:, first if features.shape[1] > first else 0 :].mean(dim=1)
        return features[:, first : first + patches].mean(dim=1)

    def _count_patches(self, pixels: torch.Tensor) -> int | None:
        """Patches of pictures ``[n, 3, h, w]``, ``None`` for models without patches of one size."""
        size = getattr(self._tower.config, "patch_size", None)
        height, width = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
        if not isinstance(height, int) or not isinstance(width, int) or pixels.ndim != 4:
            return None
        return (pixels.shape[2] // height) * (pixels.shape[3] // width)

    def _refuse(self, problem: str) -> None:
        raise TeacherError(f"{self._name}: {problem}", name=self._name, location=POOLING)


def _count_leading_tokens(parameters: set[str], config: Any) -> int:
    """Tokens before the patches: class, distillation and register tokens."""
    count = int(bool(parameters & set(_CLASS_TOKENS))) + int("distillation_token" in parameters)
    if "register_tokens" in parameters:
        count += int(getattr(config, "num_register_tokens", 0))
    return count


def _begins_with_pooled_output(output: Any) -> bool:
    """Whether the first of several tokens is the pooled output itself, as DINOv3's ConvNeXt has it."""
    tokens, pooled = (
        getattr(output, "last_hidden_state", None),
        getattr(output, "pooler_output", None),
    )
    if tokens is None or pooled is None or tokens.ndim != 3 or tokens.shape[1] < 2:
        return False
    return pooled.shape == tokens[:, 0].shape and torch.equal(pooled, tokens[:, 0])


class HuggingFaceTransform:
    """A Hugging Face image processor as a function of one PIL image.

    Args:
        processor: The image processor.
        input_names: What of its output the model takes.
    """

    def __init__(self, processor: Any, input_names: tuple[str, ...] = (_PIXELS,)) -> None:
        self._processor, self._input_names = processor, input_names

    def __call__(self, image: Image.Image) -> Preprocessed:
        """float32 ``[3, h, w]`` of one image; arrays by name, if the model takes more than pixels.

        Raises:
            ImageError: If the image is too narrow to be resized.
        """
        arrays = processed(self._processor, [image])
        named = {name: _plain(arrays[name][0]) for name in arrays if name in self._input_names}
        return named[_PIXELS] if list(named) == [_PIXELS] else named

    @property
    def input_size(self) -> int | None:
        """Pixels of the larger side that images are resized to, ``None`` if they are not or it cannot be told."""
        settings = self.describe()
        size = settings.get("size") or {}
        sides = [
            v for v in (size.values() if isinstance(size, dict) else [size]) if isinstance(v, int)
        ]
        return max(sides, default=None) if settings.get("do_resize") else None

    def describe(self) -> dict[str, Any]:
        """The processor's settings."""
        return json.loads(self._processor.to_json_string())


def _plain(array: Any) -> np.ndarray:
    values = np.asarray(array)
    return values.astype(np.float32) if values.dtype.kind == "f" else values
