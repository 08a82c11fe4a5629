"""What a run begins with: teachers and encoders resolved against the store, the student, the readers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cusa.data.errors import CusaError, DataError, SettingError, StoreError
from cusa.data.store import EmbeddingStore
from cusa.train.batches import Pairs, Sources, open_sources
from cusa.train.config import Config, DataConfig
from cusa.train.provenance import Provenance, StoredTeacher
from cusa.train.student import Processors, Student, adapter_student, dual_encoder_student

_MODALITIES = ("image", "text")


def resolve(config: Config, store: EmbeddingStore) -> tuple[Config, Provenance]:
    """Name the store's teachers and encoders that a run uses: it keeps them, also when the store gains others.

    Raises:
        CusaError: If a split, teacher or encoder is missing, or several could be meant; says which there are.
    """
    data, student = config.data, config.student
    store.split(data.train_split)
    val_split = _validation_split(config, store)
    teachers: dict[str, StoredTeacher] = {}
    encoders: dict[str, StoredTeacher] = {}
    for modality in _MODALITIES:
        if {"csa", "usa"} & set(config.loss.terms):
            name = store.pick_teacher(modality, getattr(data, f"{modality}_teacher"), f"--{modality}-teacher")
            teachers[modality] = StoredTeacher.of(store, name)
        if student.name == "adapter":
            name = store.pick_teacher(modality, getattr(student, f"{modality}_encoder"), f"--{modality}-encoder")
            encoders[modality] = StoredTeacher.of(store, name)
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
            name=str(Path(student.name).absolute()) if Path(student.name).is_dir() else student.name,
            image_encoder=e.get("image", student.image_encoder),
            text_encoder=e.get("text", student.text_encoder),
        ),
    )
    splits = {name: store.splits[name].fingerprint for name in (data.train_split, val_split) if name is not None}
    return config, Provenance(store.dataset, splits, teachers, encoders)


def _validation_split(config: Config, store: EmbeddingStore) -> str | None:
    """The split that the best epoch is chosen on; ``None`` where the store lacks the one that is usual."""
    name = config.data.val_split
    if name is not None and name not in store.splits and name != DataConfig.val_split:
        splits = ", ".join(store.splits)
        message = f"{store.path} has no split {name!r} to choose the best epoch on; it has: {splits}"
        raise StoreError(f"{message}; name one with --set data.val_split=SPLIT", path=store.path, name=name)
    name = name if name in store.splits else None
    if name is None and config.train.patience is not None:
        remedy = "leave it out, or name a split with --set data.val_split=SPLIT"
        message = f"--patience needs a validation split, and {store.path} has none to use; {remedy}"
        raise SettingError(message, name="train.patience")
    return name


def make_student(
    config: Config, provenance: Provenance, begun_in: Path | None
) -> tuple[Student, Processors | None, Any]:
    """The student that a run begins with.

    Args:
        config: The run's settings.
        provenance: Its encoders.
        begun_in: Where a run that has begun keeps the student's configuration; its weights come from a checkpoint.

    Returns:
        The student, its processors, and the transformers model within it; ``None`` and ``None`` for the adapter.

    Raises:
        CusaError: If it cannot be had; says how to get it.
    """
    if config.student.name == "adapter":
        dims = (provenance.encoders[m].settings.dim for m in _MODALITIES)
        return adapter_student(config.student, *dims), None, None
    if begun_in is not None and not (begun_in / "config.json").is_file():
        raise CusaError(f"{begun_in} lacks the student's config.json; restore it, or train again in another --run-dir")
    source = config.student.name if begun_in is None else str(begun_in)
    return dual_encoder_student(config.student, source, pretrained=begun_in is None)


def student_sources(
    store: EmbeddingStore, split: str, config: Config, encoders: tuple[str, ...], processors: Processors | None
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
    """Open the readers of the validation split, if the run has one; arguments as of :func:`student_sources`.

    Raises:
        CusaError: As of :func:`student_sources`, or if no image or no caption of the split has an input: now, not after
            the first epoch.
    """
    split = config.data.val_split
    if split is None:
        return None
    sources = student_sources(store, split, config, encoders, processors)
    no_image, no_text = sources.inputs.missing()
    if len(no_image) == sources.split.n_images or len(no_text) == sources.split.n_captions:
        remedy = "name another with --set data.val_split=SPLIT, or train without one: --set data.val_split=null"
        raise DataError(f"split {split!r} has no image or no caption to validate on; {remedy}", name=split)
    return sources


def training_pairs(store: EmbeddingStore, found: Sources, config: Config, provenance: Provenance) -> Pairs:
    """The trainable pairs, with the teachers' rows where soft labels are used.

    Raises:
        CusaError: If a teacher's rows are not there.
    """
    rows = [store.embeddings(t.name, config.data.train_split) for t in provenance.teachers.values()]
    return Pairs(*found, (rows[0], rows[1]) if rows else None)
