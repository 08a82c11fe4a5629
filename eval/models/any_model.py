"""Any model as an encoder: a trained student, a Hugging Face or sentence-transformers model, a teacher; by one name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cusa.data.captions import normalizer
from cusa.data.embeddings import Head, Rows
from cusa.data.errors import CusaError, RunError
from cusa.data.hub import locate
from cusa.data.pretrained import load_config, one_line_load_errors
from cusa.eval.models.inputs import ImageLike, batches, checked_texts, opened_images
from cusa.eval.models.student import StudentEncoder, chosen_device, folder_name, one_at_a_time
from cusa.eval.models.usable_rows import refuse_unusable
from cusa.precompute.first_batch import FirstBatchCheck
from cusa.precompute.teachers import KNOWN, parse_teacher
from cusa.precompute.teachers.base import Teacher, TeacherInputs, weights_digest
from cusa.precompute.teachers.sentence import is_text_tower, load_sentence, open_model, text_teacher
from cusa.precompute.teachers.vision import HuggingFaceTransform, load_vision
from cusa.train.saving.run_dir import begun, load_trained
from cusa.train.saving.student_folder import student_folder
from cusa.train.student import load_dual_encoder

LEGAL = (
    "a run of cusa-train or an exported folder, the name or folder of a Hugging Face or sentence-transformers model "
    f"(owner/model), a teacher ({', '.join(KNOWN)}), or NAME=PATH of one"
)
_CAPTIONS = "none"  # others' models get captions as written


class Model(Protocol):
    """What is measured."""

    @property
    def name(self) -> str:
        """For tables: the run's or folder's name, or the model's."""
        ...

    @property
    def heads(self) -> tuple[Head, ...]:
        """``("cross", "uni")`` of a student, ``("cross",)`` of a model with one embedding per item."""
        ...

    @property
    def uni_head(self) -> Head:
        """The head to use within a modality."""
        ...

    @property
    def modalities(self) -> frozenset[str]:
        """What it embeds: of ``"image"`` and ``"text"``."""
        ...

    @property
    def description(self) -> Mapping[str, Any]:
        """What it is, JSON-compatible: ``kind``, ``source``, ``normalizer`` of captions, and what else there is to say.

        The kinds: ``"run"``, ``"hf"``, ``"sentence-transformers"``, ``"teacher"``, ``"files"``.
        """
        ...


class Encoder(Model, Protocol):
    """What embeds images, texts, or both."""

    @property
    def weights_sha256(self) -> str:
        """sha256 (hex) of its weights."""
        ...

    def image_rows(self, images: Iterable[ImageLike], batch_size: int = 64) -> Rows:
        """Embeddings of images by head, float32 ``[n, d]``, L2-normalised; several threads may call it."""
        ...

    def text_rows(self, texts: Iterable[str], batch_size: int = 256) -> Rows:
        """Embeddings of texts by head, float32 ``[n, d]``, L2-normalised; for one thread: tokenisers are not shared."""
        ...


class ModelEncoder:
    """A model with one embedding per item, seen as a teacher for each modality that it knows.

    Args:
        name: For tables.
        kind: ``"hf"``, ``"sentence-transformers"`` or ``"teacher"``.
        sides: At least one; they are of one model, or at least of one space.
        device: Where these are.
    """

    heads: tuple[Head, ...] = ("cross",)
    uni_head: Head = "cross"

    def __init__(self, name: str, kind: str, sides: Sequence[Teacher], device: str) -> None:
        self.name = name
        self.modalities = frozenset(side.modality for side in sides)
        self.weights_sha256 = sides[0].weights_sha256
        self.description = {
            "kind": kind,
            "source": sides[0].source,
            "model_id": sides[0].model_id,
            "normalizer": _CAPTIONS,
            "dim": sides[0].dim,
            "transform": {side.modality: dict(side.transform) for side in sides},
        }
        self._sides = {side.modality: side for side in sides}
        self._device, self._alone = device, one_at_a_time(device)
        self._checks = {side.modality: FirstBatchCheck(side, device, "fp32") for side in sides}

    def __repr__(self) -> str:
        kind, dim = self.description["kind"], self.description["dim"]
        return f"ModelEncoder({self.name!r}, kind={kind!r}, dim={dim}, device={self._device!r})"

    def image_rows(self, images: Iterable[ImageLike], batch_size: int = 64) -> Rows:
        """Embeddings of images, float32 ``[n, d]``, L2-normalised.

        Raises:
            CusaError: If it embeds no images, a file cannot be read, an embedding is not finite or
                all zeros, or a GPU's memory is too small.
            ValueError: If ``batch_size`` is below 1.
        """
        side = self._side("image")
        numbered = batches(enumerate(images), batch_size)
        return self._rows(side, ((side.inputs(opened_images(batch)), None) for batch in numbered))

    def text_rows(self, texts: Iterable[str], batch_size: int = 256) -> Rows:
        """Embeddings of texts as written, float32 ``[n, d]``, L2-normalised.

        Raises:
            CusaError: If it embeds no texts, one is blank, an embedding is not finite or all zeros,
                or a GPU's memory is too small.
            ValueError: If ``batch_size`` is below 1.
        """
        side, normalize = self._side("text"), normalizer(_CAPTIONS)
        captions = batches(map(normalize, checked_texts(texts)), batch_size)
        return self._rows(side, ((side.inputs(batch), batch) for batch in captions))

    def _side(self, modality: str) -> Teacher:
        if modality not in self._sides:
            known = next(iter(self._sides))
            raise CusaError(
                f"model {self.name!r} embeds no {modality}s, only {known}s; pass a model that does"
            )
        return self._sides[modality]

    def _rows(
        self,
        side: Teacher,
        inputs: Iterable[tuple[TeacherInputs, Sequence[str] | None]],
    ) -> Rows:
        parts = [np.zeros((0, side.dim), np.float32)]
        n_done = 0
        for batch, texts in inputs:
            with self._alone:
                rows = side.rows(batch, self._device, "fp32")
                self._checks[side.modality](self.name, batch, rows, texts)
            refuse_unusable({"cross": rows}, self.name, n_done)
            parts.append(rows)
            n_done += len(rows)
        return {"cross": np.concatenate(parts)}


def load_encoder(spec: str | Path, device: str | None = None, checkpoint: str = "best") -> Encoder:
    """Load whatever embeds images or texts.

    Args:
        spec: A run of cusa-train, or a folder with a student; else the name of a teacher, or ``NAME=PATH``; else the
            folder or hub name (``owner/model``) of a model: sentence-transformers if it has ``modules.json``, a dual
            encoder if it has both towers (their features as they are), a vision or a sentence model otherwise.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; ``None``: a GPU if there is one.
        checkpoint: Of a run: ``"best"`` or ``"last"``.

    Raises:
        CusaError: If it is nothing of these, or cannot be loaded; says what is legal, or how to get it.
    """
    spec, folder, device = str(spec), Path(spec), chosen_device(device)
    try:
        if folder.is_dir() and _holds_student(folder):
            return StudentEncoder(load_trained(folder, checkpoint), device, source=folder)
        if spec in KNOWN or ("=" in spec and not folder.exists()):
            request = parse_teacher(spec)
            return ModelEncoder(request.name, "teacher", [request.load(device)], device)
        if folder.is_dir():
            if not any((folder / file).is_file() for file in ("modules.json", "config.json")):
                raise CusaError(
                    f"folder {spec} holds no student, no modules.json and no config.json; legal: {LEGAL}"
                )
        elif spec.count("/") != 1 or spec.startswith((".", "/", "~")):
            raise CusaError(f"unknown model {spec!r}; legal: {LEGAL}")
        with one_line_load_errors("model", spec, RunError, f"legal: {LEGAL}"):
            return _model(spec, device)
    except CusaError as error:
        message = str(error).replace("--teacher ", "")  # an option of another command
        raise type(error)(
            message,
            path=error.path,
            location=error.location,
            name=error.name,
        ) from None


def _holds_student(folder: Path) -> bool:
    try:
        return bool(student_folder(folder))
    except CusaError:
        return begun(folder)  # a run without a student yet: loading it says so


def _model(spec: str, device: str) -> ModelEncoder:
    """A model by folder or hub name."""
    from sentence_transformers.util import is_sentence_transformer_model
    from transformers import MODEL_MAPPING

    name = folder_name(Path(spec)) if Path(spec).is_dir() else spec
    files = locate(spec, RunError)
    if is_sentence_transformer_model(files):
        return _sentence_model(spec, name, device)
    model_class: Any = MODEL_MAPPING.get(type(load_config(files)), None)
    if all(hasattr(model_class, f"get_{tower}_features") for tower in ("image", "text")):
        return ModelEncoder(name, "hf", _towers(spec, name, device), device)
    if getattr(model_class, "main_input_name", "") == "pixel_values":
        return ModelEncoder(name, "hf", [load_vision(spec, name, device, None)], device)
    if is_text_tower(spec):
        return ModelEncoder(name, "hf", [load_sentence(spec, name, device, None)], device)
    return _sentence_model(spec, name, device)  # its tokens are averaged


def _sentence_model(spec: str, name: str, device: str) -> ModelEncoder:
    model = open_model(spec, device)
    text = text_teacher(model, spec, name, device, None)

    def image_inputs(images: Sequence[Any]) -> Mapping[str, Any]:
        return model.preprocess(
            [image.convert("RGB") for image in images], prompt=text.transform["prompt"]
        )

    sides = {"text": text, "image": replace(text, modality="image", tokenize=image_inputs)}
    known = [side for modality, side in sides.items() if model.supports(modality)]
    if not known:
        raise CusaError(
            f"{spec!r} embeds neither images nor texts, only {model.modalities}; pass a model that does"
        )
    return ModelEncoder(name, "sentence-transformers", known, device)


def _towers(spec: str, name: str, device: str) -> list[Teacher]:
    """Both towers of a Hugging Face dual encoder."""
    dual_encoder = load_dual_encoder(spec, pretrained=True)
    if dual_encoder.image_dim != dual_encoder.text_dim:
        dims = f"{dual_encoder.image_dim} and {dual_encoder.text_dim}"
        raise CusaError(
            f"{spec!r}: image and text features have other dimensions ({dims}); pass another dual encoder"
        )
    dual_encoder.model.eval().to(device)
    processors, preprocess = (
        dual_encoder.processors,
        HuggingFaceTransform(dual_encoder.processors.image_processor),
    )
    image = Teacher(
        modality="image",
        model_id=name,
        weights_sha256=weights_digest(dual_encoder.model),
        dim=dual_encoder.image_dim,
        transform={"feature": "image_features", **preprocess.describe()},
        source=spec,
        encode=dual_encoder.image_tower,
        batch_size=32,
        preprocess=preprocess,
    )
    text = replace(
        image,
        modality="text",
        transform={
            "feature": "text_features",
            "max_length": processors.max_length,
            "padding": processors.padding,
        },
        encode=dual_encoder.text_tower,
        preprocess=None,
        tokenize=lambda captions: processors.tokens(list(captions)),
    )
    return [image, text]
