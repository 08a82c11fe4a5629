"""The split that retrieval is measured on, parsed once for all models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cusa.data.datasets import KNOWN_SIZES, load_dataset
from cusa.data.errors import DataError
from cusa.data.record_split import RecordSplit
from cusa.data.records import SplitView
from cusa.data.store.reader import EmbeddingStore
from cusa.eval.evaluators.request import SplitRequest
from cusa.train.saving.run_dir import load_run


@dataclass(frozen=True, eq=False)
class EvaluatedSplit:
    """A split to evaluate on; compared and hashed by identity.

    Attributes:
        dataset: Name of the data set.
        view: Ids, paths and captions of the split.
        image_root: Folder of its images.
        skipped_images: int64, ascending: image rows to leave out.
        skipped_captions: int64, ascending: caption rows to leave out.
        store: The store that holds the split, or ``None``.
        is_own_store: Whether the store must be the one that a run was trained on.
    """

    dataset: str
    view: SplitView
    image_root: Path
    skipped_images: np.ndarray
    skipped_captions: np.ndarray
    store: EmbeddingStore | None = None
    is_own_store: bool = False

    @staticmethod
    def from_store(
        store: EmbeddingStore,
        split_name: str,
        image_root: Path | None = None,
        is_own_store: bool = False,
    ) -> EvaluatedSplit:
        """Return a split of a store; ``image_root`` is the store's own unless it is given.

        Raises:
            StoreError: If the store lacks the split.
        """
        return EvaluatedSplit(
            store.dataset,
            store.split(split_name),
            image_root or store.image_root,
            *store.skipped(split_name),
            store,
            is_own_store,
        )

    @property
    def title(self) -> str:
        """Data set and split as results name them, without "/"."""
        return split_title(self.dataset, self.view.name)


def split_title(dataset: str, split: str) -> str:
    """Return the name of a split in results, which has no "/"."""
    return f"{dataset.replace('/', '_')} {split}"


class SplitFinder:
    """Finds each model's split: in ``--dataset``, in ``--embeddings``, or in its run's store.

    Args:
        request: The split requested.
        run_dirs: Directories of all runs among the models; models that are not runs are measured on
            the first run's split.
    """

    def __init__(self, request: SplitRequest, run_dirs: Sequence[Path]) -> None:
        self._request = request
        self._run_dirs = run_dirs
        self._in_stores: dict[tuple[Path, Path | None], EvaluatedSplit] = {}

    def find_all(self) -> list[EvaluatedSplit]:
        """Find the splits of all models.

        Raises:
            CusaError: As :meth:`find`.
        """
        return list(map(self.find, self._run_dirs or (None,)))

    def find(self, run_dir: Path | None) -> EvaluatedSplit:
        """Find the split that a model is measured on.

        Args:
            run_dir: The model's directory, if it is a run.

        Raises:
            CusaError: If no data are given, or the store or the annotations cannot be read or lack
                the split.
        """
        request = self._request
        if request.dataset is not None:
            return self._of_dataset
        if request.embeddings is not None:
            return self._of_store(request.embeddings, request.image_root, is_own_store=False)
        if run_dir is None and self._run_dirs:
            run_dir = self._run_dirs[0]
        if run_dir is None:
            raise DataError(
                "no data to measure on, since no model is a run of cusa-train; pass --dataset "
                "NAME or PATH, or --embeddings STORE",
                name="dataset",
            )
        config = load_run(run_dir)[0].data
        # A run that validates on another store than it trains on is measured on that, too.
        store_path, own_root = config.embeddings, config.image_root
        if config.val_embeddings is not None:
            store_path, own_root = config.val_embeddings, config.val_image_root
        image_root = request.image_root
        if image_root is None and own_root:
            image_root = Path(own_root)
        return self._of_store(Path(store_path), image_root, is_own_store=True)

    @cached_property
    def _of_dataset(self) -> EvaluatedSplit:
        request = self._request
        dataset = load_dataset(
            request.dataset, request.image_root, request.data_root, request.columns
        )
        view = RecordSplit.from_dataset(dataset, request.split)
        no_rows = np.zeros(0, np.int64)
        return EvaluatedSplit(dataset.name, view, dataset.image_root, no_rows, no_rows)

    def _of_store(
        self,
        path: Path,
        image_root: Path | None,
        is_own_store: bool,
    ) -> EvaluatedSplit:
        key = path, image_root
        if key not in self._in_stores:
            self._in_stores[key] = EvaluatedSplit.from_store(
                EmbeddingStore(path), self._request.split, image_root, is_own_store
            )
        return self._in_stores[key]


def check_counts(split: EvaluatedSplit, allow_partial: bool) -> str | None:
    """Refuse a known test split of another size, whose figures would not be comparable.

    Args:
        split: The split.
        allow_partial: Whether to evaluate it nevertheless.

    Returns:
        The difference from the published size, if the split is evaluated nevertheless.

    Raises:
        DataError: If a test split does not have its published number of images.
    """
    split_name = split.view.name
    published_size = KNOWN_SIZES.get(split.dataset, {}).get(split_name)
    n_images = split.view.n_images - len(split.skipped_images)
    if published_size is None or n_images == published_size:
        return None
    problem = (
        f"{split.dataset} {split_name} has {n_images:,} images instead of {published_size:,}, so "
        "figures are not comparable with published ones"
    )
    if split_name == "test" and not allow_partial:
        raise DataError(
            f"{problem}; complete it, or pass --allow-partial to evaluate it as it is",
            name=split.dataset,
        )
    return problem
