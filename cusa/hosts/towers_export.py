"""Exporting a student to sentence-transformers, tower by tower, with one of the heads of each.

Where sentence-transformers' own modules give the rows of a stored tower's encoder, or a trained
tower's features, the export consists of these and needs no cusa. Otherwise the encoder becomes a
:class:`~cusa.hosts.frozen_encoder.FrozenEncoder`, the trained tower a
:class:`~cusa.hosts.trained_tower.TrainedTower`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)
from torch import nn

from cusa.data.captions import normalizer
from cusa.data.embeddings import Head
from cusa.data.errors import TeacherError
from cusa.data.hub import locate
from cusa.data.store.schema import TeacherSettings
from cusa.eval.models.student import StudentEncoder
from cusa.hosts.frozen_encoder import FrozenEncoder, RoundedRows
from cusa.hosts.trained_tower import TrainedTower
from cusa.precompute.teachers.base import FEATURE, Teacher
from cusa.precompute.teachers.sentence import is_text_tower, open_model
from cusa.train.saving.model_card import Usage
from cusa.train.saving.probes import (
    PROBE_CAPTIONS,
    TOLERANCE,
    check_embeddings,
    probe_images,
)
from cusa.train.saving.sentence_transformers_modules import (
    head_modules,
    routed_model,
    with_normalizer,
)
from cusa.train.saving.student_folder import SavedStudent
from cusa.train.student_config import MODALITIES, Modality
from cusa.train.towers.lora import merge_adapters

# For the features of a vision model that sentence-transformers can take: the method to call, the
# field of its output, and whether that is an embedding per token.
_VISION_OUTPUTS = {
    "image_features": ("get_image_features", "pooler_output", False),
    "pooler": ("forward", "pooler_output", False),
    "first_token": ("forward", "last_hidden_state", True),
}
_OUR_MODULES = (FrozenEncoder, TrainedTower)
_UNROUNDED_TOLERANCE = 1e-2
_NO_CODE = {"trust_remote_code": False}


def save_towers(
    folder: Path,
    saved: SavedStudent,
    head: Head,
    encoders: dict[str, str] | None = None,
) -> Usage:
    """Write the modules of a student's towers, and one of the heads of each.

    Args:
        folder: Where to write them.
        saved: The student.
        head: The head.
        encoders: Sources of stored towers' frozen encoders by ``"image"`` and ``"text"``, as
            ``cusa-precompute --teacher`` takes them; by default those that stage one used.

    Returns:
        What the folder is for.

    Raises:
        TeacherError: If an encoder cannot be loaded.
        StudentError: If the folder gives other embeddings than the student.
    """
    student = StudentEncoder(saved, encoders=encoders)
    stored_encoders = saved.origin.provenance.encoders
    routes = {modality: _tower_modules(student, saved, modality) for modality in MODALITIES}
    needs_cusa = any(isinstance(modules[0], _OUR_MODULES) for modules in routes.values())
    for modality, modules in routes.items():
        trunk, heads = _trunk_and_heads(student, modality)
        if modality in stored_encoders:
            if needs_cusa:
                modules.append(RoundedRows(stored_encoders[modality].settings.dtype))
            modules.append(_dense(trunk))
        modules += head_modules(heads.get_submodule(head))
    model = routed_model([], routes)
    model.save(str(folder), create_model_card=False)
    _check(student, model, folder, head, needs_cusa)
    return Usage("sentence-transformers", head, needs_cusa=needs_cusa)


def _tower_modules(
    student: StudentEncoder,
    saved: SavedStudent,
    modality: Modality,
) -> list[Any]:
    """Return modules that give a stored tower's rows, or a trained tower's features."""
    stored = saved.origin.provenance.encoders.get(modality)
    if stored is None:
        return _trained_modules(saved, modality)
    return _encoder_modules(student.encoder(modality), stored.name, stored.settings)


def _trained_modules(
    saved: SavedStudent,
    modality: Modality,
) -> list[Any]:
    """Return modules that give a trained tower's features: sentence-transformers' own, or ours."""
    tower = saved.towers.of(modality)
    merge_adapters(tower.model)
    name = str(saved.origin.config.student.towers[modality])
    normalizer_name = saved.origin.config.data.normalizer
    if isinstance(tower.model, SentenceTransformer):
        modules = list(tower.model)
        if _set_normalizer(modules[0], normalizer_name):
            return modules
    return [TrainedTower(tower, name, modality, normalizer_name)]


def _trunk_and_heads(student: StudentEncoder, modality: str) -> tuple[nn.Module, nn.Module]:
    module = student.student
    if modality == "image":
        return module.image_trunk, module.image_heads
    return module.text_trunk, module.text_heads


def _dense(trunk: nn.Module) -> Dense:
    """Make sentence-transformers' module of a trunk: linear, GELU, and dropout to train it."""
    linear, activation, _ = trunk.children()
    dense = Dense(linear.in_features, linear.out_features, activation_function=activation)
    dense.linear = linear
    return dense


def _encoder_modules(
    teacher: Teacher,
    name: str,
    settings: TeacherSettings,
) -> list[Any]:
    """Return modules that give a teacher's rows: sentence-transformers' own, or ours."""
    try:
        own_modules = _own_modules(teacher, settings)
        if own_modules and _agree(own_modules, teacher, settings):
            return own_modules
    except Exception:  # what sentence-transformers raises for models that it does not take
        pass
    return [FrozenEncoder(name, teacher.source, settings)]


def _own_modules(teacher: Teacher, settings: TeacherSettings) -> list[Any]:
    """Make sentence-transformers' own modules of a teacher; none if there are none for it."""
    if teacher.modality == "text":
        return _text_modules(teacher.source, settings)
    feature = teacher.transform.get(FEATURE)
    if feature in _VISION_OUTPUTS:
        return _vision_modules(teacher.source, feature)
    return []


def _text_modules(source: str, settings: TeacherSettings) -> list[Any]:
    if is_text_tower(source) or settings.transform.get("prompt"):
        return []
    modules = list(open_model(source, "cpu"))
    if not _set_normalizer(modules[0], settings.normalizer):
        return []
    if not isinstance(modules[-1], Normalize):
        modules.append(Normalize())
    return modules


def _set_normalizer(
    module: Any,
    normalizer_name: str,
) -> bool:
    """Let a module's tokeniser normalise captions; return whether it can."""
    tokenizer, as_written = with_normalizer(module.tokenizer, normalizer_name)
    if not as_written:
        return False
    if module.processor is module.tokenizer:
        module.processor = tokenizer
    else:
        module.processor.tokenizer = tokenizer
    return True


def _vision_modules(source: str, feature: str) -> list[Any]:
    method, field, is_per_token = _VISION_OUTPUTS[feature]
    output_name = "token_embeddings" if is_per_token else "sentence_embedding"
    transformer = Transformer(
        locate(source, TeacherError),
        model_kwargs={**_NO_CODE, "dtype": torch.float32},
        processor_kwargs={**_NO_CODE, "backend": "pil"},
        config_kwargs=_NO_CODE,
        modality_config={"image": {"method": method, "method_output_name": field}},
        module_output_name=output_name,
    )
    processor = transformer.processor
    getattr(processor, "image_processor", processor).do_convert_rgb = True
    if is_per_token:
        return [transformer, Pooling(transformer.get_embedding_dimension(), "cls"), Normalize()]
    return [transformer, Normalize()]


def _agree(modules: list[Any], teacher: Teacher, settings: TeacherSettings) -> bool:
    """Return whether modules give the teacher's rows on the probes."""
    probes: list[Any] = probe_images()
    teacher_probes = probes
    if teacher.modality == "text":
        probes = PROBE_CAPTIONS
        teacher_probes = list(map(normalizer(settings.normalizer), probes))
    model = SentenceTransformer(modules=modules, device="cpu").eval()
    for probe, teacher_probe in zip(probes, teacher_probes, strict=True):
        row = model.encode([probe], show_progress_bar=False)
        # float32 for a teacher of any precision: its own rounding is no fault of the modules.
        expected = teacher.rows(teacher.inputs([teacher_probe]), "cpu", "fp32")
        if row.shape != expected.shape or not abs(row - expected).max() <= TOLERANCE:
            return False
    return True


def _check(
    student: StudentEncoder,
    model: SentenceTransformer,
    folder: Path,
    head: Head,
    needs_cusa: bool,
) -> None:
    """Refuse a folder whose embeddings differ from the student's by more than rounding."""
    tolerance = TOLERANCE
    if not needs_cusa:
        model = SentenceTransformer(
            str(folder),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
        )
        # Its encoders agree with the teachers (_agree), but it does not round their rows.
        tolerance = _UNROUNDED_TOLERANCE
    images = probe_images()
    image_rows = student.encode_image(images, head)
    text_rows = student.encode_text(PROBE_CAPTIONS, head)
    probes = [
        (images, torch.from_numpy(image_rows)),
        (PROBE_CAPTIONS, torch.from_numpy(text_rows)),
    ]
    check_embeddings(model, probes, student.origin.config.student.title, tolerance)
