"""Making a student's towers as its settings describe them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cusa.data.encoders.packaged_models import MINILM, minilm_folder
from cusa.data.errors import StudentError
from cusa.train.student import Student
from cusa.train.student_config import MODALITIES, Modality, StudentConfig, TowerSpec
from cusa.train.towers.dual_encoder import dual_towers
from cusa.train.towers.hugging_face import image_tower, text_tower
from cusa.train.towers.lora import add_adapters
from cusa.train.towers.packaged import efficientnet_tower, sentence_tower
from cusa.train.towers.tower import Tower, Towers, stored_tower

# Within a tower's folder, the file that tells what the tower is made from; by kind.
_DESCRIPTIONS = {"hf": "config.json", "st": "modules.json", MINILM: "modules.json"}


class BuiltStudent(NamedTuple):
    """A student and its towers."""

    student: Student
    towers: Towers


def build_student(
    config: StudentConfig,
    row_dims: Mapping[str, int] | None = None,
    folder: Path | None = None,
    pretrained: bool = True,
) -> BuiltStudent:
    """Make the student that settings describe.

    Args:
        config: The settings.
        row_dims: Dimension of the rows of each stored tower, by ``"image"`` and ``"text"``.
        folder: The folder of a student, which tells what its towers are made from (see
            :meth:`.Towers.save`); ``None``: the models that the settings name.
        pretrained: Whether to load the models' weights; if not, they are random, for a checkpoint
            to replace.

    Raises:
        CusaError: If a model cannot be loaded, or does not fit; the message says what to do.
    """
    if config.dual_encoder is not None:
        towers = dual_towers(str(folder or config.dual_encoder), pretrained)
    else:
        tower_of = {}
        for modality, spec in config.towers.items():
            if spec.is_stored:
                assert row_dims is not None, "a stored tower has rows"
                dim = row_dims[modality]
                tower_of[modality] = stored_tower(dim, config.hidden_dim, config.dropout)
            else:
                tower_of[modality] = model_tower(spec, modality, folder, pretrained)
        towers = Towers(tower_of["image"], tower_of["text"])
    student = Student(towers, config.embed_dim)
    choose_trained(towers, config)
    return BuiltStudent(student, towers)


def choose_trained(
    towers: Towers,
    config: StudentConfig,
) -> None:
    """Freeze towers and give them LoRA adapters, as settings say; train all others.

    Args:
        towers: Towers without adapters.
        config: The settings.

    Raises:
        CusaError: As :func:`add_adapters` raises it.
    """
    for modality in MODALITIES:
        tower = towers.of(modality)
        if tower.model is not None:
            tower.model.requires_grad_(True)
            tower.trunk.freeze(modality in config.freeze)
    if config.lora.towers:
        adapted_towers = [towers.of(modality) for modality in config.lora.towers]
        add_adapters(adapted_towers, config.lora)


def model_tower(
    spec: TowerSpec,
    modality: Modality,
    folder: Path | None = None,
    pretrained: bool = True,
) -> Tower:
    """Make a tower of a pretrained model.

    Args:
        spec: What it is.
        modality: ``"image"`` or ``"text"``.
        folder: A folder that tells what towers are made from, each in a folder of its modality's
            name; ``None``: the model that ``spec`` names.
        pretrained: Whether to load the model's weights; if not, they are random, for others to
            replace.

    Raises:
        CusaError: If the model cannot be loaded; the message says what to do.
    """
    if spec.kind == "efficientnet-lite0":
        return efficientnet_tower(pretrained)
    source = spec.name
    if folder is not None:
        source = _described_tower(folder, modality, spec)
    if spec.kind == "hf":
        make = {"image": image_tower, "text": text_tower}[modality]
        return make(source, pretrained)
    return sentence_tower(source or minilm_folder(StudentError), pretrained)


def _described_tower(
    folder: Path,
    modality: Modality,
    spec: TowerSpec,
) -> str:
    """Return the folder of a tower within a student's.

    If its description is missing, no hub is asked for it. Of a folder without ``modules.json``,
    sentence-transformers would make another model: mean pooling, whatever the tower had.
    """
    description = Path(modality, _DESCRIPTIONS[spec.kind])
    if not (folder / description).is_file():
        raise StudentError(
            f"{folder} lacks {description}, which tells what that tower is made from; restore it, "
            "or train again",
            path=folder,
        )
    return str((folder / modality).absolute())


def described_in(
    folder: Path,
    config: StudentConfig,
) -> list[Path]:
    """Return the files of a student's folder that describe the models of its towers."""
    if config.dual_encoder is not None:
        return [folder / "config.json"]
    paths = []
    for modality, tower in config.towers.items():
        if tower.kind in _DESCRIPTIONS:
            paths.append(folder / modality / _DESCRIPTIONS[tower.kind])
    return paths
