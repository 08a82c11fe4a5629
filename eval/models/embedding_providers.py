"""Where a model's embeddings come from: the model itself, or files of embeddings under ids."""

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
from cusa.eval.models.any_model import Encoder, Model
from cusa.eval.models.batched import encode_images, encode_texts

# Called with what is being embedded, how many more are done (0 at first), and how many there are.
Advance = Callable[[str, int, int], None]


class Source(Model, Protocol):
    """Embeddings of one model, L2-normalised float32 by head."""

    def images(self, ids: Sequence[str], paths: Sequence[Path]) -> Rows:
        """Of images, by id or by file."""

    def texts(self, ids: Sequence[str], texts: Sequence[str]) -> Rows:
        """Of texts, by id or as they are."""


@dataclass(frozen=True)
class EncoderSource:
    """A model that embeds what it is given.

    Attributes:
        encoder: The model.
        batch_size: Items at a time.
        image_batch_size: Images at a time, in each of the threads.
        workers: Threads that read images.
        advance: Told how far it is.
    """

    encoder: Encoder
    batch_size: int
    image_batch_size: int
    workers: int
    advance: Advance

    @property
    def name(self) -> str:
        """For tables."""
        return self.encoder.name

    @property
    def heads(self) -> tuple[Head, ...]:
        """The model's heads."""
        return self.encoder.heads

    @property
    def uni_head(self) -> Head:
        """The head to use within a modality."""
        return self.encoder.uni_head

    @property
    def modalities(self) -> frozenset[str]:
        """Of ``"image"`` and ``"text"``."""
        return self.encoder.modalities

    @property
    def description(self) -> Mapping[str, Any]:
        """What the model is."""
        return {**self.encoder.description, "weights_sha256": self.encoder.weights_sha256}

    def images(self, ids: Sequence[str], paths: Sequence[Path]) -> Rows:
        """Embeddings of image files."""
        n = len(paths)
        self.advance("images", 0, n)
        return encode_images(
            self.encoder,
            paths,
            self.image_batch_size,
            self.workers,
            lambda done: self.advance("images", done, n),
        )

    def texts(self, ids: Sequence[str], texts: Sequence[str]) -> Rows:
        """Embeddings of texts."""
        n = len(texts)
        self.advance("texts", 0, n)
        return encode_texts(
            self.encoder, texts, self.batch_size, lambda done: self.advance("texts", done, n)
        )


class FileSource:
    """Other people's embeddings: files of rows under ids (:mod:`cusa.data.foreign.rows`).

    Rows that are NaN throughout, as ``cusa-store export`` writes them, stand for items without an
    embedding.

    Args:
        image: File of image embeddings and that of their ids, or ``None``.
        text: Same for texts.
        name: For tables; ``None``: the files' names.

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
        name: str | None = None,
    ) -> None:
        files = {
            modality: file
            for modality, file in (("image", image), ("text", text))
            if file is not None
        }
        self._read = {modality: _unit(read_rows(*file)) for modality, file in files.items()}
        dims = {modality: foreign.rows.shape[1] for modality, foreign in self._read.items()}
        if len(set(dims.values())) > 1:
            raise EmbeddingsError(
                f"image embeddings have {dims['image']} dimensions, text embeddings {dims['text']}; both must be of "
                "one space: pass those of one model, or one modality alone"
            )
        self.modalities = frozenset(self._read)
        self.name = name or ", ".join(file[0].stem for file in files.values())
        digest = hashlib.sha256()
        for foreign in self._read.values():
            digest.update("\0".join(foreign.ids).encode() + foreign.rows.tobytes())
        sources = {modality: str(file[0].absolute()) for modality, file in files.items()}
        self.description = {
            "kind": "files",
            "source": sources,
            "weights_sha256": digest.hexdigest(),
        }

    def images(self, ids: Sequence[str], paths: Sequence[Path]) -> Rows:
        """Rows of images by id."""
        return self._rows("image", ids, "images")

    def texts(self, ids: Sequence[str], texts: Sequence[str]) -> Rows:
        """Rows of texts by id."""
        return self._rows("text", ids, "captions")

    def _rows(self, modality: str, wanted: Sequence[str], what: str) -> Rows:
        if modality not in self._read:
            raise EmbeddingsError(
                f"no {modality} embeddings are given; pass --{modality}-embeddings FILE"
            )
        rows, _ = align(self._read[modality].ids, self._read[modality].rows, wanted, what)
        return {"cross": rows}


def align(
    ids: Sequence[str], rows: np.ndarray, wanted: Sequence[str], what: str
) -> tuple[np.ndarray, int]:
    """Put rows in the order of the ids that are wanted.

    Args:
        ids: Of the rows, all different.
        rows: ``[n, d]``.
        wanted: Ids, each of them among ``ids``.
        what: What they are ids of, for the error: ``"images"``, ``"captions"``.

    Returns:
        ``[len(wanted), d]``, and how many of ``ids`` are not wanted.

    Raises:
        EmbeddingsError: If ids are missing; says how many and which is the first.
    """
    position = {name: n for n, name in enumerate(ids)}
    missing = [name for name in wanted if name not in position]
    if missing:
        raise EmbeddingsError(
            f"the embeddings lack {len(missing):,} of {len(wanted):,} {what}, the first {missing[0]!r} (they have "
            f"{len(ids):,}, such as {ids[0] if len(ids) else None!r}); give every one a row under its id",
            name=missing[0],
        )
    positions = np.fromiter((position[name] for name in wanted), np.int64, len(wanted))
    return rows[positions], len(ids) - len(set(wanted))


def _unit(foreign: ForeignRows) -> ForeignRows:
    """The rows that are there, L2-normalised float32."""
    has_row = ~np.isnan(foreign.rows).all(axis=1)
    ids = [name for name, is_there in zip(foreign.ids, has_row.tolist(), strict=True) if is_there]
    given = foreign.rows[has_row]
    for wrong, problem in (
        (~np.isfinite(given).all(axis=1), "not finite"),
        (~given.any(axis=1), "all zeros"),
    ):
        if wrong.any():
            count, first = int(wrong.sum()), ids[int(np.argmax(wrong))]
            raise EmbeddingsError(
                f"{foreign.source}: {count:,} rows are {problem}, the first that of id {first!r}; such rows "
                "cannot rank",
                name=first,
            )
    if not ids:
        raise EmbeddingsError(f"{foreign.source} holds rows of NaN alone; give every item a row")
    return ForeignRows(ids, unit_rows(given), foreign.source)
