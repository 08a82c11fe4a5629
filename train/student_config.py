"""The settings of a student: its two towers, which of them are trained, and its sizes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cusa.data.encoders.packaged_models import EFFICIENTNET_LITE0, MINILM
from cusa.data.errors import SettingError
from cusa.train.settings import Field, Number, Text, WholeNumber, settings

ADAPTER = "adapter"
GREATEST_DIM = 16_384
GREATEST_RANK = 4096
GREATEST_ALPHA = 1_000_000
Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, Modality] = ("image", "text")
Kind = Literal["stored", "hf", "st", "efficientnet-lite0", "minilm"]
# What towers of each modality there are, for errors.
_LEGAL = {
    "image": f"stored, stored:TEACHER, hf:MODEL, {EFFICIENTNET_LITE0}",
    "text": f"stored, stored:TEACHER, hf:MODEL, st:MODEL, {MINILM}",
}
_PACKAGED = {"image": EFFICIENTNET_LITE0, "text": MINILM}
_PREFIXES = {"image": ("stored", "hf"), "text": ("stored", "hf", "st")}


@dataclass(frozen=True)
class TowerSpec:
    """What a tower is, as settings name it.

    Attributes:
        kind: ``"stored"`` (rows of the store), ``"hf"``, ``"st"``, or the name of a packaged model.
        name: The teacher's name, or the model's name or folder; empty: the store's only teacher, or
            a packaged model.
    """

    kind: Kind
    name: str = ""

    @property
    def is_stored(self) -> bool:
        """Return whether the tower's inputs are rows of the store."""
        return self.kind == "stored"

    def __str__(self) -> str:
        """Return it as settings name it."""
        if not self.name:
            return self.kind
        return f"{self.kind}:{self.name}"


def parse_tower(
    text: str,
    modality: Modality,
) -> TowerSpec:
    """Read the name of a tower: ``stored:TEACHER``, ``hf:MODEL``, ``st:MODEL`` or a packaged one.

    Raises:
        SettingError: If there is no such tower; lists those that there are.
    """
    if text == _PACKAGED[modality] or text == "stored":
        return TowerSpec(text)  # type: ignore[arg-type]
    prefix, _, name = text.partition(":")
    if prefix in _PREFIXES[modality] and name:
        return TowerSpec(prefix, name)  # type: ignore[arg-type]
    raise SettingError(f"must be one of {_LEGAL[modality]}; got {text!r}", name=modality)


@settings
class LoraConfig:
    """LoRA adapters (Hu et al. 2022), which are trained in place of a tower's own weights.

    Attributes:
        towers: Towers with adapters: ``image``, ``text`` or both; none by default. Needs the
            package peft.
        r: Rank of the adapters.
        alpha: Scale: the adapters' output is multiplied by ``alpha / r``.
        dropout: Dropout before the adapters.
        targets: Regular expression for the full names of the layers that get adapters; ``None``:
            all linear layers of the tower or, if it has none, all 1 x 1 convolutions.
    """

    towers: tuple[Modality, ...] = ()
    r: WholeNumber = Field(default=8, ge=1, le=GREATEST_RANK)
    alpha: WholeNumber = Field(default=16, ge=1, le=GREATEST_ALPHA)
    dropout: Number = Field(default=0.0, ge=0, lt=1)
    targets: Text | None = Field(default=None, min_length=1)

    def __post_init__(self) -> None:
        """Refuse a tower that is given twice, and an expression that is none."""
        _refuse_repeated(self.towers, "towers")
        if self.targets is None:
            return
        try:
            re.compile(self.targets)
        except re.error as error:
            raise SettingError(
                f"must be a regular expression; got {self.targets!r}: {error}", name="targets"
            ) from None


@settings
class StudentConfig:
    """The kind of student and its sizes.

    Attributes:
        name: ``"adapter"``: both towers are stored. Or the name or folder of a Hugging Face dual
            encoder: both towers are its own.
        image: The image tower, if not that of ``name``: ``stored:TEACHER`` (rows of the store),
            ``hf:MODEL`` (a vision model or dual encoder of Hugging Face, by name or folder) or
            ``efficientnet-lite0``.
        text: The text tower, likewise: ``stored:TEACHER``, ``hf:MODEL`` (a text model or dual
            encoder), ``st:MODEL`` (a model of sentence-transformers) or ``minilm``.
        freeze: Towers whose model is not trained: ``image``, ``text`` or both; heads always are.
        lora: LoRA adapters.
        init: Path of a trained student to begin with: a run, its ``best/``, or an hf export;
            ``None``: none.
        image_encoder: Of a stored image tower, the store's teacher whose rows are its input.
        text_encoder: Of a stored text tower, the store's teacher whose rows are its input.
        hidden_dim: Width of the MLP of a stored tower.
        embed_dim: Dimension of all four heads; ``None``: that of the towers' features, which must
            be equal then.
        dropout: Dropout after the MLP of a stored tower.
    """

    name: Text = Field(default="openai/clip-vit-base-patch32", min_length=1)
    image: Text | None = Field(default=None, min_length=1)
    text: Text | None = Field(default=None, min_length=1)
    freeze: tuple[Modality, ...] = ()
    lora: LoraConfig = field(default_factory=LoraConfig)
    init: Text | None = Field(default=None, min_length=1)
    image_encoder: Text | None = None
    text_encoder: Text | None = None
    hidden_dim: WholeNumber = Field(default=512, ge=1, le=GREATEST_DIM)
    embed_dim: WholeNumber | None = Field(default=None, ge=1, le=GREATEST_DIM)
    dropout: Number = Field(default=0.1, ge=0, lt=1)

    def __post_init__(self) -> None:
        """Refuse towers that do not exist, and settings of a tower that contradict each other."""
        _refuse_repeated(self.freeze, "freeze")
        for modality, tower in self.towers.items():
            encoder = self.encoder(modality)
            if tower.is_stored and encoder not in (None, tower.name or encoder):
                raise SettingError(
                    f"is {encoder!r}, but student.{modality} is {tower}; leave out one of them",
                    name=f"{modality}_encoder",
                )
            is_adapted = modality in self.lora.towers
            is_frozen = modality in self.freeze
            if tower.is_stored and (is_frozen or is_adapted):
                raise SettingError(
                    f"must not name {modality}: that tower is stored, so that only its MLP is "
                    "trained",
                    name="freeze" if is_frozen else "lora.towers",
                )
            if is_frozen and is_adapted:
                raise SettingError(
                    f"must not name {modality}, which student.freeze names, too; leave it out of "
                    "one of them",
                    name="lora.towers",
                )

    @property
    def towers(self) -> dict[Modality, TowerSpec]:
        """Return both towers; those of ``name`` where none is given."""
        towers: dict[Modality, TowerSpec] = {}
        given = {"image": self.image, "text": self.text}
        for modality in MODALITIES:
            text = given[modality]
            if text is not None:
                towers[modality] = parse_tower(text, modality)
            elif self.name == ADAPTER:
                towers[modality] = TowerSpec("stored", self.encoder(modality) or "")
            else:
                towers[modality] = TowerSpec("hf", self.name)
        return towers

    @property
    def dual_encoder(self) -> str | None:
        """Return the name or folder of the dual encoder that both towers are of, if they are."""
        image, text = self.towers.values()
        if image == text and image.kind == "hf":
            return image.name
        return None

    @property
    def stored(self) -> tuple[Modality, ...]:
        """Return the modalities whose tower is stored."""
        towers = self.towers
        return tuple(modality for modality in MODALITIES if towers[modality].is_stored)

    @property
    def is_adapter(self) -> bool:
        """Return whether both towers are stored."""
        return self.stored == MODALITIES

    @property
    def title(self) -> str:
        """Return a short name: ``adapter``, a dual encoder's, or those of both towers."""
        if self.is_adapter:
            return ADAPTER
        if self.dual_encoder is not None:
            return self.dual_encoder
        image, text = map(_short, self.towers.values())
        return f"{image}+{text}"

    def encoder(self, modality: Modality) -> str | None:
        """Return the teacher that settings name for a stored tower, if they do."""
        if modality == "image":
            return self.image_encoder
        return self.text_encoder


def _short(tower: TowerSpec) -> str:
    """Return the last part of a model's name, and what a stored tower is of."""
    if tower.is_stored:
        return str(tower)
    return Path(tower.name or tower.kind).name


def _refuse_repeated(
    towers: tuple[Modality, ...],
    setting: str,
) -> None:
    if len(set(towers)) < len(towers):
        raise SettingError(f"must name each tower at most once, got {list(towers)}", name=setting)
