"""An open index, which finds the nearest items of queries."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from cusa.data.embeddings import Head
from cusa.data.errors import FileFormatError, RunError, first_line
from cusa.data.files import file_digest
from cusa.data.parsing import parse_json
from cusa.eval.search.approximate import HNSW_SEARCH
from cusa.eval.search.index_folder import (
    ITEMS,
    Kind,
    Modality,
    faiss_name,
    read_card,
)

_CLASSES: dict[Kind, type] = {
    "flat": faiss.IndexFlat,
    "hnsw": faiss.IndexHNSW,
    "ivf": faiss.IndexIVF,
}
_VALUE_BYTES = 4  # size of a float32
NO_HIT = -1  # stands for a missing hit if an approximate index finds too few


class SearchIndex:
    """An open index; the embeddings of a head are read on first use.

    Args:
        folder: Folder of the index.

    Attributes:
        folder: Folder of the index.
        summary: Summary of the index.

    Raises:
        RunError: If there is no index, or its summary is damaged or of another major version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary = read_card(folder)
        self._indexes: dict[Head, Any] = {}

    def head_for(self, modality: Modality) -> Head:
        """Return the head to embed queries of a modality with."""
        if modality == self.summary.modality:
            return self.summary.uni_head
        return "cross"

    def search(
        self, query_rows: np.ndarray, head: Head, n_hits: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest items of each query.

        Args:
            query_rows: float32 ``[n, d]``, L2-normalised, from the same head of the same student.
            head: The head, as :meth:`head_for` returns it.
            n_hits: Number of hits per query; at most the number of items are returned.

        Returns:
            Cosine similarities, float32 ``[n, min(n_hits, count)]``, greatest first; and the items'
            positions, int64 of the same shape, -1 where an approximate index finds too few.

        Raises:
            RunError: If the index is damaged.
            ValueError: If the shape is wrong, ``n_hits`` is below 1, or there is no such head.
        """
        # Read the index first: that checks the numbers of the summary, which are used below.
        index = self._index(head)
        queries = np.ascontiguousarray(query_rows, np.float32)
        if queries.shape[1:] != (self.summary.dim,) or n_hits < 1:
            raise ValueError(
                f"queries must be [n, {self.summary.dim}] and n_hits at least 1; got "
                f"{queries.shape} and {n_hits}"
            )
        n_hits = min(n_hits, self.summary.count)
        # A search in a graph finds at most as many hits as it keeps candidates.
        if self.summary.kind == "hnsw":
            index.hnsw.efSearch = max(HNSW_SEARCH, 2 * n_hits)
        faiss_path = self.folder / faiss_name(head)
        try:
            similarities, positions = index.search(queries, n_hits)
        except Exception as error:  # FAISS checks some of a file's content only now
            raise self._damaged(first_line(error), faiss_path) from None
        are_finite = self._are_finite(similarities, positions, faiss_path)
        if np.isfinite(queries).all() and not are_finite:
            raise self._damaged("some of its rows are not finite", faiss_path, "rows")
        return similarities, positions

    def _are_finite(
        self, similarities: np.ndarray, positions: np.ndarray, faiss_path: Path
    ) -> bool:
        """Tell whether the similarities of all hits are finite; refuse positions of no item."""
        is_item = (positions >= 0) & (positions < self.summary.count)
        is_hit = positions != NO_HIT
        if (is_hit & ~is_item).any():
            problem = "a search finds items that it does not have"
            raise self._damaged(problem, faiss_path, "positions")
        # An exact search misses hits only if their rows are NaN.
        if self.summary.kind == "flat" and not is_hit.all():
            return False
        return bool(np.isfinite(similarities[is_hit]).all())

    def item(self, position: int) -> str | None:
        """Return the absolute path of an image, or a text; ``None`` if its line is damaged.

        Args:
            position: Position of the item in the index.

        Raises:
            RunError: If ``items.jsonl`` has another number of lines than the index has items.
        """
        # A damaged line is no reason to refuse the other lines.
        line = self._lines[position].decode(errors="replace")
        try:
            item = parse_json(line, self.folder / ITEMS, position + 1)
        except FileFormatError:
            return None
        return item if isinstance(item, str) else None

    @cached_property
    def _lines(self) -> list[bytes]:
        items_path = self.folder / ITEMS
        lines: list[bytes] = []
        if items_path.is_file():
            lines = items_path.read_bytes().removesuffix(b"\n").split(b"\n")
        if len(lines) != self.summary.count:
            problem = f"{ITEMS} has {len(lines)} lines of {self.summary.count}"
            raise self._damaged(problem, items_path, "count")
        return lines

    def _index(self, head: Head) -> Any:
        if head not in ("cross", self.summary.uni_head):
            raise ValueError(
                f"the index {self.folder} has no embeddings of the {head} head; its student "
                "trained none"
            )
        if head not in self._indexes:
            self._indexes[head] = self._read_index(self.folder / faiss_name(head))
        return self._indexes[head]

    def _read_index(self, faiss_path: Path) -> Any:
        name, summary = faiss_path.name, self.summary
        self._check_file(faiss_path)
        try:
            index = faiss.read_index(str(faiss_path))
        except Exception as error:
            # Files of an earlier version have no checksum, and FAISS may raise anything.
            raise self._damaged(first_line(error), faiss_path) from None

        if index.d != summary.dim or index.ntotal != summary.count:
            problem = f"{name} holds {index.ntotal} rows of dimension {index.d}"
            raise self._damaged(problem, faiss_path, "count")
        is_kind = isinstance(index, _CLASSES[summary.kind])
        if not is_kind or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            problem = f"{name} is a {type(index).__name__}, not an index of kind {summary.kind}"
            raise self._damaged(problem, faiss_path, "kind")
        return index

    def _check_file(self, faiss_path: Path) -> None:
        """Refuse a damaged file: FAISS trusts its files, and may crash on a damaged one."""
        summary = self.summary
        if not faiss_path.is_file():
            raise self._damaged(f"{faiss_path.name} is missing", faiss_path)
        checksum = summary.sha256.get(faiss_path.name)
        if checksum is not None and file_digest(faiss_path).hex() != checksum:
            problem = f"{faiss_path.name} has another checksum"
            raise self._damaged(problem, faiss_path, "sha256")
        # Files of an earlier version have no checksum, so at least their size is checked.
        if faiss_path.stat().st_size < summary.count * summary.dim * _VALUE_BYTES:
            problem = (
                f"{faiss_path.name} is too short for {summary.count:,} rows of dimension "
                f"{summary.dim}"
            )
            raise self._damaged(problem, faiss_path, "count")

    def _damaged(self, problem: str, path: Path, location: str = "") -> RunError:
        """Return the error for a damaged file; ``location`` names what it contradicts."""
        return RunError(
            f"the index {self.folder} is damaged ({problem}); build it again with cusa-eval index",
            path=path,
            location=location,
        )
