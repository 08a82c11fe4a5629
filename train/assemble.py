"""What a run begins with: the store's teachers and encoders, and the student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cusa.data.errors import RunError, StudentError
from cusa.data.objects.folder import absolute_location
from cusa.data.store.reader import EmbeddingStore
from cusa.train.config import Config, DataConfig
from cusa.train.saving.provenance import Beginning, Provenance, StoredSplit, StoredTeacher
from cusa.train.saving.student_folder import load_saved
from cusa.train.saving.tensors import weights_sha256
from cusa.train.stores import Store
from cusa.train.student import (
    Processors,
    Student,
    StudentConfig,
    adapter_student,
    dual_encoder_student,
)
from cusa.train.used_teachers import (
    stored_teacher,
    used_teachers,
    with_logit_scales,
    with_teachers,
)
from cusa.train.validation_store import refuse_other_encoders, validation_split

_MODALITIES = ("image", "text")


def resolve(
    config: Config,
    store: Store,
    val_store: EmbeddingStore | None = None,
) -> tuple[Config, Provenance]:
    """Fill in the names of the store's teachers and encoders that a run uses.

    Args:
        config: The run's settings as given.
        store: The store.
        val_store: The store of ``data.val_embeddings``; ``None``: the same store.

    Returns:
        The settings with all names and with absolute paths, and what the run is trained on.

    Raises:
        CusaError: If a split, teacher or encoder is missing, or several would fit; lists them.
    """
    data = config.data
    student = config.student
    val_split = validation_split(config, val_store or store)
    fingerprints, validation = _splits_in_use(data.train_split, val_split, store, val_store)
    teachers = used_teachers(config, store)
    encoders: dict[str, StoredTeacher] = {}
    if student.name == "adapter":
        encoders = _stored_encoders(store, student.image_encoder, student.text_encoder)
    if val_store is not None:
        refuse_other_encoders(val_store, encoders)

    student = _with_names(student, encoders)
    if student.init is not None:
        student = replace(student, init=absolute_location(student.init))
    if Path(student.name).is_dir():
        student = replace(student, name=absolute_location(student.name))
    data = with_teachers(data, teachers)
    data = replace(_with_absolute_paths(data), val_split=val_split)
    provenance = Provenance(store.dataset, fingerprints, teachers, encoders, validation=validation)
    loss = with_logit_scales(config.loss, teachers)
    return replace(config, data=data, student=student, loss=loss), provenance


def _splits_in_use(
    train_split: str,
    val_split: str | None,
    store: Store,
    val_store: EmbeddingStore | None,
) -> tuple[dict[str, str], StoredSplit | None]:
    """Return the fingerprints of a run's splits of the store, and its split of another store."""
    fingerprints = {train_split: store.fingerprint(train_split)}
    if val_split is None:
        return fingerprints, None
    if val_store is not None:
        return fingerprints, StoredSplit.from_store(val_store, val_split)
    fingerprints[val_split] = store.fingerprint(val_split)
    return fingerprints, None


def _with_names(
    student: StudentConfig,
    encoders: Mapping[str, StoredTeacher],
) -> StudentConfig:
    """Fill in the names of encoders by modality, such as ``image_encoder``."""
    names: dict[str, Any] = {}
    for modality, encoder in encoders.items():
        names[f"{modality}_encoder"] = encoder.name
    return replace(student, **names)


def _with_absolute_paths(data: DataConfig) -> DataConfig:
    return replace(
        data,
        embeddings=absolute_location(data.embeddings),
        val_embeddings=data.val_embeddings and absolute_location(data.val_embeddings),
        image_root=data.image_root and absolute_location(data.image_root),
        val_image_root=data.val_image_root and absolute_location(data.val_image_root),
        cache=data.cache and absolute_location(data.cache),
    )


def _stored_encoders(
    store: Store,
    *wanted_names: str | None,
) -> dict[str, StoredTeacher]:
    """Pick the image and the text encoder that settings name.

    Args:
        store: The store.
        wanted_names: The image and the text encoder's names; ``None``: the store's only one.

    Returns:
        The encoders by modality.
    """
    chosen = {}
    for modality, wanted in zip(_MODALITIES, wanted_names, strict=True):
        name = store.pick_teacher(modality, wanted, f"--{modality}-encoder")
        chosen[modality] = stored_teacher(store, name)
    return chosen


class MadeStudent(NamedTuple):
    """The student that a run trains.

    Attributes:
        student: The model.
        processors: Image processor and tokeniser; ``None`` for the adapter.
        backbone: The transformers model within it; ``None`` for the adapter.
        beginning: The trained student whose weights it starts from, if any.
    """

    student: Student
    processors: Processors | None
    backbone: Any
    beginning: Beginning | None = None


def make_student(
    config: Config,
    provenance: Provenance,
    begun_in: Path | None,
) -> MadeStudent:
    """Make the student that a run begins with.

    Args:
        config: The run's settings, resolved.
        provenance: What the run is trained on; an adapter's sizes are those of its encoders.
        begun_in: The folder of the student's configuration, if the run has a checkpoint: its
            weights are loaded from there later, and none here. ``None`` for a new run.

    Raises:
        CusaError: If the student cannot be loaded; the message says how to get it.
    """
    if config.student.init is not None and begun_in is None:
        return _initial_student(Path(config.student.init), config, provenance)
    if config.student.name == "adapter":
        image_dim = provenance.encoders["image"].settings.dim
        text_dim = provenance.encoders["text"].settings.dim
        adapter = adapter_student(config.student, image_dim, text_dim)
        return MadeStudent(adapter, processors=None, backbone=None)
    if begun_in is not None and not (begun_in / "config.json").is_file():
        raise RunError(
            f"{begun_in} lacks the student's config.json; restore it, or train again in another "
            "--run-dir",
            path=begun_in,
        )
    source = str(begun_in or config.student.name)
    student, processors, backbone = dual_encoder_student(
        config.student, source, pretrained=begun_in is None
    )
    return MadeStudent(student, processors, backbone)


def _initial_student(
    path: Path,
    config: Config,
    provenance: Provenance,
) -> MadeStudent:
    """Load the trained student of ``--init``, backbone and heads."""
    saved = load_saved(path)
    origin = saved.origin
    wanted = config.student
    given = origin.config.student
    setting_names = ["name", "embed_dim"]
    if wanted.name == given.name == "adapter":
        setting_names.append("hidden_dim")

    differences = []
    for name in setting_names:
        value_given = getattr(given, name)
        value_wanted = getattr(wanted, name)
        if value_given != value_wanted:
            differences.append(f"student.{name} ({value_given!r} / {value_wanted!r})")
    for modality, encoder in origin.provenance.encoders.items():
        # Only adapters have encoders; if the names differ, the other student may have none.
        if not differences:
            differences += _unlike_encoder(encoder, provenance.encoders[modality])
    if differences:
        raise StudentError(
            f"--init {path} is not the student that the settings ask for: "
            f"{'; '.join(differences)}; leave these settings out, or pass another --init",
            path=path,
        )

    beginning = Beginning(
        path=str(path),
        sha256=weights_sha256(saved.student.state_dict()),
        dataset=origin.provenance.dataset,
        epoch=origin.epoch,
        step=origin.step,
    )
    return MadeStudent(saved.student, saved.processors, saved.backbone, beginning)


def _unlike_encoder(before: StoredTeacher, now: StoredTeacher) -> list[str]:
    """List the settings in which two encoders differ, apart from how their rows are rounded."""
    rounded_alike = replace(
        before.settings,
        precision=now.settings.precision,
        dtype=now.settings.dtype,
    )
    return [f"{now.name}.{field}" for field in rounded_alike.differences(now.settings)]
