"""What a run begins with: the store's teachers and encoders, the student, the readers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cusa.data.errors import DataError, RunError, SettingError, StoreError, StudentError
from cusa.data.store.reader import EmbeddingStore
from cusa.train.config import Config, DataConfig
from cusa.train.loader import Pairs, Sources, open_sources
from cusa.train.saving.provenance import Beginning, Provenance, StoredTeacher
from cusa.train.saving.student_folder import load_saved
from cusa.train.saving.tensors import weights_sha256
from cusa.train.student import (
    Processors,
    Student,
    StudentConfig,
    adapter_student,
    dual_encoder_student,
)

_MODALITIES = ("image", "text")


def resolve(config: Config, store: EmbeddingStore) -> tuple[Config, Provenance]:
    """Name the store's teachers and encoders that a run uses, and keeps if the store gains others.

    Raises:
        CusaError: If a split, teacher or encoder is missing, or several could be meant; says which
            there are.
    """
    data = config.data
    student = config.student
    fingerprints = {data.train_split: store.split(data.train_split).fingerprint}
    val_split = _validation_split(config, store)
    if val_split is not None:
        fingerprints[val_split] = store.splits[val_split].fingerprint

    teachers: dict[str, StoredTeacher] = {}
    teacher_settings: dict[str, Any] = {}
    encoders: dict[str, StoredTeacher] = {}
    encoder_settings: dict[str, Any] = {}
    for modality in _MODALITIES:
        if {"csa", "usa"} & set(config.loss.terms):
            teachers[modality] = _stored_teacher(store, modality, data, "teacher")
            teacher_settings[f"{modality}_teacher"] = teachers[modality].name
        if student.name == "adapter":
            encoders[modality] = _stored_teacher(store, modality, student, "encoder")
            encoder_settings[f"{modality}_encoder"] = encoders[modality].name

    data = replace(
        data,
        embeddings=_absolute(data.embeddings),
        image_root=data.image_root and _absolute(data.image_root),
        val_split=val_split,
        **teacher_settings,
    )
    student = replace(
        student,
        init=student.init and _absolute(student.init),
        **encoder_settings,
    )
    if Path(student.name).is_dir():
        student = replace(student, name=_absolute(student.name))
    provenance = Provenance(store.dataset, fingerprints, teachers, encoders)
    return replace(config, data=data, student=student), provenance


def _stored_teacher(
    store: EmbeddingStore, modality: str, section: DataConfig | StudentConfig, role: str
) -> StoredTeacher:
    """Choose the store's teacher that a setting names; its role is ``teacher`` or ``encoder``."""
    wanted = getattr(section, f"{modality}_{role}")
    name = store.pick_teacher(modality, wanted, f"--{modality}-{role}")
    return StoredTeacher.from_store(store, name)


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def _validation_split(config: Config, store: EmbeddingStore) -> str | None:
    """Name the split to choose the best epoch on; ``None`` where the store lacks the usual one."""
    name = config.data.val_split
    if name is not None and name not in store.splits and name != DataConfig.val_split:
        splits = ", ".join(store.splits)
        missing = f"{store.path} has no split {name!r} to choose the best epoch on"
        message = f"{missing}; it has: {splits}"
        raise StoreError(
            f"{message}; name one with --set data.val_split=SPLIT",
            path=store.path,
            name=name,
        )
    if name in store.splits:
        return name
    if config.train.patience is not None:
        remedy = "leave it out, or name a split with --set data.val_split=SPLIT"
        message = f"--patience needs a validation split, and {store.path} has none to use; {remedy}"
        raise SettingError(message, name="train.patience")
    return None


class MadeStudent(NamedTuple):
    """The student that a run trains.

    Attributes:
        student: The model.
        processors: Image processor and tokeniser; ``None`` for the adapter.
        backbone: The transformers model within it; ``None`` for the adapter.
        beginning: What it began with, if its weights are those of a trained student.
    """

    student: Student
    processors: Processors | None
    backbone: Any
    beginning: Beginning | None = None


def make_student(config: Config, provenance: Provenance, begun_in: Path | None) -> MadeStudent:
    """Make the student that a run begins with.

    Args:
        config: The run's settings.
        provenance: Its encoders.
        begun_in: Where a run that has begun keeps the student's configuration; its weights come
            from a checkpoint.

    Raises:
        CusaError: If it cannot be had; says how to get it.
    """
    if config.student.init is not None and begun_in is None:
        return _initial_student(Path(config.student.init), config, provenance)
    if config.student.name == "adapter":
        image_dim = provenance.encoders["image"].settings.dim
        text_dim = provenance.encoders["text"].settings.dim
        return MadeStudent(adapter_student(config.student, image_dim, text_dim), None, None)
    if begun_in is not None and not (begun_in / "config.json").is_file():
        remedy = "restore it, or train again in another --run-dir"
        raise RunError(f"{begun_in} lacks the student's config.json; {remedy}", path=begun_in)
    if begun_in is None:
        source = config.student.name
    else:
        source = str(begun_in)
    return MadeStudent(*dual_encoder_student(config.student, source, pretrained=begun_in is None))


def _initial_student(path: Path, config: Config, provenance: Provenance) -> MadeStudent:
    """Load a trained student to go on from: its weights and heads.

    Raises:
        StudentError: If it is of another kind or size than the settings ask for, or works on other
            encoders' rows.
    """
    saved = load_saved(path)
    origin = saved.origin
    wanted = config.student
    given = origin.config.student
    setting_names = ["name", "embed_dim"]
    if wanted.name == given.name == "adapter":
        setting_names.append("hidden_dim")

    differences: list[str] = []
    for name in setting_names:
        given_value = getattr(given, name)
        wanted_value = getattr(wanted, name)
        if given_value != wanted_value:
            differences.append(f"student.{name} ({given_value!r} / {wanted_value!r})")
    for modality, encoder in origin.provenance.encoders.items():
        if not differences:  # an adapter
            differences += _unlike_encoder(encoder, provenance.encoders[modality])
    if differences:
        problem = f"--init {path} is not the student that the settings ask for"
        remedy = "leave these settings out, or pass another --init"
        raise StudentError(f"{problem}: {'; '.join(differences)}; {remedy}", path=path)

    digest = weights_sha256(saved.student.state_dict())
    beginning = Beginning(str(path), digest, origin.provenance.dataset, origin.epoch, origin.step)
    return MadeStudent(saved.student, saved.processors, saved.backbone, beginning)


def _unlike_encoder(before: StoredTeacher, now: StoredTeacher) -> list[str]:
    """List what differs of two encoders' rows, but for how they are rounded."""
    rounded_alike = replace(
        before.settings,
        precision=now.settings.precision,
        dtype=now.settings.dtype,
    )
    return [f"{now.name}.{field}" for field in rounded_alike.differences(now.settings)]


def student_sources(
    store: EmbeddingStore,
    split: str,
    config: Config,
    encoders: tuple[str, ...],
    processors: Processors | None,
) -> Sources:
    """Open the readers of a student's inputs for one split.

    Args:
        store: The store.
        split: The split's name.
        config: The run's settings.
        encoders: Adapter: names of the image and the text encoder in the store; else empty.
        processors: Hugging Face student: its processors.

    Raises:
        CusaError: If the split, an encoder's rows or the image folder are not there.
    """
    encoder_names: tuple[str, str] | None = None
    if encoders:
        encoder_names = (encoders[0], encoders[1])
    image_root: Path | None = None
    if config.data.image_root:
        image_root = Path(config.data.image_root)
    return open_sources(
        store,
        split,
        encoders=encoder_names,
        processors=processors,
        image_root=image_root,
        normalizer_name=config.data.normalizer,
    )


def validation_sources(
    store: EmbeddingStore, config: Config, encoders: tuple[str, ...], processors: Processors | None
) -> Sources | None:
    """Open the readers of the validation split, if the run has one; see :func:`student_sources`.

    Raises:
        CusaError: As of :func:`student_sources`, or if no image or no caption of the split has an
            input: now, not after the first epoch.
    """
    split = config.data.val_split
    if split is None:
        return None
    sources = student_sources(store, split, config, encoders, processors)
    no_image, no_text = sources.inputs.missing()
    if len(no_image) == sources.split.n_images or len(no_text) == sources.split.n_captions:
        remedy = "name another with --set data.val_split=SPLIT, or none: --set data.val_split=null"
        raise DataError(
            f"split {split!r} has no image or no caption to validate on; {remedy}",
            name=split,
        )
    return sources


def training_pairs(
    store: EmbeddingStore, sources: Sources, config: Config, provenance: Provenance
) -> Pairs:
    """Join the trainable pairs, with the teachers' rows where soft labels are used.

    Raises:
        CusaError: If a teacher's rows are not there.
    """
    if not provenance.teachers:
        return Pairs(*sources, None)
    split = config.data.train_split
    image_rows = store.embeddings(provenance.teachers["image"].name, split)
    text_rows = store.embeddings(provenance.teachers["text"].name, split)
    return Pairs(*sources, (image_rows, text_rows))
