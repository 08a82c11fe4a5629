"""Teachers by name: which there are, what ``--teacher`` means, how each is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cusa.data.errors import CusaError
from cusa.data.schema import check_name, file_name

if TYPE_CHECKING:
    from cusa.precompute.teachers.base import Teacher

DEFAULTS = {"image": "unicom", "text": "mpnet"}
_UNICOM = ("unicom", "unicom-vit-b-16", "unicom-vit-l-14", "unicom-vit-l-14-336px")
KNOWN = (*_UNICOM, "efficientnet-lite0", "mpnet", "minilm")
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

    def load(self, device: str, batch_size: int | None = None) -> Teacher:
        """Load the teacher onto ``"cpu"`` or ``"cuda"``; ``batch_size`` is per forward pass, ``None`` what suits it.

        Raises:
            CusaError: If its weights cannot be had; says how to get them.
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
            _MPNET if self.name == "mpnet" else Path(self.source).name if Path(self.source).is_dir() else self.source
        )
        if self.kind == "sentence":
            from cusa.precompute.teachers.sentence import load_sentence

            return load_sentence(self.source, model_id, device, batch_size)
        from cusa.precompute.teachers.vision import load_vision

        return load_vision(self.source, model_id, device, batch_size)


def parse_teacher(text: str) -> TeacherRequest:
    """Understand ``NAME``, ``NAME=PATH``, a hub name ``owner/model`` or a folder.

    Raises:
        CusaError: If it names nothing that is known; says what is.
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
        raise CusaError(f"--teacher {text}: expected NAME, NAME=PATH, owner/model or a folder")
    check_name(name)
    if name in KNOWN:
        if name in ("mpnet", "minilm") and not Path(source).is_dir() and not _is_hub_name(source):
            raise CusaError(f"--teacher {text}: folder {source} does not exist")
        return TeacherRequest(name, "sentence" if name == "mpnet" else name, source)
    return TeacherRequest(name, _detect(source, text), source)


def complete(requests: Sequence[TeacherRequest], present: Sequence[str]) -> list[TeacherRequest]:
    """Add the default teacher of a modality that is neither requested nor present in the store already.

    Args:
        requests: What was asked for.
        present: Modalities that the store has teachers of.

    Raises:
        CusaError: If two requests share a name.
    """
    names = [r.name for r in requests]
    if twice := [n for n in names if names.count(n) > 1]:
        raise CusaError(f"--teacher {twice[0]} is given twice; name one of them differently: NAME=PATH")
    missing = [m for m in DEFAULTS if m not in present and m not in {r.modality for r in requests}]
    return [*requests, *(parse_teacher(DEFAULTS[m]) for m in missing)]


def _is_hub_name(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))


def _detect(source: str, text: str) -> str:
    """Whether a folder or hub repository is a sentence-transformers or a vision model."""
    unknown = CusaError(
        f"unknown teacher {text!r}; known: {', '.join(KNOWN)}, a Hugging Face or sentence-transformers name "
        "(owner/model), a folder, or NAME=FOLDER"
    )
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
            raise CusaError(
                f"--teacher {text}: {folder} holds neither config.json nor modules.json; is it a model folder?"
            )
        if (folder / "modules.json").is_file():
            return "sentence"
        try:
            config = json.loads((folder / "config.json").read_text())
        except ValueError as error:
            raise CusaError(f"--teacher {text}: {folder / 'config.json'} is not valid json ({error})") from None
        vision = (folder / "preprocessor_config.json").is_file() or "vision_config" in config or "image_size" in config
        return "vision" if vision else "sentence"
    if not _is_hub_name(source):
        raise unknown
    if source.startswith("sentence-transformers/"):
        return "sentence"
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    # modules.json makes a sentence-transformers model, preprocessor_config.json a vision model.
    for file, kind in (("modules.json", "sentence"), ("preprocessor_config.json", "vision")):
        try:
            hf_hub_download(source, file)
            return kind
        except LocalEntryNotFoundError:
            raise CusaError(
                f"--teacher {text}: the model hub cannot be reached; pass its folder: NAME=FOLDER"
            ) from None
        except EntryNotFoundError:
            continue
        except (OSError, ValueError) as error:
            first = str(error).strip().split("\n")[0]
            raise CusaError(f"--teacher {text}: {first}; known names: {', '.join(KNOWN)}") from None
    return "sentence"
