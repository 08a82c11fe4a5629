"""Models that give scores of images with captions instead of embeddings, such as rerankers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cusa.data.files import file_digest
from cusa.data.foreign.ids import check_ids, read_ids
from cusa.data.foreign.rows import read_scores, split_inner_path
from cusa.eval.models.embedding_providers import FileProvider


@dataclass(frozen=True)
class ScoreFile:
    """A file of scores.

    Attributes:
        path: The matrix ``[images, captions]``, as
            :func:`cusa.data.foreign.rows.read_scores` takes it.
        image_ids: File of the ids of its rows; ``None`` for the split's order.
        text_ids: File of the ids of its columns; ``None`` for the split's order.
    """

    path: Path
    image_ids: Path | None = None
    text_ids: Path | None = None


class ScoresProvider(FileProvider):
    """Provider of a matrix of scores; it embeds nothing, so that no uni-modal suite takes it.

    Args:
        file: The file.
        name: Name for tables.

    Attributes:
        scores: float or int ``[images, captions]``; memory-mapped if the file allows it.
        image_ids: Id of each row; ``None`` for the split's order.
        text_ids: Id of each column; ``None`` for the split's order.

    Raises:
        FileFormatError: If a file is missing or malformed.
        EmbeddingsError: If there is not one id for each row or column.
    """

    def __init__(
        self,
        file: ScoreFile,
        name: str,
    ) -> None:
        super().__init__(None, None, name)
        self.path = file.path
        self.scores = read_scores(file.path)
        self.image_ids = self._ids(file.image_ids, axis=0)
        self.text_ids = self._ids(file.text_ids, axis=1)
        whole_file, _ = split_inner_path(file.path)
        digest = hashlib.sha256(file_digest(whole_file))
        for ids in (self.image_ids, self.text_ids):
            if ids is not None:
                digest.update("\0".join(ids).encode())
        self.description = {
            "kind": "scores",
            "source": str(file.path.absolute()),
            "weights_sha256": digest.hexdigest(),
        }

    def _ids(
        self,
        ids_path: Path | None,
        axis: int,
    ) -> Sequence[str] | None:
        if ids_path is None:
            return None
        ids = read_ids(ids_path)
        units = ("rows", "columns")
        n_items = self.scores.shape[axis]
        check_ids(ids, n_items, self.path, ids_path, units[axis])
        return ids
