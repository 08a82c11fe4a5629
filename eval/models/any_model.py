"""Loading of any model as an encoder, by name or folder.

It may be a trained student, a Hugging Face or sentence-transformers model, or a teacher.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cusa.data.errors import CusaError, RunError
from cusa.data.hub import locate
from cusa.data.pretrained import load_config, one_line_load_errors
from cusa.eval.models.devices import chosen_device
from cusa.eval.models.model_encoder import ModelEncoder
from cusa.eval.models.protocols import Encoder
from cusa.eval.models.student import StudentEncoder, folder_name
from cusa.precompute.teachers import KNOWN, parse_teacher
from cusa.precompute.teachers.base import Teacher, weights_digest
from cusa.precompute.teachers.sentence import (
    is_text_tower,
    load_sentence,
    open_model,
    text_teacher,
)
from cusa.precompute.teachers.vision import HuggingFaceTransform, load_vision
from cusa.train.saving.hub_student import student_on_hub
from cusa.train.saving.run_dir import begun, load_trained
from cusa.train.saving.student_folder import student_folder
from cusa.train.towers.dual_encoder import load_dual_encoder

LEGAL_MODELS = (
    "a run of cusa-train or an exported folder, the name or folder of a Hugging Face or "
    f"sentence-transformers model (owner/model), a teacher ({', '.join(KNOWN)}), or NAME=PATH of "
    "one"
)


def load_encoder(
    spec: str | os.PathLike[str],
    device: str | None = None,
    checkpoint: str = "best",
) -> Encoder:
    """Load a model of any kind that embeds images or texts.

    Args:
        spec: A run of cusa-train, or a folder with a student; else the name of a teacher, or
            ``NAME=PATH`` of one; else the folder or hub name (``owner/model``) of a student or a
            model. A model with ``modules.json`` is loaded by sentence-transformers; one with both
            towers as a dual encoder, without any heads on its features; any other as a vision or a
            sentence model.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; ``None`` for a GPU if there is one.
        checkpoint: The student of a run to load: ``"best"`` or ``"last"``.

    Raises:
        CusaError: If it is none of these, or cannot be loaded; the message says what is legal, or
            how to get the model.
    """
    try:
        return _load(os.fspath(spec), chosen_device(device), checkpoint)
    except CusaError as error:
        # Teachers' errors name --teacher, an option of another command.
        raise error.reworded(str(error).replace("--teacher ", "")) from None


def _load(spec: str, device: str, checkpoint: str) -> Encoder:
    # Folders take precedence: a student's folder may have the name of a teacher.
    folder = Path(spec)
    if folder.is_dir() and _holds_student(folder):
        student = load_trained(folder, checkpoint)
        return StudentEncoder(student, device, source=folder)

    if _names_teacher(spec):
        request = parse_teacher(spec)
        return ModelEncoder(request.name, "teacher", [request.load(device)], device)

    check_model_name(spec)
    with one_line_load_errors("model", spec, RunError, f"legal: {LEGAL_MODELS}"):
        return _load_model(spec, device, checkpoint)


def _names_teacher(model_name: str) -> bool:
    # NAME=PATH, unless a folder has that very name.
    names_source = "=" in model_name and not Path(model_name).exists()
    return model_name in KNOWN or names_source


def check_model_name(model_name: str) -> None:
    """Refuse what is neither a teacher, nor the folder of a model, nor a possible hub name.

    Raises:
        RunError: Says what is legal.
    """
    folder = Path(model_name)
    if _names_teacher(model_name) or _holds_student(folder):
        return
    if folder.is_dir():
        model_files = (folder / "modules.json", folder / "config.json")
        if not any(file.is_file() for file in model_files):
            raise RunError(
                f"folder {model_name} holds no student, no modules.json and no config.json; legal: "
                f"{LEGAL_MODELS}",
                path=folder,
                name=model_name,
            )
    elif model_name.count("/") != 1 or model_name.startswith((".", "/", "~")):
        raise RunError(f"unknown model {model_name!r}; legal: {LEGAL_MODELS}", name=model_name)


def _holds_student(folder: Path) -> bool:
    try:
        return bool(student_folder(folder))
    except CusaError:
        return begun(folder)  # a run may have no student yet, which loading it reports


def _load_model(
    spec: str,
    device: str,
    checkpoint: str,
) -> Encoder:
    """Load a model by folder or hub name, which may also be a student's."""
    from sentence_transformers.util import is_sentence_transformer_model
    from transformers import MODEL_MAPPING

    files = locate(spec, RunError)
    if not Path(spec).is_dir():
        student = student_on_hub(spec)
        if student is not None:
            return StudentEncoder(load_trained(student, checkpoint), device, source=Path(spec))
    name = folder_name(Path(spec)) if Path(spec).is_dir() else spec
    if is_sentence_transformer_model(files):
        return _load_sentence_transformer(spec, name, device)

    # The class of a model tells which towers it has, before any weights are loaded.
    model_class: Any = MODEL_MAPPING.get(type(load_config(files)), None)
    has_image_tower = hasattr(model_class, "get_image_features")
    has_text_tower = hasattr(model_class, "get_text_features")
    if has_image_tower and has_text_tower:
        return ModelEncoder(name, "hf", _load_towers(spec, name, device), device)

    if getattr(model_class, "main_input_name", "") == "pixel_values":
        return ModelEncoder(name, "hf", [load_vision(spec, name, device, None)], device)
    if is_text_tower(spec):
        return ModelEncoder(name, "hf", [load_sentence(spec, name, device, None)], device)
    # For any other language model, sentence-transformers averages the token embeddings.
    return _load_sentence_transformer(spec, name, device)


def _load_sentence_transformer(spec: str, name: str, device: str) -> ModelEncoder:
    model = open_model(spec, device)
    text_tower = text_teacher(model, spec, name, device, None)
    prompt = text_tower.transform["prompt"]

    def image_inputs(images: Sequence[Any]) -> Mapping[str, Any]:
        rgb_images = [image.convert("RGB") for image in images]
        return model.preprocess(rgb_images, prompt=prompt)

    towers: list[Teacher] = []
    if model.supports("text"):
        towers.append(text_tower)
    if model.supports("image"):
        towers.append(replace(text_tower, modality="image", tokenize=image_inputs))
    if not towers:
        raise RunError(
            f"{spec!r} embeds neither images nor texts, only {model.modalities}; pass a model that "
            "embeds one of them",
            name=spec,
        )
    return ModelEncoder(name, "sentence-transformers", towers, device)


def _load_towers(spec: str, name: str, device: str) -> list[Teacher]:
    """Load both towers of a Hugging Face dual encoder."""
    dual_encoder = load_dual_encoder(spec, pretrained=True)
    if dual_encoder.image_dim != dual_encoder.text_dim:
        raise RunError(
            f"{spec!r}: image and text features differ in dimension ({dual_encoder.image_dim} and "
            f"{dual_encoder.text_dim}); pass another dual encoder",
            name=spec,
        )
    dual_encoder.model.eval().to(device)
    tokenization = dual_encoder.tokenization
    preprocess = HuggingFaceTransform(dual_encoder.image_processing.image_processor)
    image_tower = Teacher(
        modality="image",
        model_id=name,
        weights_sha256=weights_digest(dual_encoder.model),
        dim=dual_encoder.image_dim,
        transform={"feature": "image_features", **preprocess.describe()},
        source=spec,
        encode=dual_encoder.image_tower,
        batch_size=32,
        preprocess=preprocess,
    )
    text_tower = replace(
        image_tower,
        modality="text",
        transform={
            "feature": "text_features",
            "max_length": tokenization.max_length,
            "padding": tokenization.padding,
        },
        encode=dual_encoder.text_tower,
        preprocess=None,
        tokenize=lambda captions: tokenization.tokens(list(captions)),
    )
    return [image_tower, text_tower]
