"""The commands that go on from what stage one has written: they run as printed."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path

from cusa.data.shell import shell_command
from cusa.data.store.reader import EmbeddingStore

_MODALITIES = ("image", "text")
_TRAIN_SPLIT = "train"  # cusa-train's default


def training_command(path: Path, made: Collection[str]) -> str:
    """The command that trains on a store; empty where its default would be refused.

    Where the store has several teachers of a modality, one that was just made is named.

    Args:
        path: The store.
        made: Names of the teachers whose rows were just made.
    """
    store = EmbeddingStore(path)
    if _TRAIN_SPLIT not in store.splits:
        return ""
    arguments: list[object] = ["--embeddings", path]
    for modality in _MODALITIES:
        names = [name for name, settings in store.teachers.items() if settings.modality == modality]
        usable = [name for name in names if _TRAIN_SPLIT in store.splits_of(name)]
        if not usable:
            return ""
        if len(names) > 1:
            chosen = next((name for name in usable if name in made), usable[0])
            arguments += [f"--{modality}-teacher", chosen]
            if store.dataset == "demo":  # the adapter's, which reads rows of the store
                arguments += [f"--{modality}-encoder", chosen]
    return shell_command("cusa-train", *arguments)


def merging_command(path: Path) -> str:
    """The command that joins the parts of a store, once all of them are there."""
    parts = shlex.quote(str(path.with_suffix(""))) + ".part-*.h5"
    return f"{shell_command('cusa-store', 'merge', path)} {parts}"
