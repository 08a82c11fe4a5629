"""What a run begins with: the store's teachers and encoders, and the student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cusa.data.errors import RunError, StudentError
from cusa.data.objects.folder import absolute_location
from cusa.data.store.reader import EmbeddingStore
from cusa.train.build_student import build_student, choose_trained, described_in
from cusa.train.config import Config, DataConfig
from cusa.train.saving.provenance import Beginning, Provenance, StoredSplit, StoredTeacher
from cusa.train.saving.student_folder import Origin, load_saved
from cusa.train.saving.tensors import weights_sha256
from cusa.train.stores import Store
from cusa.train.student import Student
from cusa.train.student_config import MODALITIES, Modality, StudentConfig, TowerSpec
from cusa.train.towers.lora import merge_adapters
from cusa.train.towers.tower import Towers
from cusa.train.used_teachers import (
    stored_teacher,
    used_teachers,
    with_logits_of,
    with_teachers,
)
from cusa.train.validation_store import refuse_other_encoders, validation_split


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
    encoders = _stored_encoders(store, student)
    if val_store is not None:
        refuse_other_encoders(val_store, encoders)

    student = _resolved_student(student, encoders)
    data = with_teachers(data, teachers)
    data = replace(_with_absolute_paths(data), val_split=val_split)
    provenance = Provenance(store.dataset, fingerprints, teachers, encoders, validation=validation)
    loss = with_logits_of(config.loss, [rows.settings for rows, _ in teachers.cross])
    return replace(config, data=data, student=student, loss=loss), provenance


def _resolved_student(
    student: StudentConfig,
    encoders: Mapping[str, StoredTeacher],
) -> StudentConfig:
    """Fill in the names of encoders, and make paths absolute."""
    towers = student.towers
    changes: dict[str, Any] = {}
    for modality in MODALITIES:
        if getattr(student, modality) is not None:
            tower = _resolved_tower(towers[modality], modality, encoders)
            changes[modality] = str(tower)
    student = _with_names(replace(student, **changes), encoders)
    if len(changes) == len(MODALITIES):
        student = replace(student, name=student.title)  # which neither tower is of
    if student.init is not None:
        student = replace(student, init=absolute_location(student.init))
    if Path(student.name).is_dir():
        student = replace(student, name=absolute_location(student.name))
    return student


def _resolved_tower(
    tower: TowerSpec,
    modality: Modality,
    encoders: Mapping[str, StoredTeacher],
) -> TowerSpec:
    if tower.is_stored:
        return replace(tower, name=encoders[modality].name)
    if tower.name and Path(tower.name).is_dir():
        return replace(tower, name=absolute_location(tower.name))
    return tower


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
    student: StudentConfig,
) -> dict[str, StoredTeacher]:
    """Pick the teachers of stored towers: those that settings name, or the store's only ones.

    Args:
        store: The store.
        student: Settings of the student.

    Returns:
        The encoders by modality.

    Raises:
        StoreError: If a teacher is missing, or several would fit; lists them.
    """
    chosen: dict[str, StoredTeacher] = {}
    towers = student.towers
    for modality in student.stored:
        flag = f"--{modality}-encoder"
        wanted = student.encoder(modality)
        tower_name = towers[modality].name
        if tower_name and tower_name != wanted:  # then the option would contradict the tower
            flag = f"student.{modality}=stored:NAME"
            wanted = tower_name
        name = store.pick_teacher(modality, wanted, flag)
        chosen[modality] = stored_teacher(store, name)
    return chosen


class MadeStudent(NamedTuple):
    """The student that a run trains.

    Attributes:
        student: The model.
        towers: Its towers.
        beginning: The trained student whose weights it starts from, if any.
    """

    student: Student
    towers: Towers
    beginning: Beginning | None = None


def make_student(
    config: Config,
    provenance: Provenance,
    begun_in: Path | None,
) -> MadeStudent:
    """Make the student that a run begins with.

    Args:
        config: The run's settings, resolved.
        provenance: What the run is trained on; stored towers have the sizes of its encoders.
        begun_in: The folder of the student's configuration, if the run has a checkpoint: its
            weights are loaded from there later, and none here. ``None`` for a new run.

    Raises:
        CusaError: If the student cannot be loaded; the message says how to get it.
    """
    if config.student.init is not None and begun_in is None:
        return _initial_student(Path(config.student.init), config, provenance)
    if begun_in is not None:
        _refuse_incomplete(begun_in, config.student)
    built = build_student(
        config.student, provenance.row_dims, begun_in, pretrained=begun_in is None
    )
    return MadeStudent(built.student, built.towers)


def _refuse_incomplete(
    folder: Path,
    student: StudentConfig,
) -> None:
    """Refuse a folder that lacks what a student's models are made from."""
    for path in described_in(folder, student):
        if not path.is_file():
            raise RunError(
                f"{folder} lacks the student's {path.relative_to(folder)}; restore it, or train "
                "again in another --run-dir",
                path=folder,
            )


def _initial_student(
    path: Path,
    config: Config,
    provenance: Provenance,
) -> MadeStudent:
    """Load the trained student of ``--init``, backbone and heads."""
    saved = load_saved(path)
    origin = saved.origin
    _refuse_unlike(path, origin, config.student, provenance.encoders)
    beginning = Beginning(
        path=str(path),
        sha256=weights_sha256(saved.student.state_dict()),
        dataset=origin.provenance.dataset,
        epoch=origin.epoch,
        step=origin.step,
    )
    for tower in saved.towers:
        if tower.model is not None:
            merge_adapters(tower.model)
    choose_trained(saved.towers, config.student)
    return MadeStudent(saved.student, saved.towers, beginning)


def _refuse_unlike(
    path: Path,
    origin: Origin,
    wanted: StudentConfig,
    encoders: Mapping[str, StoredTeacher],
) -> None:
    """Refuse a trained student of other towers or sizes than those that settings ask for."""
    given = origin.config.student
    setting_names = ["name", "image", "text", "embed_dim"]
    if wanted.towers == given.towers and wanted.stored:
        setting_names.append("hidden_dim")

    differences = []
    for name in setting_names:
        value_given = getattr(given, name)
        value_wanted = getattr(wanted, name)
        if value_given != value_wanted:
            differences.append(f"student.{name} ({value_given!r} / {value_wanted!r})")
    for modality, encoder in origin.provenance.encoders.items():
        # If the towers differ, the other student may have no encoder.
        if not differences:
            differences += _unlike_encoder(encoder, encoders[modality])
    if differences:
        raise StudentError(
            f"--init {path} is not the student that the settings ask for: "
            f"{'; '.join(differences)}; leave these settings out, or pass another --init",
            path=path,
        )


def _unlike_encoder(before: StoredTeacher, now: StoredTeacher) -> list[str]:
    """List the settings in which two encoders differ, apart from how their rows are rounded."""
    rounded_alike = replace(
        before.settings,
        precision=now.settings.precision,
        dtype=now.settings.dtype,
    )
    return [f"{now.name}.{field}" for field in rounded_alike.differences(now.settings)]
