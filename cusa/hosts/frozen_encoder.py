"""Modules with which sentence-transformers embeds as stage one does.

An exported adapter names them where sentence-transformers' own modules do not give the rows of a
frozen encoder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from sentence_transformers.base.modules.input_module import InputModule
from sentence_transformers.base.modules.module import Module

from cusa.data.captions import normalizer
from cusa.data.hub import cached_snapshot
from cusa.data.store.schema import TeacherSettings
from cusa.eval.models.frozen_encoder import load_frozen
from cusa.eval.models.inputs import checked_texts, opened_images
from cusa.precompute.teachers.base import Teacher

_INPUTS = "frozen_encoder_inputs"


class FrozenEncoder(InputModule):
    """A teacher of stage one as the first module of a ``SentenceTransformer``.

    It embeds images (paths, Pillow images, arrays or tensors) or texts (as written) like
    ``cusa-precompute``, in the store's precision: float32 ``[n, dim]``, L2-normalised, without
    gradients. The teacher is loaded on first use.

    Args:
        name: The teacher's name in the store.
        source: Its weight file, folder or hub name.
        settings: What the store records of it.
    """

    def __init__(
        self,
        name: str,
        source: str,
        settings: TeacherSettings,
    ) -> None:
        super().__init__()
        self.name = name
        self.source = source
        self.settings = settings
        # sentence-transformers moves buffers, which tells where to compute.
        self.register_buffer("device_marker", torch.empty(0), persistent=False)
        self._teachers: dict[str, Teacher] = {}

    @property
    def modalities(self) -> list[Any]:
        """Return the teacher's modality."""
        return [self.settings.modality]

    def get_embedding_dimension(self) -> int:
        """Return the teacher's embedding dimension."""
        return self.settings.dim

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Prepare images or texts for the teacher, on the CPU.

        Raises:
            CusaError: If an item is no image or text, or the teacher cannot be loaded.
        """
        items = items_of(inputs, self.settings.modality)
        prepared: Iterable[Any]
        if self.settings.modality == "image":
            prepared = opened_images(enumerate(items))
        else:
            normalize = normalizer(self.settings.normalizer)
            prepared = map(normalize, checked_texts(items))
        teacher = self._teacher()
        return {_INPUTS: teacher.inputs(prepared)}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Embed prepared inputs.

        Raises:
            TeacherError: If the teacher fails.
        """
        device = self.device_marker.device
        teacher = self._teacher()
        precision = self.settings.precision
        rows = teacher.rows(features[_INPUTS], str(device), precision)
        features["sentence_embedding"] = torch.from_numpy(rows).to(device)
        return features

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write the settings, and a copy of the teacher's weight file or folder."""
        folder, source = Path(output_path), Path(self.source)
        if not source.exists():
            source = cached_snapshot(self.source) or source
        copied = folder / "encoder"
        if source.is_dir():
            shutil.copytree(source, copied)
        else:
            copied = copied.with_suffix(source.suffix)
            shutil.copyfile(source, copied)
        settings = json.loads(self.settings.to_json())
        config = {
            "name": self.name,
            "source": copied.name,
            "settings": settings,
        }
        config_path = folder / self.config_file_name
        config_path.write_text(json.dumps(config, indent=4))

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        **hub_settings: Any,
    ) -> Any:
        """Load what :meth:`save` has written.

        Raises:
            StoreError: If the recorded settings are not legal.
        """
        located = cls.load_dir_path(model_name_or_path, subfolder, **hub_arguments(hub_settings))
        folder = Path(str(located))
        config_path = folder / cls.config_file_name
        config = json.loads(config_path.read_text())
        settings = TeacherSettings.from_json(json.dumps(config["settings"]))
        source = folder / config["source"]
        return cls(config["name"], str(source), settings)

    def _teacher(self) -> Teacher:
        """Return the teacher on this module's device."""
        device = str(self.device_marker.device)
        if device not in self._teachers:
            source = f"{self.name}={self.source}"
            teacher = load_frozen(source, self.name, self.settings, device)
            self._teachers = {device: teacher}
        return self._teachers[device]


class RoundedRows(Module):
    """Rounds embeddings as a store rounds its rows.

    Args:
        dtype: ``"float16"`` or ``"float32"``.
    """

    config_keys: ClassVar[list[str]] = ["dtype"]

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Round the embeddings, float32 ``[n, dim]``."""
        embeddings = features["sentence_embedding"]
        rounded = embeddings.to(getattr(torch, self.dtype))
        features["sentence_embedding"] = rounded.to(embeddings.dtype)
        return features

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write the dtype."""
        self.save_config(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        **hub_settings: Any,
    ) -> Any:
        """Load what :meth:`save` has written."""
        config = cls.load_config(model_name_or_path, subfolder, **hub_arguments(hub_settings))
        return cls(**config)


def items_of(inputs: Sequence[Any], modality: str) -> list[Any]:
    """Return images or texts, each of which may be given as ``{"image": ...}`` or the like."""
    items = []
    for value in inputs:
        items.append(value[modality] if isinstance(value, dict) else value)
    return items


def hub_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Return those of a module's loading arguments that say where its files are."""
    names = ("token", "cache_folder", "revision", "local_files_only")
    return {name: settings[name] for name in names if name in settings}
