"""Hugging Face vision models as image teachers: DINOv2/v3, MLCD, the image towers of CLIP and SigLIP, ViT, ..."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from cusa.data.errors import CusaError
from cusa.precompute.teachers.base import Teacher, cannot_load, weights_digest


def load_vision(source: str, model_id: str, device: str, batch_size: int | None) -> Teacher:
    """Load a Hugging Face vision model with its own preprocessing.

    Features are, in this order of preference: the projected image features of a dual encoder, the pooled output, the
    first token of the last layer (where the weights bring no pooler).

    Args:
        source: Hub name or folder.
        model_id: Name to record.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: Images per forward pass; ``None``: what suits the device.

    Raises:
        CusaError: If model or preprocessing cannot be loaded, or weights are missing.
    """
    from transformers import AutoImageProcessor, AutoModel

    try:
        processor: Any = AutoImageProcessor.from_pretrained(source)
        model, report = AutoModel.from_pretrained(source, output_loading_info=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise cannot_load("vision model", source, error) from None
    missing = sorted(report["missing_keys"])
    unpooled = [k for k in missing if "pooler" in k.split(".")]
    if len(missing) > len(unpooled):
        raise CusaError(f"{source!r}: its weights lack {missing[0]} and {len(missing) - 1} more; use complete weights")
    model = model.eval().to(device)
    encode = _Encoder(model, pooled=not unpooled)
    preprocess = HuggingFaceTransform(processor)
    probe = torch.from_numpy(preprocess(Image.new("RGB", (64, 48))))[None].to(device)
    with torch.inference_mode():
        dim = encode(probe).shape[-1]
    return Teacher(
        modality="image",
        model_id=model_id,
        weights_sha256=weights_digest(model),
        dim=dim,
        transform={"feature": encode.feature, **preprocess.describe()},
        source=source,
        encode=encode,
        batch_size=batch_size or (256 if torch.device(device).type == "cuda" else 16),
        preprocess=preprocess,
        input_size=preprocess.input_size,
    )


class _Encoder:
    def __init__(self, model: Any, pooled: bool) -> None:
        self._model = model
        self._pooled = pooled
        self.feature = (
            "image_features" if hasattr(model, "get_image_features") else "pooler" if pooled else "first_token"
        )

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.feature == "image_features":
            found = self._model.get_image_features(pixel_values=pixels)
            return found if isinstance(found, torch.Tensor) else found.pooler_output
        output = self._model(pixel_values=pixels)
        if self._pooled and getattr(output, "pooler_output", None) is not None:
            return output.pooler_output.flatten(1)  # convolutional models pool to [n, dim, 1, 1]
        self.feature = "first_token"
        return output.last_hidden_state[:, 0]


class HuggingFaceTransform:
    """A Hugging Face image processor as a function of one PIL image; float32 ``[3, h, w]``."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, image: Image.Image) -> np.ndarray:
        """float32 ``[3, h, w]`` of one image."""
        return self._processor(images=image.convert("RGB"), return_tensors="np")["pixel_values"][0].astype(np.float32)

    @property
    def input_size(self) -> int | None:
        """Pixels of the larger side that images are resized to, ``None`` if they are not or it cannot be told."""
        settings = self.describe()
        size = settings.get("size") or {}
        sides = [v for v in (size.values() if isinstance(size, dict) else [size]) if isinstance(v, int)]
        return max(sides, default=None) if settings.get("do_resize") else None

    def describe(self) -> dict[str, Any]:
        """The processor's settings."""
        return json.loads(self._processor.to_json_string())
