"""Teachers by name: the meaning of ``--teacher``, and how each teacher is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cusa.data.errors import TeacherError, first_line
from cusa.data.hub import has_file, is_hub_name, locate, require
from cusa.data.pretrained import read_object
from cusa.data.store.cross_teachers import CROSS_TEACHER
from cusa.data.store.schema import TeacherSettings, check_name, file_name

if TYPE_CHECKING:
    from cusa.data.encoders.vision_encoder import Pooling
    from cusa.precompute.teachers.base import Teacher

DEFAULTS = {"image": "unicom", "text": "mpnet"}
_UNICOM = ("unicom", "unicom-vit-b-16", "unicom-vit-l-14", "unicom-vit-l-14-336px")
KNOWN = (*_UNICOM, "efficientnet-lite0", "mpnet", "minilm")
# Teachers whose source is a weight file.
_WEIGHT_FILES = (*_UNICOM, "efficientnet-lite0")
_IMAGE_PROCESSOR, _ANY_PROCESSOR = "preprocessor_config.json", "processor_config.json"
# Keys that only the config.json of a vision model has.
_VISION_KEYS = {"vision_config", "image_size", "num_channels", "patch_size"}
# Kinds of the two halves of a dual encoder, by modality.
HALVES = {"image": "image half", "text": "text half"}
_MPNET = "sentence-transformers/all-mpnet-base-v2"


@dataclass(frozen=True)
class TeacherRequest:
    """A parsed ``--teacher`` option, whose teacher is not loaded yet.

    Attributes:
        name: The teacher's name in the store.
        kind: A Unicom name, ``"efficientnet-lite0"``, ``"minilm"``, ``"sentence"`` or ``"vision"``;
            ``"image half"`` or ``"text half"`` of a dual encoder.
        source: Weight file, folder or hub name; ``None`` for the kind's own default.
        cross_teacher: Name of the cross-modal teacher that a half belongs to.
    """

    name: str
    kind: str
    source: str | None
    cross_teacher: str = ""

    @property
    def modality(self) -> str:
        """``"image"`` or ``"text"``."""
        return "text" if self.kind in ("sentence", "minilm", HALVES["text"]) else "image"

    def load(
        self,
        device: str,
        batch_size: int | None = None,
        pooling: Pooling | None = None,
    ) -> Teacher:
        """Load the teacher.

        Args:
            device: ``"cpu"`` or ``"cuda"``.
            batch_size: Items per forward pass; ``None``: the teacher's default.
            pooling: The part of a vision model's output that becomes the row; ``None``: the best
                that the model has. Ignored by teachers with a fixed pooling.

        Raises:
            TeacherError: If it cannot be loaded (for missing weights, says how to get them), or it
                has no such pooling.
        """
        path = Path(self.source) if self.source else None
        if self.kind in _UNICOM:
            from cusa.precompute.teachers import unicom

            return unicom.load_unicom(unicom.RELEASES[self.kind], path, device, batch_size)
        if self.kind in ("efficientnet-lite0", "minilm"):
            from cusa.precompute.teachers import packaged

            if self.kind == "minilm":
                return packaged.load_minilm(self.source, device, batch_size)
            return packaged.load_efficientnet_lite0(path, device, batch_size)

        return self._load_hugging_face(device, batch_size, pooling)

    def _load_hugging_face(
        self,
        device: str,
        batch_size: int | None,
        pooling: Pooling | None,
    ) -> Teacher:
        assert self.source is not None, "only teachers with a default source may have none"
        model_id = self._model_id(self.source)
        if self.kind in HALVES.values():
            from cusa.precompute.teachers.dual_encoder import load_half

            return load_half(
                self.source, model_id, self.modality, self.cross_teacher, device, batch_size
            )
        if self.kind == "sentence":
            from cusa.precompute.teachers.sentence import load_sentence

            return load_sentence(self.source, model_id, device, batch_size)
        from cusa.precompute.teachers.vision import load_vision

        return load_vision(self.source, model_id, device, batch_size, pooling)

    def _model_id(self, source: str) -> str:
        """Return the model's name to record, which must not depend on its folder's place."""
        if self.name == "mpnet":
            return _MPNET
        return Path(source).name if Path(source).is_dir() else source

    def load_as(
        self,
        stored: TeacherSettings,
        device: str,
    ) -> Teacher:
        """Load the teacher with the pooling and decoding of a store, to reproduce its rows.

        Args:
            stored: The store's settings of this teacher.
            device: ``"cpu"`` or ``"cuda"``.

        Raises:
            TeacherError: As :meth:`load` raises it; also if it lacks the store's pooling.
        """
        cross_teacher = stored.transform.get(CROSS_TEACHER)
        if cross_teacher is not None:
            half = replace(self, kind=HALVES[stored.modality], cross_teacher=cross_teacher)
            return half._load_as(stored, device)
        return self._load_as(stored, device)

    def _load_as(
        self,
        stored: TeacherSettings,
        device: str,
    ) -> Teacher:
        from cusa.data.encoders.vision_encoder import FEATURE_OF_POOLING, POOLING
        from cusa.precompute.teachers.base import FEATURE

        pooling_of_feature = {feature: name for name, feature in FEATURE_OF_POOLING.items()}
        recorded = stored.transform
        pooling = pooling_of_feature.get(recorded.get(FEATURE, ""))
        try:
            teacher = self.load(device, pooling=pooling)
        except TeacherError as error:
            if error.location != POOLING:
                raise
            raise TeacherError(
                f"{self.name}: the store's rows are {recorded[FEATURE]!r} of {stored.model_id!r}, "
                f"which the model of {self.source} does not have; use the model that made them",
                name=self.name,
            ) from None
        decoding = {key: recorded[key] for key in teacher.decoding if key in recorded}
        return replace(teacher, decoding=decoding)

    def require_hub(self) -> None:
        """Check that a model of the hub is on the hub or in the local cache.

        Raises:
            TeacherError: If it is not; says how to get it.
        """
        if self.source is not None and self.kind not in _WEIGHT_FILES:
            require(self.source, TeacherError)


def parse_teacher(text: str) -> TeacherRequest:
    """Parse ``NAME``, ``NAME=PATH``, a hub name ``owner/model`` or a folder.

    Raises:
        TeacherError: If there is no such teacher; lists the known ones.
        SettingError: If NAME is not legal.
    """
    name, equals, source = text.partition("=")
    if not equals:
        if name == "mpnet":
            return TeacherRequest(name, "sentence", _MPNET)
        if name in KNOWN:
            return TeacherRequest(name, name, None)
        source = name
        name = file_name(Path(name).name)
    if not source:
        message = f"--teacher {text}: expected NAME, NAME=PATH, owner/model or a folder"
        raise TeacherError(message, name=name)

    check_name(name)
    if name not in KNOWN:
        return TeacherRequest(name, _detect_kind(source, text), source)
    needs_folder = name not in _WEIGHT_FILES
    if needs_folder and not os.path.isdir(source) and not is_hub_name(source):
        message = f"--teacher {text}: folder {source} does not exist"
        raise TeacherError(message, path=Path(source), name=name)
    kind = "sentence" if name == "mpnet" else name
    return TeacherRequest(name, kind, source)


def complete(
    requests: Sequence[TeacherRequest],
    stored_modalities: Sequence[str],
) -> list[TeacherRequest]:
    """Add the default teacher of each modality that is neither requested nor in the store.

    Args:
        requests: The requested teachers.
        stored_modalities: Modalities of the store's teachers.

    Raises:
        TeacherError: If two requests share a name.
    """
    names: set[str] = set()
    for request in requests:
        if request.name in names:
            raise TeacherError(
                f"--teacher {request.name} is given twice; name one of them differently: NAME=PATH",
                name=request.name,
            )
        names.add(request.name)

    completed = list(requests)
    modalities = {request.modality for request in requests}.union(stored_modalities)
    for modality, default in DEFAULTS.items():
        if modality not in modalities:
            completed.append(parse_teacher(default))
    return completed


def _detect_kind(source: str, text: str) -> str:
    """Detect whether a folder or hub repository holds a text model or a vision model.

    Returns:
        ``"sentence"`` or ``"vision"``.
    """
    # Unlike Path.is_dir, this does not raise on names that are too long.
    if os.path.isdir(source):
        return _kind_of_folder(Path(source), text)
    if not is_hub_name(source):
        message = (
            f"unknown teacher {text!r}; known: {', '.join(KNOWN)}, a Hugging Face or "
            "sentence-transformers name (owner/model), a folder, or NAME=FOLDER"
        )
        raise TeacherError(message, name=text)
    if source.startswith("sentence-transformers/"):
        return "sentence"

    cached = Path(locate(source, TeacherError))
    if cached.is_dir():
        return _kind_of_folder(cached, text)
    return _kind_on_hub(source, text)


def _kind_on_hub(name: str, text: str) -> str:
    """Detect a text model by modules.json, and a vision model by its image processor."""
    try:
        if has_file(name, "modules.json"):
            return "sentence"
        is_vision = has_file(name, _IMAGE_PROCESSOR) or has_file(name, _ANY_PROCESSOR)
    except Exception as error:
        # huggingface_hub may use any of several HTTP libraries, each with its own errors.
        message = f"--teacher {text}: {first_line(error)}; known names: {', '.join(KNOWN)}"
        raise TeacherError(message, name=name) from None
    if is_vision:
        return "vision"
    # A plain text model of transformers; the mean over its tokens becomes the row.
    return "sentence"


def _kind_of_folder(folder: Path, text: str) -> str:
    """Detect whether a folder holds a text model or a vision model."""
    if (folder / "modules.json").is_file():
        return "sentence"
    if not (folder / "config.json").is_file():
        problem = "holds neither config.json nor modules.json; is it a model folder?"
        raise TeacherError(f"--teacher {text}: {folder} {problem}", path=folder)

    config = read_object(folder / "config.json")
    if "architecture" in config and "model_type" not in config:
        if find_spec("timm") is None:
            kind = f"a timm model ({config['architecture']})"
            message = f"--teacher {text}: {folder} is {kind}, which needs timm: pip install timm"
            raise TeacherError(message, path=folder, name="timm")
        return "vision"
    if (folder / _IMAGE_PROCESSOR).is_file() or not config.keys().isdisjoint(_VISION_KEYS):
        return "vision"
    any_processor = folder / _ANY_PROCESSOR
    if any_processor.is_file() and "image_processor" in read_object(any_processor):
        return "vision"
    return "sentence"
