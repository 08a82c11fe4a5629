"""The commands that a run's output suggests; they work when pasted into a shell."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cusa.data.datasets import KNOWN_SIZES
from cusa.data.errors import SettingError
from cusa.data.objects.folder import location_text
from cusa.data.shell import shell_command
from cusa.data.store.reader import EmbeddingStore
from cusa.data.tars.verify import holds_set
from cusa.train.config import Config
from cusa.train.saving.provenance import Provenance
from cusa.train.saving.run_dir import load_run

_RENDEZVOUS_PORT = 29_500  # torchrun's own default


def resume_command(run_dir: Path, processes: int = 1) -> str:
    """Return the command that resumes a run; on several machines, the one to start on each.

    Args:
        run_dir: The run's directory.
        processes: Processes that train it; as many must resume it.
    """
    arguments = ("--resume", "--run-dir", run_dir)
    if processes == 1:
        return shell_command("cusa-train", *arguments)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    launcher = ["--nproc-per-node", local]
    if local < processes:
        endpoint = f"{os.environ.get('MASTER_ADDR', 'localhost')}:{_RENDEZVOUS_PORT}"
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
        launcher = ["--nnodes", processes // local, *rendezvous, *launcher]
    return shell_command("torchrun", *launcher, "-m", "cusa.train", *arguments)


@dataclass(frozen=True)
class MeasuredSplit:
    """The split that runs are measured on, as options of ``cusa-eval``.

    Attributes:
        split: Its name.
        allow_partial: Whether it is a known split of another size than the published one.
    """

    split: str
    allow_partial: bool


def evaluation_command(run_dirs: Sequence[Path]) -> str:
    """Return the command that evaluates runs on a split that their store has.

    Args:
        run_dirs: The runs.

    Raises:
        CusaError: If the first run or its store cannot be read.
    """
    measured = split_to_measure(run_dirs[0])
    arguments: list[object] = []
    for run_dir in run_dirs:
        arguments += ["--run", run_dir]
    if measured.split != "test":
        arguments += ["--split", measured.split]
    if measured.allow_partial:
        arguments.append("--allow-partial")
    return shell_command("cusa-eval", *arguments)


def split_to_measure(run_dir: Path) -> MeasuredSplit:
    """Choose the split that a run is measured on: best the test split.

    It is one of the store that the run validated on, if that is another than it was trained on.

    Args:
        run_dir: The run.

    Raises:
        CusaError: If the run or its store cannot be read.
    """
    config, provenance = load_run(run_dir)
    store = evaluated_store(config)
    split = _best_split(config, provenance, store)
    is_partial = False
    published_sizes = KNOWN_SIZES.get(store.dataset, {})
    if split == "test" and split in published_sizes:
        skipped_images, _ = store.skipped(split)
        n_images = store.splits[split].n_images - len(skipped_images)
        is_partial = n_images != published_sizes[split]
    return MeasuredSplit(split, is_partial)


def evaluated_store(config: Config) -> EmbeddingStore:
    """Open the store that a run is evaluated on.

    Raises:
        SettingError: If it is a set of tars, which has no split to evaluate on.
        StoreError: If the store cannot be read.
    """
    path = _evaluated_path(config)
    if holds_set(path):
        raise SettingError(
            f"{location_text(path)} is a set of tars, which has no split to evaluate on; name a "
            "store of other pairs with --val-embeddings, or evaluate the run on one: cusa-eval "
            "--run RUN --embeddings STORE",
            name="report",
        )
    return EmbeddingStore(path)


def has_split_to_measure(run_dir: Path) -> bool:
    """Return whether a run names a store to evaluate it on, rather than only a set of tars.

    Raises:
        CusaError: If the run cannot be read.
    """
    config, _ = load_run(run_dir)
    return not holds_set(_evaluated_path(config))


def _evaluated_path(config: Config) -> Path:
    return Path(config.data.val_embeddings or config.data.embeddings)


def _best_split(
    config: Config,
    provenance: Provenance,
    store: EmbeddingStore,
) -> str:
    """Prefer the test split, then the validation split, then any other; else the training split."""
    usable_splits = []
    for split_name, split in store.splits.items():
        if split.n_images and split.n_captions:
            usable_splits.append(split_name)
    for encoder in provenance.encoders.values():
        encoded_splits = store.splits_of(encoder.name)
        usable_splits = [name for name in usable_splits if name in encoded_splits]
    train_split = config.data.train_split
    unseen_splits = [name for name in usable_splits if name != train_split]
    for name in ("test", config.data.val_split, *unseen_splits):
        if name in unseen_splits:
            return name
    return train_split
