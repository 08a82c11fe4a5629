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
from cusa.train.student import Processors, Student, adapter_student, dual_encoder_student

_MODALITIES = ("image", "text")


def resolve(config: Config, store: EmbeddingStore) -> tuple[Config, Provenance]:
    """Name the store's teachers and encoders that a run uses, and keeps if the store gains others.

    Raises:
        CusaError: If a split, teacher or encoder is missing, or several could be meant; says which
            there are.
    """
    data, student = config.data, config.student
    store.split(data.train_split)
    val_split = _validation_split(config, store)
    teachers: dict[str, StoredTeacher] = {}
    encoders: dict[str, StoredTeacher] = {}
    for modality in _MODALITIES:
        if {"csa", "usa"} & set(config.loss.terms):
            name = store.pick_teacher(
                modality, getattr(data, f"{modality}_teacher"), f"--{modality}-teacher"
            )
            teachers[modality] = StoredTeacher.from_store(store, name)
        if student.name == "adapter":
            name = store.pick_teacher(
                modality, getattr(student, f"{modality}_encoder"), f"--{modality}-encoder"
            )
            encoders[modality] = StoredTeacher.from_store(store, name)
    t, e = ({m: used.name for m, used in part.items()} for part in (teachers, encoders))
    config = replace(
        config,
        data=replace(
            data,
            embeddings=str(Path(data.embeddings).absolute()),
            image_root=data.image_root and str(Path(data.image_root).absolute()),
            image_teacher=t.get("image", data.image_teacher),
            text_teacher=t.get("text", data.text_teacher),
            val_split=val_split,
        ),
        student=replace(
            student,
            name=str(Path(student.name).absolute())
            if Path(student.name).is_dir()
            else student.name,
            init=student.init and str(Path(student.init).absolute()),
            image_encoder=e.get("image", student.image_encoder),
            text_encoder=e.get("text", student.text_encoder),
        ),
    )
    used_splits = [name for name in (data.train_split, val_split) if name is not None]
    splits = {name: store.splits[name].fingerprint for name in used_splits}
    return config, Provenance(store.dataset, splits, teachers, encoders)


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
    name = name if name in store.splits else None
    if name is None and config.train.patience is not None:
        remedy = "leave it out, or name a split with --set data.val_split=SPLIT"
        message = f"--patience needs a validation split, and {store.path} has none to use; {remedy}"
        raise SettingError(message, name="train.patience")
    return name


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
        dims = (provenance.encoders[m].settings.dim for m in _MODALITIES)
        return MadeStudent(adapter_student(config.student, *dims), None, None)
    if begun_in is not None and not (begun_in / "config.json").is_file():
        remedy = "restore it, or train again in another --run-dir"
        raise RunError(f"{begun_in} lacks the student's config.json; {remedy}", path=begun_in)
    source = config.student.name if begun_in is None else str(begun_in)
    return MadeStudent(*dual_encoder_student(config.student, source, pretrained=begun_in is None))


def _initial_student(path: Path, config: Config, provenance: Provenance) -> MadeStudent:
    """A trained student to go on from: its weights and heads.

    Raises:
        StudentError: If it is of another kind or size than the settings ask for, or works on other
            encoders' rows.
    """
    saved = load_saved(path)
    wanted, given = config.student, saved.origin.config.student
    sizes = ["embed_dim"]
    if wanted.name == given.name == "adapter":
        sizes.append("hidden_dim")
    fields = []
    for name in ("name", *sizes):
        before, now = getattr(given, name), getattr(wanted, name)
        if before != now:
            fields.append(f"student.{name} ({before!r} / {now!r})")
    for modality, encoder in saved.origin.provenance.encoders.items():
        if not fields:  # an adapter
            fields += _unlike_encoder(encoder, provenance.encoders[modality])
    if fields:
        message = f"--init {path} is not the student that the settings ask for: {'; '.join(fields)}"
        raise StudentError(
            f"{message}; leave these settings out, or pass another --init",
            path=path,
        )
    digest = weights_sha256(saved.student.state_dict())
    origin = saved.origin
    beginning = Beginning(str(path), digest, origin.provenance.dataset, origin.epoch, origin.step)
    return MadeStudent(saved.student, saved.processors, saved.backbone, beginning)


def _unlike_encoder(before: StoredTeacher, now: StoredTeacher) -> list[str]:
    """What differs of two encoders' rows, but for how they are rounded."""
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
    """The readers of a student's inputs for one split.

    Args:
        store: The store.
        split: The split's name.
        config: The run's settings.
        encoders: Adapter: names of the image and the text encoder in the store; else empty.
        processors: Hugging Face student: its processors.

    Raises:
        CusaError: If the split, an encoder's rows or the image folder are not there.
    """
    return open_sources(
        store,
        split,
        encoders=(encoders[0], encoders[1]) if encoders else None,
        processors=processors,
        image_root=Path(config.data.image_root) if config.data.image_root else None,
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
    """The trainable pairs, with the teachers' rows where soft labels are used.

    Raises:
        CusaError: If a teacher's rows are not there.
    """
    rows = [store.embeddings(t.name, config.data.train_split) for t in provenance.teachers.values()]
    return Pairs(*sources, (rows[0], rows[1]) if rows else None)
