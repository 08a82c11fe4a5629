"""An open index, which finds the nearest items of query rows."""

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
_VALUE_BYTES = 4  # of each number of a row
NO_HIT = -1  # position in the place of a hit, where an approximate index finds fewer


class SearchIndex:
    """An open index; embeddings are read when they are first asked for.

    Attributes:
        folder: Folder of the index.
        summary: Summary of the index.

    Raises:
        CusaError: If there is none, or it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary = read_card(folder)
        self._indexes: dict[Head, Any] = {}

    def head_for(self, modality: Modality) -> Head:
        """Return the head that embeds queries of a modality."""
        if modality == self.summary.modality:
            return self.summary.uni_head
        return "cross"

    def search(
        self, query_rows: np.ndarray, head: Head, n_hits: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest items of each query.

        Args:
            query_rows: float32 ``[n, d]``, L2-normalised, from the same head of the same student.
            head: As :meth:`head_for` returns it.
            n_hits: Items per query; no more than there are.

        Returns:
            Cosine similarities, float32 ``[n, min(n_hits, count)]``, greatest first, and the items'
            positions, int64, same shape; -1 where ``hnsw`` has found fewer.

        Raises:
            RunError: If the index is damaged.
            ValueError: If the shapes do not fit, ``n_hits`` is below 1, or there is no such head.
        """
        # The index first: the numbers of the summary hold only if it has them.
        index = self._index(head)
        queries = np.ascontiguousarray(query_rows, np.float32)
        if queries.shape[1:] != (self.summary.dim,) or n_hits < 1:
            raise ValueError(
                f"queries are [n, {self.summary.dim}] and n_hits is at least 1; got "
                f"{queries.shape} and {n_hits}"
            )
        n_hits = min(n_hits, self.summary.count)
        # A graph's search finds no more hits than the candidates that it keeps.
        if self.summary.kind == "hnsw":
            index.hnsw.efSearch = max(HNSW_SEARCH, 2 * n_hits)
        faiss_path = self.folder / faiss_name(head)
        try:
            similarities, positions = index.search(queries, n_hits)
        except Exception as error:  # FAISS looks at some of what a file says only now
            raise self._damaged(first_line(error), faiss_path) from None
        are_finite = self._are_finite(similarities, positions, faiss_path)
        if np.isfinite(queries).all() and not are_finite:
            raise self._damaged("rows of it are not finite", faiss_path, "rows")
        return similarities, positions

    def _are_finite(
        self, similarities: np.ndarray, positions: np.ndarray, faiss_path: Path
    ) -> bool:
        """Tell whether all hits are finite; refuse hits that are no items."""
        is_item = (positions >= 0) & (positions < self.summary.count)
        is_hit = positions != NO_HIT
        if (is_hit & ~is_item).any():
            problem = "it finds items that it does not have"
            raise self._damaged(problem, faiss_path, "positions")
        # An exact search leaves out rows of NaN alone.
        if self.summary.kind == "flat" and not is_hit.all():
            return False
        return bool(np.isfinite(similarities[is_hit]).all())

    def item(self, position: int) -> str | None:
        """Return the absolute path of an image, or a text; ``None`` if its line is damaged.

        Args:
            position: Position of the item in the index.

        Raises:
            RunError: If the file has another number of lines.
        """
        # A damaged line is no reason to refuse the others.
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
            # Anything, from a file of an earlier version, which has no checksum.
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
        """Refuse a file that is damaged: FAISS believes its files, and may crash on such a one."""
        summary = self.summary
        if not faiss_path.is_file():
            raise self._damaged(f"{faiss_path.name} is missing", faiss_path)
        checksum = summary.sha256.get(faiss_path.name)
        if checksum is not None and file_digest(faiss_path).hex() != checksum:
            problem = f"{faiss_path.name} has another checksum"
            raise self._damaged(problem, faiss_path, "sha256")
        # Earlier versions wrote no checksum: what can be known without reading the file.
        if faiss_path.stat().st_size < summary.count * summary.dim * _VALUE_BYTES:
            problem = (
                f"{faiss_path.name} is too short for {summary.count:,} rows of dimension "
                f"{summary.dim}"
            )
            raise self._damaged(problem, faiss_path, "count")

    def _damaged(self, problem: str, path: Path, location: str = "") -> RunError:
        """Return the error of a damaged file; ``location`` is what it does not agree with."""
        return RunError(
            f"the index {self.folder} is damaged ({problem}); build it again with cusa-eval index",
            path=path,
            location=location,
        )
