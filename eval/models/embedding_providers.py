"""Providers of a model's embeddings: the model itself, or files of embeddings under ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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


class Source(Model, Protocol):
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


@dataclass(frozen=True)
class EncoderSource:
    """Provider that embeds what it is given with a model.

    Attributes:
        encoder: The model.
        batch_size: Texts at a time.
        image_batch_size: Images at a time, in each of the threads.
        workers: Threads that read images.
        advance: Called with the progress.
    """

    encoder: Encoder
    batch_size: int
    image_batch_size: int
    workers: int
    advance: Advance

    @property
    def name(self) -> str:
        """Name for tables."""
        return self.encoder.name

    @property
    def heads(self) -> tuple[Head, ...]:
        """Heads of the model."""
        return self.encoder.heads

    @property
    def uni_head(self) -> Head:
        """Head to use within a modality."""
        return self.encoder.uni_head

    @property
    def modalities(self) -> frozenset[str]:
        """Modalities that it embeds: ``"image"``, ``"text"``, or both."""
        return self.encoder.modalities

    @property
    def description(self) -> Mapping[str, Any]:
        """Description of the model, with the sha256 of its weights."""
        return {**self.encoder.description, "weights_sha256": self.encoder.weights_sha256}

    def images(
        self,
        ids: Sequence[str],
        paths: Sequence[Path],
    ) -> Rows:
        """Embed image files."""
        return encode_images(
            self.encoder,
            paths,
            self.image_batch_size,
            self.workers,
            self._progress_of("images", len(paths)),
        )

    def texts(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
    ) -> Rows:
        """Embed texts."""
        return encode_texts(
            self.encoder,
            texts,
            self.batch_size,
            self._progress_of("texts", len(texts)),
        )

    def _progress_of(
        self,
        items_name: str,
        n_items: int,
    ) -> Callable[[int], None]:
        """Announce that items are embedded; return what is called with how many more are done."""
        self.advance(items_name, 0, n_items)
        return lambda n_done: self.advance(items_name, n_done, n_items)


class FileSource:
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
        image: tuple[Path, Path | None] | None,
        text: tuple[Path, Path | None] | None,
        name: str,
    ) -> None:
        files: dict[str, tuple[Path, Path | None]] = {}
        if image is not None:
            files["image"] = image
        if text is not None:
            files["text"] = text

        self._foreign: dict[str, ForeignRows] = {}
        sources: dict[str, str] = {}
        for modality, (rows_file, ids_file) in files.items():
            self._foreign[modality] = _usable(read_rows(rows_file, ids_file))
            sources[modality] = str(rows_file.absolute())
        self._check_dimensions()

        self.modalities = frozenset(self._foreign)
        self.name = name
        digest = hashlib.sha256()
        for foreign in self._foreign.values():
            # Ids, too: the same rows under other ids are other embeddings.
            ids = "\0".join(foreign.ids)
            digest.update(ids.encode() + foreign.rows.tobytes())
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

    def _check_dimensions(self) -> None:
        # Embeddings of two dimensions have no similarity.
        dims = {modality: foreign.rows.shape[1] for modality, foreign in self._foreign.items()}
        if len(set(dims.values())) > 1:
            raise EmbeddingsError(
                f"image embeddings have {dims['image']} dimensions, text embeddings "
                f"{dims['text']}; both must be of one space: pass those of one model, or one "
                "modality alone",
                name="dimensions",
            )

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
    ids: Sequence[str],
    rows: np.ndarray,
    wanted_ids: Sequence[str],
    items_name: str,
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
        example = ids[0] if len(ids) else None
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
