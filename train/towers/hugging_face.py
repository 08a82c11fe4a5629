"""Towers of a Hugging Face model of one modality, or of one side of a dual encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cusa.data.encoders.text_towers import text_embedding, text_feature
from cusa.data.encoders.vision_encoder import (
    FEATURE_OF_POOLING,
    PIXELS,
    Pooling,
    VisionEncoder,
    is_dual_encoder,
    refuse_missing,
    refuse_other_models,
)
from cusa.data.errors import WEIGHTS, StudentError
from cusa.data.hub import load_advice, locate
from cusa.data.parsing import read_json
from cusa.data.pretrained import (
    lacking,
    load_embedding_model,
    load_image_processor,
    one_line_load_errors,
)
from cusa.train.settings import shortened
from cusa.train.towers.dual_encoder import (
    load_tokenization,
    probed_image_dim,
    probed_text_dim,
    tower_of_dual,
    usable_dim,
)
from cusa.train.towers.processors import ImageProcessing
from cusa.train.towers.tower import Tower
from cusa.train.towers.trunk import NamedInputs, Trunk

# Beside a model's configuration: the part of its output that becomes the features.
_POOLING_FILE = "pooling.json"


def image_tower(
    source: str,
    pretrained: bool = True,
) -> Tower:
    """Make an image tower of a vision model or a dual encoder.

    Its features are those that the model has as a teacher; see :class:`.VisionEncoder`.

    Args:
        source: Name or folder.
        pretrained: Whether to load weights; if not, they are random, for a checkpoint to replace.

    Raises:
        StudentError: If it cannot be loaded, or takes other inputs than pixels.
    """
    advice = load_advice(source, "student.image=hf:FOLDER")
    with one_line_load_errors("image tower", source, StudentError, advice):
        files = locate(source, StudentError)
        model, missing = load_embedding_model(files, pretrained)
        refuse_other_models(model, StudentError)
        preparation = ImageProcessing(load_image_processor(files))
        model.eval()
        if is_dual_encoder(model):
            _refuse_lacking(source, missing)
            trunk = tower_of_dual(without_tower(model, "text"), "image", source)
            pooling = None
        else:
            lacks_pooler = refuse_missing(source, missing, StudentError)
            pooling = _read_pooling(Path(files))
            encoder = _vision_encoder(model, lacks_pooler, pooling, preparation)
            pooling = _pooling_of(encoder)
            trunk = Trunk(encoder, model, type(model).__name__, source)
    dim = usable_dim(source, model, lambda: probed_image_dim(trunk, model, preparation))

    def save(folder: Path) -> None:
        model.config.save_pretrained(folder)
        preparation.image_processor.save_pretrained(folder)
        (folder / _POOLING_FILE).write_text(json.dumps(pooling))

    return Tower(trunk, dim, preparation, model, save, "image")


def text_tower(
    source: str,
    pretrained: bool = True,
) -> Tower:
    """Make a text tower of a text model or a dual encoder.

    Its features are the projected or pooled output of a text tower, and the mean over the tokens
    of any other model.

    Args:
        source: Name or folder.
        pretrained: Whether to load weights; if not, they are random, for a checkpoint to replace.

    Raises:
        StudentError: If it cannot be loaded, has no tokeniser, or takes other inputs than tokens.
    """
    advice = load_advice(source, "student.text=hf:FOLDER")
    with one_line_load_errors("text tower", source, StudentError, advice):
        files = locate(source, StudentError)
        model, missing = load_embedding_model(files, pretrained)
        model.eval()
        if not is_dual_encoder(model) and model.main_input_name != "input_ids":
            raise StudentError(
                f"{type(model).__name__} takes {model.main_input_name}, not tokens; use another "
                "model as text tower",
                name=type(model).__name__,
            )
        tokenization = load_tokenization(files, model)
        if is_dual_encoder(model):
            _refuse_lacking(source, missing)
            trunk = tower_of_dual(without_tower(model, "image"), "text", source)
        else:
            trunk = _text_trunk(model, source, missing)
    dim = usable_dim(source, model, lambda: probed_text_dim(trunk, model, tokenization, pretrained))

    def save(folder: Path) -> None:
        model.config.save_pretrained(folder)
        tokenization.tokenizer.save_pretrained(folder)

    return Tower(trunk, dim, tokenization, model, save, "text")


def _text_trunk(
    model: Any,
    source: str,
    missing: list[str],
) -> Trunk:
    feature = text_feature(model.config)
    if feature == "mean":  # which does not use the pooler
        missing = [name for name in missing if "pooler" not in name.split(".")]
    _refuse_lacking(source, missing)

    def encode(inputs: NamedInputs) -> torch.Tensor:
        return text_embedding(model, feature, inputs)

    return Trunk(encode, model, type(model).__name__, source)


def without_tower(
    model: Any,
    modality: str,
) -> Any:
    """Drop the modules of a dual encoder that only its other tower needs.

    Args:
        model: The dual encoder.
        modality: The tower that is not needed, ``"image"`` or ``"text"``.
    """
    names: tuple[str, ...] = ("text",)
    if modality == "image":
        names = ("vision", "visual", "image")
    for name, _ in list(model.named_children()):
        if name.startswith(names):
            setattr(model, name, None)
    return model


def _vision_encoder(
    model: Any,
    lacks_pooler: bool,
    pooling: Pooling | None,
    preparation: ImageProcessing,
) -> VisionEncoder:
    """Make the encoder of a vision model, trying it on two blank images."""
    blank = Image.new("RGB", (64, 48))
    pixels = preparation.pixels([blank, blank])
    return VisionEncoder(model, lacks_pooler, pooling, {PIXELS: pixels})


def _pooling_of(encoder: VisionEncoder) -> Pooling | None:
    for pooling, feature in FEATURE_OF_POOLING.items():
        if feature == encoder.feature:
            return pooling
    return None


def _read_pooling(folder: Path) -> Pooling | None:
    path = folder / _POOLING_FILE
    if not path.is_file():
        return None
    pooling = read_json(path)
    if pooling not in (None, *FEATURE_OF_POOLING):
        raise StudentError(
            f"{path} holds {shortened(str(pooling))}, which is no pooling; restore it, or train "
            "again",
            path=path,
        )
    return pooling


def _refuse_lacking(
    source: str,
    missing: list[str],
) -> None:
    if missing:
        raise StudentError(lacking(source, missing), location=WEIGHTS, name=source)
