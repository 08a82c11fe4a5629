"""The commands to run after cusa-precompute, as it prints them."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path

from cusa.data.shell import shell_command
from cusa.data.store.reader import EmbeddingStore

_MODALITIES = ("image", "text")
# The splits that cusa-train uses by default.
_TRAIN_SPLIT, _VAL_SPLIT = "train", "val"
# A contrastive loss cannot learn from fewer pairs.
_FEWEST_PAIRS = 2


def training_command(store_path: Path, new_teachers: Collection[str]) -> str:
    """Return the command that trains on a store; empty if its defaults would be refused.

    If the store has several teachers of a modality, the command names one of the new ones.

    Args:
        store_path: The store's index.
        new_teachers: Names of the teachers whose rows were just made.
    """
    store = EmbeddingStore(store_path)
    if _TRAIN_SPLIT not in store.splits:
        return ""
    if store.split(_TRAIN_SPLIT).n_captions < _FEWEST_PAIRS:
        return ""

    # The demo's student is an adapter, which also reads rows of the store for validation.
    reads_rows = store.dataset == "demo"
    needed_splits = {_TRAIN_SPLIT}
    if reads_rows and _VAL_SPLIT in store.splits:
        needed_splits.add(_VAL_SPLIT)

    teachers = store.teachers.items()
    arguments: list[object] = ["--embeddings", store_path]
    for modality in _MODALITIES:
        names = [name for name, settings in teachers if settings.modality == modality]
        usable = [name for name in names if needed_splits.issubset(store.splits_of(name))]
        if not usable:
            return ""
        if len(names) == 1:
            # The command finds the only one by itself.
            continue
        new = [name for name in usable if name in new_teachers]
        chosen = (new or usable)[0]
        arguments += [f"--{modality}-teacher", chosen]
        if reads_rows:
            arguments += [f"--{modality}-encoder", chosen]
    return shell_command("cusa-train", *arguments)


def merging_command(store_path: Path) -> str:
    """Return the command that joins the parts of a store once all of them are made."""
    part_paths = shlex.quote(str(store_path.with_suffix(""))) + ".part-*.h5"
    return f"{shell_command('cusa-store', 'merge', store_path)} {part_paths}"
