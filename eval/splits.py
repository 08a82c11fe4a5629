"""The split that retrieval is measured on: found once for all models, and parsed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cusa.data.datasets import load_dataset
from cusa.data.errors import DataError
from cusa.data.record_split import RecordSplit
from cusa.data.store.reader import EmbeddingStore
from cusa.eval.suites import RetrievalData
from cusa.train.saving.run_dir import load_run


@dataclass(frozen=True)
class DataRequest:
    """On what retrieval is measured.

    Attributes:
        split: The split.
        dataset: A data set's name or annotation files; empty: none.
        data_root: Where named data sets lie.
        embeddings: A store, if not the run's own.
        image_root: Folder of the images, if not the data's own.
    """

    split: str
    dataset: tuple[str, ...]
    data_root: Path
    embeddings: Path | None
    image_root: Path | None


@dataclass(frozen=True)
class FoundSplit:
    """A split to retrieve within.

    Attributes:
        data: The split.
        store: The store that it is in, if it is in one.
        is_own_store: Whether that must be the one that a run was trained on.
    """

    data: RetrievalData
    store: EmbeddingStore | None
    is_own_store: bool


class SplitFinder:
    """Finds each model's split: of ``--dataset``, of ``--embeddings``, or of a run's store.

    Args:
        request: What is asked for.
        run_dirs: Directories of all runs among the models; others than runs are measured on the
            first one's split.
    """

    def __init__(self, request: DataRequest, run_dirs: Sequence[Path]) -> None:
        self._request = request
        self._first_run = run_dirs[0] if run_dirs else None
        self._stores: dict[tuple[Path, Path | None], FoundSplit] = {}

    def find(self, run_dir: Path | None) -> FoundSplit:
        """The split that a model is measured on.

        Args:
            run_dir: The model's directory, if it is a run.

        Raises:
            CusaError: If there is none, or its store or annotations cannot be read or lack it.
        """
        request = self._request
        if request.dataset:
            return self._of_dataset
        if request.embeddings is not None:
            return self._of_store(request.embeddings, request.image_root, is_own_store=False)
        run_dir = run_dir or self._first_run
        if run_dir is None:
            raise DataError(
                "no data to measure on: these models are no runs of cusa-train; pass --dataset coco, flickr30k or an "
                "annotation file, or --embeddings STORE"
            )
        config = load_run(run_dir)[0].data
        image_root = request.image_root or (Path(config.image_root) if config.image_root else None)
        return self._of_store(Path(config.embeddings), image_root, is_own_store=True)

    @cached_property
    def _of_dataset(self) -> FoundSplit:
        request = self._request
        dataset = load_dataset(request.dataset, request.image_root, request.data_root)
        split = RecordSplit.from_dataset(dataset, request.split)
        none_skipped = np.zeros(0, np.int64), np.zeros(0, np.int64)
        return FoundSplit(
            RetrievalData(dataset.name, split, dataset.image_root, none_skipped), None, False
        )

    def _of_store(self, path: Path, image_root: Path | None, is_own_store: bool) -> FoundSplit:
        key = path, image_root
        if key not in self._stores:
            store = EmbeddingStore(path)
            split, skipped = store.split(self._request.split), store.skipped(self._request.split)
            data = RetrievalData(store.dataset, split, image_root or store.image_root, skipped)
            self._stores[key] = FoundSplit(data, store, is_own_store)
        return self._stores[key]
