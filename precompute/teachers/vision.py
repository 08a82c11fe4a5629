"""Hugging Face vision models as image teachers.

Examples are DINOv2 and DINOv3, MLCD, ViT, and the image towers of CLIP and SigLIP.
"""

from __future__ import annotations

import inspect
import json
from typing import Any

import numpy as np
from PIL import Image

from cusa.data.encoders.vision_encoder import (
    PIXELS,
    Pooling,
    VisionEncoder,
    is_dual_encoder,
    named_inputs,
    refuse_missing,
    refuse_other_models,
)
from cusa.data.errors import TeacherError, first_line
from cusa.data.hub import locate
from cusa.data.pretrained import load_embedding_model, load_image_processor, processed
from cusa.precompute.teachers.base import (
    FEATURE,
    Preprocessed,
    Teacher,
    default_batch_size,
    each_tensor,
    loading,
    stacked,
    weights_digest,
)


def load_vision(
    source: str,
    model_id: str,
    device: str,
    batch_size: int | None,
    pooling: Pooling | None = None,
) -> Teacher:
    """Load a Hugging Face vision model with its own preprocessing.

    Args:
        source: Hub name or folder.
        model_id: Name to record.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: Images per forward pass; ``None``: the device's default.
        pooling: The part of the output that becomes the row; ``None``: the best that the model has
            (:class:`.VisionEncoder`).

    Raises:
        TeacherError: If it cannot be loaded, or takes other inputs or has no such pooling.
    """
    with loading("vision model", source):
        files = locate(source, TeacherError)
        model, missing = load_embedding_model(files)
        lacks_pooler = refuse_missing(source, missing, TeacherError)
        refuse_other_models(model, TeacherError)
        preprocess = HuggingFaceTransform(load_image_processor(files), _input_names(model))
        model = model.eval().to(device)

    encode = probed_encoder(model, source, preprocess, lacks_pooler, pooling)
    return Teacher(
        modality="image",
        model_id=model_id,
        weights_sha256=weights_digest(model),
        dim=encode.dim,
        transform={FEATURE: encode.feature, **preprocess.describe()},
        source=source,
        encode=encode,
        batch_size=batch_size or default_batch_size(device, on_cpu=16),
        preprocess=preprocess,
    )


def _input_names(model: Any) -> tuple[str, ...]:
    """Return the names of the inputs that a model takes of images."""
    forward = model.forward
    if is_dual_encoder(model):
        forward = model.get_image_features
    return tuple(inspect.signature(forward).parameters)


def probed_encoder(
    model: Any,
    source: str,
    preprocess: HuggingFaceTransform,
    lacks_pooler: bool = False,
    pooling: Pooling | None = None,
) -> VisionEncoder:
    """Make the encoder of a model, trying it on two blank images.

    Arguments are those of :class:`VisionEncoder`.

    Raises:
        TeacherError: If the model fails on them.
    """
    try:
        blank = preprocess(Image.new("RGB", (64, 48)))
        probe = named_inputs(stacked([blank, blank]))
        device = next(model.parameters()).device
        probe = each_tensor(probe, lambda tensor: tensor.to(device))
        return VisionEncoder(model, lacks_pooler, pooling, probe)
    except TeacherError:
        raise
    except Exception as error:
        # A model's code may raise nearly anything on inputs that it does not take.
        raise TeacherError(
            f"{source!r} ({type(model).__name__}) fails on the output of its image processor "
            f"({first_line(error)}); check preprocessor_config.json, or use another model",
            name=source,
        ) from None


class HuggingFaceTransform:
    """A Hugging Face image processor as a function of one PIL image.

    Args:
        processor: The image processor.
        input_names: The outputs of the processor that the model takes.
    """

    def __init__(self, processor: Any, input_names: tuple[str, ...] = (PIXELS,)) -> None:
        self._processor = processor
        self._input_names = input_names

    def __call__(self, image: Image.Image) -> Preprocessed:
        """Preprocess an image.

        Returns:
            float32 ``[3, h, w]``, or arrays by name if the model takes more than pixels.

        Raises:
            ImageError: If the image is too narrow to be resized.
        """
        named: dict[str, np.ndarray] = {}
        for name, batch in processed(self._processor, [image]).items():
            if name in self._input_names:
                named[name] = np.asarray(batch[0])
                if named[name].dtype.kind == "f":
                    named[name] = named[name].astype(np.float32)
        if list(named) == [PIXELS]:
            return named[PIXELS]
        return named

    def describe(self) -> dict[str, Any]:
        """Return the processor's settings."""
        return json.loads(self._processor.to_json_string())
