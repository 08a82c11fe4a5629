"""A student's trained tower as a module of sentence-transformers.

An exported student names it where sentence-transformers' own modules cannot take the tower's model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentence_transformers.base.modules.input_module import InputModule

from cusa.data.captions import normalizer
from cusa.eval.models.inputs import checked_texts, opened_images
from cusa.hosts.frozen_encoder import hub_arguments, items_of
from cusa.train.build_student import model_tower
from cusa.train.saving.tensors import load_tensors, save_tensors
from cusa.train.student_config import Modality, parse_tower
from cusa.train.towers.tower import Tower

_INPUTS = "tower_inputs"
_WEIGHTS = "tower.safetensors"


class TrainedTower(InputModule):
    """A tower of a student as the first module of a ``SentenceTransformer``.

    It embeds images (paths, Pillow images, arrays or tensors) or texts (as written): float32
    ``[n, dim]``, not normalised.

    Args:
        tower: The tower.
        name: What it is, as settings name it: ``"efficientnet-lite0"``.
        modality: ``"image"`` or ``"text"``.
        normalizer_name: Name of the caption normaliser.
    """

    def __init__(
        self,
        tower: Tower,
        name: str,
        modality: Modality,
        normalizer_name: str,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.trunk = tower.trunk
        self.name = name
        self.modality: Modality = modality
        self.normalizer_name = normalizer_name

    @property
    def modalities(self) -> list[Any]:
        """Return the tower's modality."""
        return [self.modality]

    def get_embedding_dimension(self) -> int:
        """Return the dimension of the tower's features."""
        return self.tower.dim

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Prepare images or texts for the tower, on the CPU.

        Raises:
            CusaError: If an item is no image or text.
        """
        items = items_of(inputs, self.modality)
        preparation = self.tower.preparation
        if self.modality == "text":
            normalize = normalizer(self.normalizer_name)
            return preparation.tokens([normalize(text) for text in checked_texts(items)])
        return {_INPUTS: preparation.pixels(list(opened_images(enumerate(items))))}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Embed prepared inputs.

        Raises:
            StudentError: If the model fails.
        """
        inputs: Any = features.get(_INPUTS)
        if inputs is None:
            inputs = {name: features[name] for name in ("input_ids", "attention_mask")}
        features["sentence_embedding"] = self.trunk(inputs)
        return features

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write what the tower is made from, and its weights."""
        folder = Path(output_path)
        folder.mkdir(parents=True, exist_ok=True)
        self.tower.save(folder / self.modality)
        save_tensors(folder / _WEIGHTS, self.trunk.state_dict(), {})
        config = {
            "name": self.name,
            "modality": self.modality,
            "normalizer_name": self.normalizer_name,
        }
        (folder / self.config_file_name).write_text(json.dumps(config, indent=4))

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        **hub_settings: Any,
    ) -> Any:
        """Load what :meth:`save` has written.

        Raises:
            CusaError: If the model cannot be made, or its weights are damaged.
        """
        located = cls.load_dir_path(model_name_or_path, subfolder, **hub_arguments(hub_settings))
        folder = Path(str(located))
        config = json.loads((folder / cls.config_file_name).read_text())
        modality = config["modality"]
        spec = parse_tower(config["name"], modality)
        tower = model_tower(spec, modality, folder, pretrained=False)
        tensors, _ = load_tensors(folder / _WEIGHTS)
        tower.trunk.load_state_dict(tensors)
        tower.trunk.eval()
        return cls(tower, config["name"], modality, config["normalizer_name"])
