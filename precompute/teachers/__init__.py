"""Teachers by name: which there are, what ``--teacher`` means, how each is loaded."""

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
from cusa.data.store.schema import TeacherSettings, check_name, file_name

if TYPE_CHECKING:
    from cusa.precompute.teachers.base import Pooling, Teacher

DEFAULTS = {"image": "unicom", "text": "mpnet"}
_UNICOM = ("unicom", "unicom-vit-b-16", "unicom-vit-l-14", "unicom-vit-l-14-336px")
KNOWN = (*_UNICOM, "efficientnet-lite0", "mpnet", "minilm")
_WEIGHT_FILES = (*_UNICOM, "efficientnet-lite0")  # whose source is a file
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_VISION_KEYS = {"vision_config", "image_size", "num_channels", "patch_size"}  # of a config.json
_MPNET = "sentence-transformers/all-mpnet-base-v2"


@dataclass(frozen=True)
class TeacherRequest:
    """One ``--teacher`` option, understood but not loaded.

    Attributes:
        name: The teacher's name in the store.
        kind: A Unicom name, ``"efficientnet-lite0"``, ``"minilm"``, ``"sentence"`` or ``"vision"``.
        source: Weight file, folder or hub name; ``None`` for the kind's own default.
    """

    name: str
    kind: str
    source: str | None

    @property
    def modality(self) -> str:
        """``"image"`` or ``"text"``."""
        return "text" if self.kind in ("sentence", "minilm") else "image"

    def load(
        self,
        device: str,
        batch_size: int | None = None,
        pooling: Pooling | None = None,
    ) -> Teacher:
        """Load the teacher.

        Args:
            device: ``"cpu"`` or ``"cuda"``.
            batch_size: Items per forward pass; ``None``: what suits it.
            pooling: What of a vision model's output becomes the row; ``None``: the best that it
                has. Teachers that bring their own pooling do without.

        Raises:
            TeacherError: If its weights cannot be had (says how to get them), or it has no such
                pooling.
        """
        path = Path(self.source) if self.source else None
        if self.kind in _UNICOM:
            from cusa.precompute.teachers.unicom import RELEASES, load_unicom

            return load_unicom(RELEASES[self.kind], path, device, batch_size)
        if self.kind == "efficientnet-lite0":
            from cusa.precompute.teachers.packaged import load_efficientnet_lite0

            return load_efficientnet_lite0(path, device, batch_size)
        if self.kind == "minilm":
            from cusa.precompute.teachers.packaged import load_minilm

            return load_minilm(self.source, device, batch_size)
        assert self.source is not None
        model_id = (
            _MPNET
            if self.name == "mpnet"
            else Path(self.source).name
            if Path(self.source).is_dir()
            else self.source
        )
        if self.kind == "sentence":
            from cusa.precompute.teachers.sentence import load_sentence

            return load_sentence(self.source, model_id, device, batch_size)
        from cusa.precompute.teachers.vision import load_vision

        return load_vision(self.source, model_id, device, batch_size, pooling)

    def load_as(self, stored: TeacherSettings, device: str) -> Teacher:
        """Load the teacher to give the rows of a store once more: pooling and decoding as there.

        Args:
            stored: The store's settings of this teacher.
            device: ``"cpu"`` or ``"cuda"``.

        Raises:
            TeacherError: As :meth:`load`, or if it has not the pooling that the rows were made with.
        """
        from cusa.precompute.teachers.base import DRAFT, FEATURE, FEATURE_OF_POOLING, POOLING

        poolings = {feature: pooling for pooling, feature in FEATURE_OF_POOLING.items()}
        recorded = stored.transform
        try:
            teacher = self.load(device, pooling=poolings.get(recorded.get(FEATURE, "")))
        except TeacherError as error:
            if error.location != POOLING:
                raise
            message = (
                f"{self.name}: the store's rows are {recorded[FEATURE]!r} of {stored.model_id!r}, which the model of "
                f"{self.source} does not have; use the model that made them"
            )
            raise TeacherError(message, name=self.name) from None
        decoding = {key: recorded[key] for key in teacher.decoding if key in recorded}
        return replace(teacher, draft_size=recorded.get(DRAFT), decoding=decoding)

    def require_hub(self) -> None:
        """Make sure that a teacher of the model hub can be had from there or from the local cache.

        Raises:
            TeacherError: If it cannot; says how to get it.
        """
        if self.source is not None and self.kind not in _WEIGHT_FILES:
            require(self.source, TeacherError)


def parse_teacher(text: str) -> TeacherRequest:
    """Understand ``NAME``, ``NAME=PATH``, a hub name ``owner/model`` or a folder.

    Raises:
        TeacherError: If it names nothing that is known; says what is.
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
        raise TeacherError(f"--teacher {text}: expected NAME, NAME=PATH, owner/model or a folder")
    check_name(name)
    if name in KNOWN:
        if name in ("mpnet", "minilm") and not os.path.isdir(source) and not is_hub_name(source):
            raise TeacherError(f"--teacher {text}: folder {source} does not exist")
        return TeacherRequest(name, "sentence" if name == "mpnet" else name, source)
    return TeacherRequest(name, _detect(source, text), source)


def complete(requests: Sequence[TeacherRequest], present: Sequence[str]) -> list[TeacherRequest]:
    """Add the default teacher of a modality that is neither requested nor present in the store already.

    Args:
        requests: What was asked for.
        present: Modalities that the store has teachers of.

    Raises:
        TeacherError: If two requests share a name.
    """
    names = [r.name for r in requests]
    if twice := [n for n in names if names.count(n) > 1]:
        message = f"--teacher {twice[0]} is given twice; name one of them differently: NAME=PATH"
        raise TeacherError(message, name=twice[0])
    missing = [m for m in DEFAULTS if m not in present and m not in {r.modality for r in requests}]
    return [*requests, *(parse_teacher(DEFAULTS[m]) for m in missing)]


def _detect(source: str, text: str) -> str:
    """Whether a folder or hub repository is of a text model or of a vision model.

    Returns:
        ``"sentence"`` or ``"vision"``.
    """
    if os.path.isdir(source):  # Path.is_dir raises on names that are too long
        return _kind_of_folder(Path(source), text)
    if not is_hub_name(source):
        message = (
            f"unknown teacher {text!r}; known: {', '.join(KNOWN)}, a Hugging Face or "
            "sentence-transformers name (owner/model), a folder, or NAME=FOLDER"
        )
        raise TeacherError(message, name=text)
    if source.startswith("sentence-transformers/"):
        return "sentence"
    files = Path(locate(source, TeacherError))
    return _kind_of_folder(files, text) if files.is_dir() else _kind_on_hub(source, text)


def _kind_on_hub(name: str, text: str) -> str:
    """A modules.json makes a text model, an image processor's file a vision model."""
    try:
        if has_file(name, "modules.json"):
            return "sentence"
        is_vision = any(has_file(name, file) for file in _PROCESSORS)
    except Exception as error:  # of the HTTP library, of which there are several
        message = f"--teacher {text}: {first_line(error)}; known names: {', '.join(KNOWN)}"
        raise TeacherError(message, name=name) from None
    return "vision" if is_vision else "sentence"


def _kind_of_folder(folder: Path, text: str) -> str:
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
            raise TeacherError(message, path=folder)
        return "vision"
    image_processor, any_processor = (folder / file for file in _PROCESSORS)
    if image_processor.is_file() or not config.keys().isdisjoint(_VISION_KEYS):
        return "vision"
    if any_processor.is_file() and "image_processor" in read_object(any_processor):
        return "vision"
    return "sentence"
