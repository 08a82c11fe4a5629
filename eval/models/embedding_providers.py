"""Providers of a model's embeddings: the model itself, or files of embeddings under ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from cusa.data.embeddings import Head, Rows
from cusa.data.errors import EmbeddingsError
from cusa.data.foreign.rows import ForeignRows, read_rows
from cusa.data.unit_rows import unit_rows
from cusa.eval.models.batched import encode_images, encode_texts
from cusa.eval.models.protocols import Encoder, Model
from cusa.eval.models.usable_rows import unusable_rows

# Called with what is embedded ("images"), how many more are done (0 at first), and how many there
# are.
Advance = Callable[[str, int, int], None]
EmbeddingFile = tuple[Path, Path | None]  # rows, and their ids if these are in a file of their own


class EmbeddingProvider(Model, Protocol):
    """Provider of one model's embeddings: L2-normalised float32 ``[n, d]`` by head."""

    def images(
        self,
        ids: Sequence[str],
        paths: Sequence[Path],
    ) -> Rows:
        """Return embeddings of images, by id or by file."""

    def texts(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
    ) -> Rows:
        """Return embeddings of texts, by id or by the text itself."""


class EncoderProvider:
    """Provider that embeds what it is given with a model.

    Args:
        encoder: The model.
        batch_size: Texts at a time.
        image_batch_size: Images at a time, in each of the threads.
        workers: Threads that read images.
        advance: Called with the progress.
    """

    def __init__(
        self,
        encoder: Encoder,
        batch_size: int,
        image_batch_size: int,
        workers: int,
        advance: Advance,
    ) -> None:
        self.encoder = encoder
        self.name, self.heads, self.uni_head = encoder.name, encoder.heads, encoder.uni_head
        self.modalities = encoder.modalities
        self.description = {**encoder.description, "weights_sha256": encoder.weights_sha256}
        self._batch_size, self._image_batch_size = batch_size, image_batch_size
        self._workers, self._advance = workers, advance

    def images(
        self,
        ids: Sequence[str],
        paths: Sequence[Path],
    ) -> Rows:
        """Embed image files."""
        progress = self._progress_of("images", len(paths))
        return encode_images(self.encoder, paths, self._image_batch_size, self._workers, progress)

    def texts(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
    ) -> Rows:
        """Embed texts."""
        progress = self._progress_of("texts", len(texts))
        return encode_texts(self.encoder, texts, self._batch_size, progress)

    def _progress_of(
        self,
        items_name: str,
        n_items: int,
    ) -> Callable[[int], None]:
        """Announce that items are embedded; return what is called with how many more are done."""
        self._advance(items_name, 0, n_items)
        return lambda n_done: self._advance(items_name, n_done, n_items)


class FileProvider:
    """Provider of foreign embeddings: files of rows under ids (:mod:`cusa.data.foreign.rows`).

    Rows that are NaN throughout, as ``cusa-store export`` writes them, stand for items without an
    embedding.

    Args:
        image: File of image embeddings and file of their ids, or ``None``.
        text: Same for texts.
        name: Name for tables.

    Raises:
        FileFormatError: If a file is missing or malformed.
        EmbeddingsError: If rows and ids do not fit, dimensions differ, or a row is zero or not
            finite.
    """

    heads: tuple[Head, ...] = ("cross",)
    uni_head: Head = "cross"

    def __init__(
        self,
        image: EmbeddingFile | None,
        text: EmbeddingFile | None,
        name: str,
    ) -> None:
        self._foreign: dict[str, ForeignRows] = {}
        sources: dict[str, str] = {}
        digest = hashlib.sha256()
        for modality, files in (("image", image), ("text", text)):
            if files is None:
                continue
            foreign = self._foreign[modality] = _usable(read_rows(*files))
            sources[modality] = str(files[0].absolute())
            # Ids, too: the same rows under other ids are other embeddings.
            digest.update("\0".join(foreign.ids).encode() + foreign.rows.tobytes())
        # Embeddings of two dimensions have no similarity.
        dims = [foreign.rows.shape[1] for foreign in self._foreign.values()]
        if len(set(dims)) > 1:
            raise EmbeddingsError(
                f"image embeddings have {dims[0]} dimensions, text embeddings {dims[1]}; both must "
                "be of one space: pass those of one model, or one modality alone",
                name="dimensions",
            )
        self.name = name
        self.modalities = frozenset(self._foreign)
        self.description = {
            "kind": "files",
            "source": sources,
            "weights_sha256": digest.hexdigest(),
        }

    def images(
        self,
        ids: Sequence[str],
        paths: Sequence[Path],
    ) -> Rows:
        """Return rows of images by id."""
        return self._rows("image", ids, "images")

    def texts(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
    ) -> Rows:
        """Return rows of texts by id."""
        return self._rows("text", ids, "captions")

    def _rows(
        self,
        modality: str,
        wanted_ids: Sequence[str],
        items_name: str,
    ) -> Rows:
        if modality not in self._foreign:
            raise EmbeddingsError(
                f"no {modality} embeddings are given; pass --{modality}-embeddings FILE"
            )
        foreign = self._foreign[modality]
        return {"cross": align(foreign.ids, foreign.rows, wanted_ids, items_name)}


def align(
    ids: Sequence[str], rows: np.ndarray, wanted_ids: Sequence[str], items_name: str
) -> np.ndarray:
    """Put rows in the order of the ids that are wanted.

    Args:
        ids: Ids of the rows, all different.
        rows: ``[n, d]``.
        wanted_ids: Ids, each of them among ``ids``.
        items_name: What the ids are of, for the error: ``"images"``, ``"captions"``.

    Returns:
        ``[len(wanted_ids), d]``.

    Raises:
        EmbeddingsError: If ids are missing; says how many and which is the first.
    """
    # Files may hold more items than are asked for, in any order.
    row_of_id = {item_id: row for row, item_id in enumerate(ids)}
    missing = [item_id for item_id in wanted_ids if item_id not in row_of_id]
    if missing:
        example = next(iter(ids), None)
        raise EmbeddingsError(
            f"the embeddings lack {len(missing):,} of {len(wanted_ids):,} {items_name}, the first "
            f"{missing[0]!r} (they have {len(ids):,}, such as {example!r}); give every one a row "
            "under its id",
            name=missing[0],
        )
    wanted_rows = np.array([row_of_id[item_id] for item_id in wanted_ids], np.int64)
    return rows[wanted_rows]


def _usable(foreign: ForeignRows) -> ForeignRows:
    """Leave out rows of NaN, refuse others that cannot rank, L2-normalise the rest to float32."""
    has_row = ~np.isnan(foreign.rows).all(axis=1)
    rows = foreign.rows[has_row]
    ids = [foreign.ids[position] for position in np.flatnonzero(has_row).tolist()]
    positions, problem = unusable_rows(rows)
    if len(positions):
        first_id = ids[positions[0]]
        raise EmbeddingsError(
            f"{foreign.source}: {len(positions):,} rows are {problem}, the first that of id "
            f"{first_id!r}; such rows cannot rank",
            name=first_id,
        )
    if not ids:
        raise EmbeddingsError(f"{foreign.source} holds rows of NaN alone; give every item a row")
    return ForeignRows(ids, unit_rows(rows), foreign.source)
