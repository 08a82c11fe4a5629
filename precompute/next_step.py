"""The commands that go on from what stage one has written: they run as printed."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path

from cusa.data.shell import shell_command
from cusa.data.store.reader import EmbeddingStore

_MODALITIES = ("image", "text")
_TRAIN_SPLIT, _VAL_SPLIT = "train", "val"  # cusa-train's defaults
_FEWEST_PAIRS = 2  # that a contrastive loss can learn from


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
    if store.split(_TRAIN_SPLIT).n_captions < _FEWEST_PAIRS:
        return ""
    # The demo's student is an adapter: it reads rows of the store for validation, too.
    reads_rows = store.dataset == "demo"
    arguments: list[object] = ["--embeddings", path]
    for modality in _MODALITIES:
        names = [name for name, settings in store.teachers.items() if settings.modality == modality]
        usable = [name for name in names if _has_rows(store, name, for_validation=reads_rows)]
        if not usable:
            return ""
        if len(names) > 1:
            chosen = next((name for name in usable if name in made), usable[0])
            arguments += [f"--{modality}-teacher", chosen]
            if reads_rows:
                arguments += [f"--{modality}-encoder", chosen]
    return shell_command("cusa-train", *arguments)


def _has_rows(store: EmbeddingStore, teacher_name: str, for_validation: bool) -> bool:
    needed = {_TRAIN_SPLIT}
    if for_validation and _VAL_SPLIT in store.splits:
        needed.add(_VAL_SPLIT)
    return needed <= set(store.splits_of(teacher_name))


def merging_command(path: Path) -> str:
    """The command that joins the parts of a store, once all of them are there."""
    parts = shlex.quote(str(path.with_suffix(""))) + ".part-*.h5"
    return f"{shell_command('cusa-store', 'merge', path)} {parts}"
