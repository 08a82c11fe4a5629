"""The store that a run validates on: that of its training data, or another one."""

from __future__ import annotations

from collections.abc import Mapping

from cusa.data.errors import SettingError, StoreError
from cusa.data.objects.folder import location_text
from cusa.data.shell import flag_of
from cusa.data.store.reader import EmbeddingStore
from cusa.train.config import Config, DataConfig
from cusa.train.saving.provenance import StoredTeacher
from cusa.train.stores import Store


def open_validation_store(data: DataConfig) -> EmbeddingStore | None:
    """Open the store of ``data.val_embeddings``; ``None`` if a run validates on its only store.

    Raises:
        CusaError: If it cannot be read.
    """
    if data.val_embeddings is None:
        return None
    val_store = EmbeddingStore(data.val_embeddings)
    val_store.verify_index()
    return val_store


def validation_split(
    config: Config,
    store: Store,
) -> str | None:
    """Name the split to choose the best student on.

    Args:
        config: The run's settings.
        store: The store to validate on.

    Returns:
        The split; ``None`` if none is asked for, or the only store lacks the default one.

    Raises:
        StoreError: If the store lacks a split that is asked for.
        SettingError: If other settings need a validation split and there is none.
    """
    name = config.data.val_split
    if name in store.splits:
        return name
    has_own_store = config.data.val_embeddings is not None
    if name is not None and (has_own_store or name != DataConfig.val_split):
        splits = ", ".join(store.splits)
        raise StoreError(
            f"{location_text(store.path)} has no split {name!r} to choose the best student on; it "
            f"has: {splits}; name one with --set data.val_split=SPLIT",
            path=store.path,
            name=name,
        )
    if has_own_store:
        raise SettingError(
            "--val-embeddings is given, but data.val_split is null, so nothing of it would be "
            "read; leave out one of them",
            name="data.val_embeddings",
        )
    _refuse_what_needs_validation(config, store)
    return None


def _refuse_what_needs_validation(config: Config, store: Store) -> None:
    """Refuse settings that mean nothing without a validation split."""
    for setting in ("patience", "validate_every"):
        if getattr(config.train, setting) is not None:
            flag = flag_of(setting)
            raise SettingError(
                f"{flag} needs a validation split, and {location_text(store.path)} has none to "
                "use; leave it out, name a split with --set data.val_split=SPLIT, or another store "
                "with --val-embeddings",
                name=f"train.{setting}",
            )


def refuse_other_encoders(
    store: EmbeddingStore,
    encoders: Mapping[str, StoredTeacher],
) -> None:
    """Refuse a store to validate on whose rows stored towers cannot take as their inputs.

    Args:
        store: The store to validate on.
        encoders: The stored towers' encoders by modality, from the store of the training.

    Raises:
        StoreError: If it lacks an encoder, or has one with other settings.
    """
    for modality, encoder in encoders.items():
        settings = store.teachers.get(encoder.name)
        if settings is None:
            raise StoreError(
                f"{store.path} has no rows of {encoder.name!r}, the student's {modality} encoder; "
                f"add them: cusa-precompute --teacher {encoder.name} --out {store.path}",
                path=store.path,
                name=encoder.name,
            )
        differences = settings.differences(encoder.settings)
        if differences:
            raise StoreError(
                f"{store.path}: its {encoder.name!r} is not the {modality} encoder of the training "
                f"store: {', '.join(differences)}; make both with the same options of "
                "cusa-precompute",
                path=store.path,
                name=encoder.name,
            )
