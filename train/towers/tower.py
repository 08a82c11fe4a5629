"""Towers: the two sides of a student, each with what its inputs are made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from cusa.train.towers.processors import ImagePreparation, Processors, Tokenization


@dataclass(frozen=True)
class Tower:
    """One side of a student, below its heads.

    Attributes:
        trunk: Maps the tower's inputs to float ``[n, dim]``.
        dim: Dimension of its features.
        preparation: Makes its inputs of pictures or captions; ``None``: they are rows of the store.
        model: The pretrained model that the trunk runs; ``None`` for a stored tower.
        save: Writes what the tower is made from again, beside its weights, to a folder.
        folder: Name of that folder within the student's; empty: the student's own.
    """

    trunk: Any
    dim: int
    preparation: Any = None
    model: Any = None
    save: Callable[[Path], None] = lambda folder: None
    folder: str = ""


class Towers(NamedTuple):
    """Both towers of a student."""

    image: Tower
    text: Tower

    def of(self, modality: str) -> Tower:
        """Return the tower of ``"image"`` or ``"text"``."""
        return self._asdict()[modality]

    @property
    def processors(self) -> Processors:
        """Return what makes the inputs of both."""
        image: ImagePreparation | None = self.image.preparation
        text: Tokenization | None = self.text.preparation
        return Processors(image, text)

    @property
    def backbone(self) -> Any:
        """Return the model that both towers are of; ``None`` if they are of two, or stored."""
        if self.image.model is self.text.model:
            return self.image.model
        return None

    def save(self, folder: Path) -> None:
        """Write what both are made from again, beside their weights, to a student's folder."""
        for tower in self:
            tower.save(folder / tower.folder)


def stored_tower(
    dim: int,
    hidden_dim: int,
    dropout: float,
) -> Tower:
    """Make a tower whose inputs are rows of the store: a linear layer, GELU and dropout.

    Args:
        dim: Dimension of the rows.
        hidden_dim: Dimension of the features.
        dropout: Probability of the dropout.
    """
    linear = nn.Linear(dim, hidden_dim)
    trunk = nn.Sequential(linear, nn.GELU(), nn.Dropout(dropout))
    return Tower(trunk, hidden_dim)
