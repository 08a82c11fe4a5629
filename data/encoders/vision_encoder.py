"""Pooling of a Hugging Face vision model's output to a row per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from cusa.data.errors import WEIGHTS, CusaError, TeacherError
from cusa.data.pretrained import lacking

Pooling = Literal["cls", "mean", "pooler"]
Tensors = torch.Tensor | Mapping[str, Any]
NamedTensors = Mapping[str, torch.Tensor]
PIXELS = "pixel_values"
# ``location`` of the error if a model lacks the requested pooling.
POOLING = "pooling"
# The part of a model's output that each pooling takes.
FEATURE_OF_POOLING: dict[Pooling, str] = {"cls": "first_token", "mean": "mean", "pooler": "pooler"}
_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")


def is_dual_encoder(model: Any) -> bool:
    """Return whether a transformers model embeds both images and texts."""
    return hasattr(model, "get_image_features") and hasattr(model, "get_text_features")


def refuse_missing(
    source: str,
    missing: Sequence[str],
    error_class: type[CusaError],
) -> bool:
    """Refuse a vision model some of whose weights are missing, apart from those of its pooler.

    Args:
        source: Its folder or hub name.
        missing: Names of the weights that its files lack.
        error_class: Class of the error to raise.

    Returns:
        Whether the pooler's weights are missing.

    Raises:
        CusaError: An ``error_class``, which names a missing weight.
    """
    lacks_pooler = False
    needed = []
    for name in missing:
        if "pooler" in name.split("."):
            lacks_pooler = True
        elif not name.endswith("mask_token"):  # used in pretraining only
            needed.append(name)
    if needed:
        raise error_class(lacking(source, needed), location=WEIGHTS, name=source)
    return lacks_pooler


def refuse_other_models(model: Any, error_class: type[CusaError]) -> None:
    """Refuse models that are not image encoders: generative models, detectors, text models.

    Args:
        model: A model of transformers.
        error_class: Class of the error to raise.

    Raises:
        CusaError: An ``error_class``.
    """
    if is_dual_encoder(model):
        return
    name = type(model).__name__
    if model.main_input_name != PIXELS:
        problem = f"takes {model.main_input_name}, not pixels"
    elif getattr(model.config, "is_encoder_decoder", False) or hasattr(model, "get_image_features"):
        problem = "is more than an image encoder"
    else:
        return
    raise error_class(f"{name} {problem}; use another model for images", name=name)


def named_inputs(inputs: Any) -> NamedTensors:
    """Return a batch of images of one size, as tensors by name."""
    if isinstance(inputs, Mapping):
        return inputs
    return {PIXELS: inputs}


class VisionEncoder:
    """A vision model as a function from a batch of images to their rows.

    The row of an image is the first of these that the model has: the projected image features of a
    dual encoder (``image_features``) or of an image tower with a projection (``image_embeds``); the
    pooled output (``pooler``), unless its weights are missing; the class token of the last layer
    (``first_token``); the mean over the patches or the feature map (``mean``).

    Args:
        model: A transformers model in eval mode.
        lacks_pooler: Whether weights that the pooled output needs are missing.
        pooling: The part of the output that becomes the row; ``None``: the best that the model has.
        probe: Inputs of several images, to try the model on.

    Attributes:
        feature: The part of the output that becomes the row, such as ``"pooler"``.
        dim: Embedding dimension.

    Raises:
        TeacherError: If the model has no such pooling.
        ValueError: If the output is not one row per image.
    """

    def __init__(
        self,
        model: Any,
        lacks_pooler: bool,
        pooling: Pooling | None,
        probe: NamedTensors,
    ) -> None:
        self._model = model
        self._name = type(model).__name__
        self._tower = model
        if pooling is not None:
            self._tower = self._image_tower()
        self._lacks_pooler = lacks_pooler
        parameters = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
        self._has_class_token = not parameters.isdisjoint(_CLASS_TOKENS)
        self._leading_tokens = _count_leading_tokens(parameters, model.config)

        with torch.no_grad():
            if pooling is None and is_dual_encoder(model):
                self.feature = "image_features"
            else:
                output = self._run(probe)
                if _begins_with_pooled_output(output):
                    self._leading_tokens = max(self._leading_tokens, 1)
                self.feature = self._choose_feature(output, pooling, probe)
            rows = self(probe)
        if rows.ndim != 2 or len(rows) != len(probe[PIXELS]):
            raise ValueError(f"its output is {list(rows.shape)}, not one row for each image")
        self.dim = rows.shape[1]

    def __call__(self, inputs: Tensors) -> torch.Tensor:
        """Encode a batch: ``[n, dim]``, not normalised."""
        named = named_inputs(inputs)
        if self.feature == "image_features":
            features = self._model.get_image_features(**named)
            if isinstance(features, torch.Tensor):
                return features
            return features.pooler_output  # of some versions of transformers

        output = self._run(named)
        if self.feature == "image_embeds":
            return output.image_embeds
        if self.feature == "pooler":
            # Convolutional models pool to [n, dim, 1, 1].
            return output.pooler_output.flatten(1)
        if self.feature == "first_token":
            return output.last_hidden_state[:, 0]
        return self._mean(output.last_hidden_state, named)

    def _image_tower(self) -> Any:
        """Return the model or, for a dual encoder, its image tower, to which pooling applies."""
        if not is_dual_encoder(self._model):
            return self._model
        tower = getattr(self._model, "vision_model", None)
        if tower is None:
            raise self._no_pooling("its image tower cannot be used alone; leave out --pooling")
        return tower

    def _run(self, inputs: NamedTensors) -> Any:
        if "MAE" not in self._name:
            return self._tower(**inputs)
        # A masked autoencoder sorts its patches by random noise; ascending noise keeps their order.
        pixels = inputs[PIXELS]
        n_patches = self._count_patches(pixels) or 0
        order = torch.arange(n_patches, dtype=torch.float32, device=pixels.device)
        return self._tower(**inputs, noise=order.expand(len(pixels), -1))

    def _choose_feature(
        self,
        output: Any,
        pooling: Pooling | None,
        probe: NamedTensors,
    ) -> str:
        """Choose the part of the output that becomes the row; refuse a pooling it lacks."""
        if pooling is None and getattr(output, "image_embeds", None) is not None:
            return "image_embeds"
        is_pooled = getattr(output, "pooler_output", None) is not None
        is_pooled = is_pooled and not self._lacks_pooler
        begins_with_class_token = self._begins_with_class_token(output, probe)
        if pooling == "pooler" and not is_pooled:
            raise self._no_pooling(
                "it has no pooled output, or no weights for one; pass --pooling mean",
            )
        if pooling == "cls" and not begins_with_class_token:
            raise self._no_pooling("it has no class token; pass --pooling mean")
        if pooling is not None:
            return FEATURE_OF_POOLING[pooling]
        if is_pooled:
            return "pooler"
        if begins_with_class_token:
            return "first_token"
        return "mean"

    def _begins_with_class_token(self, output: Any, probe: NamedTensors) -> bool:
        tokens = getattr(output, "last_hidden_state", None)
        if not self._has_class_token or tokens is None:
            return False
        if tokens.ndim != 3:
            return False
        n_patches = self._count_patches(probe[PIXELS])
        return n_patches is None or tokens.shape[1] >= self._leading_tokens + n_patches

    def _mean(self, features: torch.Tensor, inputs: NamedTensors) -> torch.Tensor:
        """Average a map ``[n, dim, h, w]``, or the patches in tokens ``[n, tokens, dim]``."""
        if features.ndim == 4:
            return features.mean(dim=(2, 3))
        if "pixel_attention_mask" in inputs:
            weights = inputs["pixel_attention_mask"][..., None].to(features.dtype)
            return (features * weights).sum(dim=1) / weights.sum(dim=1)

        n_tokens = features.shape[1]
        first_patch = self._leading_tokens
        if first_patch >= n_tokens:
            first_patch = 0
        n_patches = self._count_patches(inputs[PIXELS])
        if n_patches is None or n_tokens < self._leading_tokens + n_patches:
            n_patches = n_tokens
        return features[:, first_patch : first_patch + n_patches].mean(dim=1)

    def _count_patches(self, pixels: torch.Tensor) -> int | None:
        """Count the patches of an image in ``[n, 3, h, w]``; ``None`` if it is unknown."""
        size = getattr(self._tower.config, "patch_size", None)
        if not isinstance(size, list | tuple) or len(size) != 2:
            size = (size, size)
        height, width = size
        if not isinstance(height, int) or not isinstance(width, int):
            return None
        if pixels.ndim != 4:
            return None
        return (pixels.shape[2] // height) * (pixels.shape[3] // width)

    def _no_pooling(self, problem: str) -> TeacherError:
        return TeacherError(f"{self._name}: {problem}", name=self._name, location=POOLING)


def _count_leading_tokens(parameters: set[str], config: Any) -> int:
    """Count the tokens before the patches: class, distillation and register tokens."""
    count = int(not parameters.isdisjoint(_CLASS_TOKENS))
    count += int("distillation_token" in parameters)
    if "register_tokens" in parameters:
        count += int(getattr(config, "num_register_tokens", 0))
    return count


def _begins_with_pooled_output(output: Any) -> bool:
    """Return whether the first of several tokens is the pooled output, as in DINOv3 ConvNeXt."""
    tokens = getattr(output, "last_hidden_state", None)
    pooled = getattr(output, "pooler_output", None)
    if tokens is None or pooled is None:
        return False
    if tokens.ndim != 3 or tokens.shape[1] < 2:
        return False
    first_token = tokens[:, 0]
    return pooled.shape == first_token.shape and torch.equal(pooled, first_token)
