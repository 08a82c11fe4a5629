"""Providers of a model's embeddings: the model itself, or files of embeddings with ids."""

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

# Called with what is being embedded ("images"), the number of items just done (0 at the start), and
# the number of all items.
Advance = Callable[[str, int, int], None]
EmbeddingFile = tuple[Path, Path | None]  # file of rows, and file of their ids if that is separate


class EmbeddingProvider(Model, Protocol):
    """Provider of one model's embeddings: float32 ``[n, d]`` by head, L2-normalised."""

    def images(
        self,
        ids: Sequence[str],
        paths: Sequence[Path],
    ) -> Rows:
        """Return embeddings of images, which the provider looks up by id or computes from files.

        Args:
            ids: Id of each image.
            paths: File of each image.
        """

    def texts(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
    ) -> Rows:
        """Return embeddings of texts, which the provider looks up by id or computes.

        Args:
            ids: Id of each text.
            texts: The texts.
        """


class EncoderProvider:
    """Provider that embeds files and texts with a model.

    Args:
        encoder: The model.
        batch_size: Number of texts per batch.
        image_batch_size: Number of images per batch.
        workers: Number of threads that decode and encode images.
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
        """Report the start, and return a function that reports a number of items just done."""
        self._advance(items_name, 0, n_items)
        return lambda n_done: self._advance(items_name, n_done, n_items)


class FileProvider:
    """Provider of embeddings from files of rows with ids (:mod:`cusa.data.foreign.rows`).

    Rows of NaN alone stand for items without an embedding, as ``cusa-store export`` writes them.

    Args:
        image: File of image embeddings, and file of their ids; ``None`` without image embeddings.
        text: File of text embeddings, and file of their ids; ``None`` without text embeddings.
        name: Name for tables.

    Raises:
        FileFormatError: If a file is missing or malformed.
        EmbeddingsError: If rows and ids do not fit, the dimensions of image and text embeddings
            differ, or a row is all zeros or not finite.
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
            # The ids count, too: the same rows with other ids are other embeddings.
            digest.update("\0".join(foreign.ids).encode() + foreign.rows.tobytes())
        # Rows of different dimensions have no dot product.
        dims = [foreign.rows.shape[1] for foreign in self._foreign.values()]
        if len(set(dims)) > 1:
            raise EmbeddingsError(
                f"image embeddings have {dims[0]} dimensions, text embeddings {dims[1]}; pass "
                "embeddings of one model, or of one modality alone",
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
        """Return the rows of images by id.

        Raises:
            EmbeddingsError: If there are no image embeddings, or ids are missing.
        """
        return self._rows("image", ids, "images")

    def texts(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
    ) -> Rows:
        """Return the rows of texts by id.

        Raises:
            EmbeddingsError: If there are no text embeddings, or ids are missing.
        """
        return self._rows("text", ids, "captions")

    def _rows(
        self,
        modality: str,
        wanted_ids: Sequence[str],
        items_name: str,
    ) -> Rows:
        if modality not in self._foreign:
            raise EmbeddingsError(
                f"no {modality} embeddings were given; pass --{modality}-embeddings FILE"
            )
        foreign = self._foreign[modality]
        return {"cross": align(foreign.ids, foreign.rows, wanted_ids, items_name)}


def align(
    ids: Sequence[str], rows: np.ndarray, wanted_ids: Sequence[str], items_name: str
) -> np.ndarray:
    """Select the rows of wanted ids, in their order.

    Args:
        ids: Id of each row, all different.
        rows: ``[n, d]``.
        wanted_ids: Ids to look up.
        items_name: Name of the items for the error: ``"images"`` or ``"captions"``.

    Returns:
        ``[len(wanted_ids), d]``, in the dtype of ``rows``.

    Raises:
        EmbeddingsError: If ids are missing; the message says how many, and names the first.
    """
    return rows[positions_of_ids(ids, wanted_ids, items_name)]


def positions_of_ids(
    ids: Sequence[str],
    wanted_ids: Sequence[str],
    items_name: str,
) -> np.ndarray:
    """Look up the position of each wanted id: int64 ``[len(wanted_ids)]``.

    Args and errors are those of :func:`align`.
    """
    # Files may hold more items than wanted, in any order.
    position_of_id = {item_id: position for position, item_id in enumerate(ids)}
    missing = [item_id for item_id in wanted_ids if item_id not in position_of_id]
    if missing:
        example = next(iter(ids), None)
        raise EmbeddingsError(
            f"the file lacks {len(missing):,} of {len(wanted_ids):,} {items_name}, first "
            f"{missing[0]!r} (it has {len(ids):,}, such as {example!r}); give each of them its "
            "numbers under its id",
            name=missing[0],
        )
    return np.array([position_of_id[item_id] for item_id in wanted_ids], np.int64)


def _usable(foreign: ForeignRows) -> ForeignRows:
    """Leave out rows of NaN alone, refuse zero or non-finite ones, and L2-normalise in float32."""
    has_row = ~np.isnan(foreign.rows).all(axis=1)
    rows = foreign.rows[has_row]
    ids = [foreign.ids[position] for position in np.flatnonzero(has_row).tolist()]
    positions, problem = unusable_rows(rows)
    if len(positions):
        first_id = ids[positions[0]]
        raise EmbeddingsError(
            f"{foreign.source}: {len(positions):,} rows are {problem} and cannot be ranked, "
            f"first that of id {first_id!r}; correct them, or set them to NaN to leave them out",
            name=first_id,
        )
    if not ids:
        raise EmbeddingsError(f"all rows of {foreign.source} are NaN; give the items embeddings")
    return ForeignRows(ids, unit_rows(rows), foreign.source)
