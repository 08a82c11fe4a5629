"""A trained student for other people's code: folders that transformers and sentence-transformers load."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel, FiniteFloat
from torch import nn

from cusa.data.captions import normalizer
from cusa.data.embeddings import HEADS, Head
from cusa.data.errors import CusaError, RunError
from cusa.data.parsing import read_json
from cusa.train.saving.model_card import Usage, write_card
from cusa.train.saving.plain_values import checked
from cusa.train.saving.run_dir import load_trained
from cusa.train.saving.student_folder import HEADS_FILE, Origin, SavedStudent
from cusa.train.saving.tensors import save_tensors
from cusa.train.student import Processors

Kind = Literal["hf", "sentence-transformers"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# An export whose embeddings are off by more than this is no copy of the student; rounding stays far below.
_TOLERANCE = 1e-4
# Words, case, punctuation, blanks, and more tokens than any text tower takes.
_PROBES = ["A Dog's (red)  ball - on: THE grass! ", "2 people", " ".join(["number"] * 600)]


def export(
    run: Path,
    kind: Kind = "hf",
    out: Path | None = None,
    head: Head = "cross",
    checkpoint: str = "best",
) -> Path:
    """Export the student of a run, with a model card.

    Args:
        run: The run directory; for ``"best"`` also a folder with a student.
        kind: ``"hf"`` (:func:`export_hf`) or ``"sentence-transformers"`` (:func:`export_sentence_transformers`).
        out: Folder to write; ``None``: ``export-hf``, ``export-sentence-transformers`` or
            ``export-sentence-transformers-uni`` in the run directory.
        head: ``"sentence-transformers"`` only: the head whose embeddings it gives.
        checkpoint: ``"best"`` or ``"last"``.

    Returns:
        The folder.

    Raises:
        CusaError: If the student cannot be loaded or exported, or the folder is not empty.
    """
    if kind not in KINDS:
        raise CusaError(f"unknown kind of export {kind!r}; legal: {', '.join(KINDS)}")
    out = out or run / (
        f"export-{kind}-uni"
        if kind == "sentence-transformers" and head == "uni"
        else f"export-{kind}"
    )
    _refuse_full(out)  # before the student is loaded
    saved = load_trained(run, checkpoint)
    metrics = _measured(run, saved.origin)
    if kind == "hf":
        export_hf(saved, out, metrics)
    else:
        export_sentence_transformers(saved, out, head, metrics)
    return out


def export_hf(saved: SavedStudent, out: Path, metrics: Mapping[str, Any] | None = None) -> None:
    """Write a folder whose backbone transformers loads, with the four heads beside it in ``heads.safetensors``.

    ``cusa.load_student`` loads all of it.

    Args:
        saved: The student, with its backbone in float32.
        out: The folder; it appears whole or not at all.
        metrics: Content of metrics.json, for the card.

    Raises:
        CusaError: If the student is an adapter, or the folder is not empty.
        OSError: If it cannot be written.
    """
    processors = _processors(saved)
    with _new_folder(out) as folder:
        saved.backbone.save_pretrained(folder)
        processors.save(folder)
        heads = {
            name: tensor for name, tensor in saved.student.state_dict().items() if "_heads." in name
        }
        save_tensors(folder / HEADS_FILE, heads, saved.origin.plain())
        write_card(folder, saved.origin, Usage("hf"), metrics)


def export_sentence_transformers(
    saved: SavedStudent, out: Path, head: Head = "cross", metrics: Mapping[str, Any] | None = None
) -> None:
    """Write a folder that ``SentenceTransformer(out)`` loads, without cusa: images and texts, one head, L2-normalised.

    The backbone, then per modality LayerNorm and Dense, then Normalize. A fast tokeniser normalises captions as the run
    did; with another one they must be normalised first, and the card says so. The folder is loaded and compared with
    the student before it takes its name.

    Args:
        saved: The student, on the CPU.
        out: The folder; it appears whole or not at all.
        head: ``"cross"``, to compare images with texts; ``"uni"``, to compare images with images or texts with texts.
        metrics: Content of metrics.json, for the card.

    Raises:
        CusaError: If the student is an adapter, its uni-modal heads were never trained but asked for, the folder is
            not empty, or sentence-transformers cannot hold this student.
        OSError: If it cannot be written.
    """
    processors = _processors(saved)
    if head not in HEADS:
        raise CusaError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
    terms = saved.origin.config.loss.terms
    if head == "uni" and "usa" not in terms:
        raise CusaError(
            f"this run trained no uni-modal heads (loss terms: {', '.join(terms)}); export head 'cross'"
        )
    with _new_folder(out) as folder:
        as_written = _save_modules(folder, saved, processors, head)
        write_card(folder, saved.origin, Usage("sentence-transformers", head, as_written), metrics)
        _compare(folder, saved, processors, head, as_written)


def _processors(saved: SavedStudent) -> Processors:
    if saved.processors is None or saved.backbone is None:
        raise CusaError(
            "an adapter has no backbone to export: it works on the embeddings of frozen encoders; use "
            "cusa.load_student(RUN), which loads those as well"
        )
    return saved.processors


class _Recalls(BaseModel):
    r1: FiniteFloat | None
    r5: FiniteFloat | None
    r10: FiniteFloat | None


class _Retrieval(BaseModel):
    i2t: _Recalls
    t2i: _Recalls
    rsum: FiniteFloat | None


class _Metrics(BaseModel):
    """What a card takes of metrics.json (docs/METRICS.md)."""

    split: str
    retrieval: _Retrieval
    dataset: str | None = None
    epoch: int | None = None
    step: int | None = None


def _measured(run: Path, origin: Origin) -> dict[str, Any] | None:
    """What cusa-eval measured with these very weights, if it did.

    Raises:
        CusaError: If its file is damaged.
    """
    path = run / "eval" / "metrics.json"
    if not path.is_file():
        return None
    try:
        metrics = read_json(path)
        measured = checked(_Metrics, metrics, "metrics")
    except CusaError as error:
        remedy = "remove it or run cusa-eval again"
        message = f"{path} is damaged ({error}); {remedy}"
        raise RunError(message, path=path, location=error.location) from None
    is_of_these = measured.epoch == origin.epoch and measured.step in (None, origin.step)
    return metrics if is_of_these else None


def _refuse_full(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CusaError(f"{out} exists and is not an empty folder; remove it or pass another --out")


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its name only if the block ends well."""
    _refuse_full(out)
    out = out.resolve()
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save_modules(folder: Path, saved: SavedStudent, processors: Processors, head: Head) -> bool:
    """Write the modules; whether their tokeniser takes texts as written."""
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import (
            Dense,
            LayerNorm,
            Normalize,
            Router,
            Transformer,
        )
    except ImportError as error:
        raise CusaError(
            f"the export needs a newer sentence-transformers ({error}); pip install -U it"
        ) from None

    def layers(heads: nn.Module) -> list[nn.Module]:
        norm, linear = heads.get_submodule(head).children()
        first = LayerNorm(linear.in_features)
        second = Dense(linear.in_features, linear.out_features, activation_function=nn.Identity())
        first.norm, second.linear = norm, linear
        return [first, second]

    transformer, as_written = _transformer(Transformer, folder, saved, processors)
    routes = {"image": layers(saved.student.image_heads), "text": layers(saved.student.text_heads)}
    mappings = {(None, modality): modality for modality in routes}
    router = Router(routes, allow_empty_key=False, route_mappings=mappings)
    model = SentenceTransformer(modules=[transformer, router, Normalize()], device="cpu")
    model.save(str(folder), create_model_card=False)
    return as_written


def _transformer(
    module: Any, folder: Path, saved: SavedStudent, processors: Processors
) -> tuple[Any, bool]:
    """The backbone as sentence-transformers' module, and whether its tokeniser takes texts as written."""
    from transformers import ProcessorMixin

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as stage:
        saved.backbone.save_pretrained(stage)
        processors.save(Path(stage))
        # SigLIP attends to its padding: no mask. The length limit is the tokeniser's, so that users can lower it.
        text = {
            "padding": processors.padding,
            "return_attention_mask": processors.padding != "max_length",
        }
        kinds = ("model_kwargs", "processor_kwargs", "config_kwargs")
        transformer = module(
            stage,
            **{kind: {"trust_remote_code": False} for kind in kinds},
            modality_config=_methods(saved.backbone, processors),
            module_output_name="sentence_embedding",
            processing_kwargs={"text": text},
        )
    transformer.model = saved.backbone  # not a second copy of it
    processor = transformer.processor
    if not isinstance(processor, ProcessorMixin):
        raise CusaError(
            f"transformers has no processor for {type(saved.backbone).__name__}; export kind 'hf'"
        )
    processor.image_processor.do_convert_rgb = True
    processor.tokenizer, as_written = _tokenizer(
        processor.tokenizer, saved.origin.config.data.normalizer
    )
    if processors.max_length is not None:
        processor.tokenizer.model_max_length = processors.max_length
    return transformer, as_written


@torch.no_grad()
def _methods(backbone: Any, processors: Processors) -> dict[str, dict[str, str | None]]:
    """How to call each tower, and where its features are: some return them, some have them in a field."""
    from PIL import Image

    inputs = {"image": {"pixel_values": processors.pixels([Image.new("RGB", (32, 32))])}}
    inputs["text"] = processors.tokens(["a"])
    found = {}
    for modality, values in inputs.items():
        method = f"get_{modality}_features"
        plain = isinstance(getattr(backbone, method)(**values), torch.Tensor)
        found[modality] = {
            "method": method,
            "method_output_name": None if plain else "pooler_output",
        }
    return found


def _tokenizer(tokenizer: Any, name: str) -> tuple[Any, bool]:
    """A tokeniser that normalises captions before it does what it always did, and whether it does."""
    if name == "none":
        return tokenizer, True
    if not tokenizer.is_fast:
        return tokenizer, False
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()  # both are set anew at every call
    backend.no_padding()
    backend.normalizer = albef_steps(backend.normalizer)
    # A class of its own, such as CLIPTokenizer, would set its own normaliser again when it is loaded.
    general = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        model_input_names=tokenizer.model_input_names,
        **tokenizer.special_tokens_map,
    )
    return general, True


def albef_steps(then: Any = None) -> Any:
    """:func:`cusa.data.captions.normalize_caption` as a normaliser of the tokenizers library.

    The two agree on every string, but that this one maps blank texts to ``""`` where the other refuses them, and that
    their tables may know different versions of Unicode. Within a tokeniser, it sees the texts between special tokens.

    Args:
        then: A normaliser that runs afterwards, if any.
    """
    from tokenizers import Regex, normalizers

    space = (
        "[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"  # Python's \s
    )
    skipped, cased = r"\p{Case_Ignorable}", r"[\p{Cased}&&[^\p{Case_Ignorable}]]"
    steps = [
        # Greek's final sigma, which depends on its neighbours: Lowercase maps character by character.
        (rf"{cased}{skipped}*\KΣ(?!{skipped}*{cased})", "ς"),
        None,
        (r"""[,.'!?"()*#:;~\-/]""", " "),
        ("<person>", "person"),
        (f"{space}{{2,}}", " "),
        (r"\n+\z", ""),
        (r"\A +| +\z", ""),
        (
            r"\A(?:[^ ]* ){63}[^ ]*\K (?m:.*)\z",
            "",
        ),  # more than 64 words; \K keeps what comes before it
    ]
    sequence = [
        normalizers.Replace(Regex(step[0]), step[1]) if step else normalizers.Lowercase()
        for step in steps
    ]
    return normalizers.Sequence([*sequence, *([then] if then is not None else [])])


@torch.no_grad()
def _compare(
    folder: Path, saved: SavedStudent, processors: Processors, head: Head, as_written: bool
) -> None:
    """Refuse a folder that gives other embeddings than the student."""
    from PIL import Image
    from sentence_transformers import SentenceTransformer

    texts = [normalizer(saved.origin.config.data.normalizer)(text) for text in _PROBES]
    images = [
        Image.linear_gradient("L").convert("RGB").rotate(90 * turn).crop((0, 0, 160, 240))
        for turn in range(3)
    ]
    model = SentenceTransformer(
        str(folder),
        device="cpu",
        local_files_only=True,
        trust_remote_code=False,
    )
    expected = (
        getattr(saved.student.encode_image(processors.pixels(images)), head),
        getattr(saved.student.encode_text(processors.tokens(texts)), head),
    )
    for inputs, features in zip((images, _PROBES if as_written else texts), expected, strict=True):
        # One by one: a batch would pad short texts to its longest, whether or not that is right.
        found = model.encode(inputs, batch_size=1, convert_to_tensor=True, show_progress_bar=False)
        error = (found - nn.functional.normalize(features, dim=-1)).abs().max().item()
        if not error <= _TOLERANCE:
            raise CusaError(
                f"sentence-transformers gives other embeddings for this student ({type(saved.backbone).__name__}, off "
                f"by {error:.2g}); export kind 'hf'"
            )
