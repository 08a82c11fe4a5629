"""The modules of a student as sentence-transformers loads them, without cusa."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cusa.data.captions import normalizer
from cusa.data.embeddings import Head
from cusa.data.errors import StudentError
from cusa.train.saving.student_folder import SavedStudent
from cusa.train.student import Processors

# An export whose embeddings are off by more than this is no copy of the student; rounding stays
# far below.
_TOLERANCE = 1e-4
# Words, case, punctuation, blanks, and more tokens than any text tower takes.
_PROBE_CAPTIONS = ["A Dog's (red)  ball - on: THE grass! ", "2 people", " ".join(["number"] * 600)]


def save_modules(
    folder: Path,
    saved_student: SavedStudent,
    processors: Processors,
    head: Head,
) -> bool:
    """Write the modules; tell whether their tokeniser takes texts as written."""
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import (
            Normalize,
            Router,
            Transformer,
        )
    except ImportError as error:
        problem = f"the export needs a newer sentence-transformers ({error})"
        raise StudentError(f"{problem}; pip install -U sentence-transformers") from None

    transformer, as_written = _transformer(Transformer, folder, saved_student, processors)
    student = saved_student.student
    routes = {
        "image": _head_modules(student.image_heads.get_submodule(head)),
        "text": _head_modules(student.text_heads.get_submodule(head)),
    }
    # By modality alone, whatever the task.
    mappings = {(None, modality): modality for modality in routes}
    router = Router(routes, allow_empty_key=False, route_mappings=mappings)
    model = SentenceTransformer(modules=[transformer, router, Normalize()], device="cpu")
    model.save(str(folder), create_model_card=False)
    return as_written


def _head_modules(head: nn.Module) -> list[nn.Module]:
    """Make sentence-transformers' modules of a head: LayerNorm, then Linear."""
    from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm

    norm, linear = head.children()
    size = linear.in_features
    norm_module = LayerNorm(size)
    dense_module = Dense(size, linear.out_features, activation_function=nn.Identity())
    norm_module.norm = norm
    dense_module.linear = linear
    return [norm_module, dense_module]


def _transformer(
    module: Any,
    folder: Path,
    saved_student: SavedStudent,
    processors: Processors,
) -> tuple[Any, bool]:
    """Make sentence-transformers' module of the backbone.

    Returns:
        The module, and whether its tokeniser takes texts as written.
    """
    from transformers import ProcessorMixin

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as stage:
        saved_student.backbone.save_pretrained(stage)
        processors.save(Path(stage))
        # SigLIP attends to its padding: no mask. The length limit is the tokeniser's, so that users
        # can lower it.
        padding = processors.padding
        text_settings = {"padding": padding, "return_attention_mask": padding != "max_length"}
        transformer = module(
            stage,
            model_kwargs={"trust_remote_code": False},
            processor_kwargs={"trust_remote_code": False},
            config_kwargs={"trust_remote_code": False},
            modality_config=_tower_methods(saved_student.backbone, processors),
            module_output_name="sentence_embedding",
            processing_kwargs={"text": text_settings},
        )
    transformer.model = saved_student.backbone  # not a second copy of it
    processor = transformer.processor
    if not isinstance(processor, ProcessorMixin):
        name = type(saved_student.backbone).__name__
        raise StudentError(f"transformers has no processor for {name}; export kind 'hf'", name=name)
    processor.image_processor.do_convert_rgb = True
    normalizer_name = saved_student.origin.config.data.normalizer
    processor.tokenizer, as_written = _tokenizer(processor.tokenizer, normalizer_name)
    if processors.max_length is not None:
        processor.tokenizer.model_max_length = processors.max_length
    return transformer, as_written


@torch.no_grad()
def _tower_methods(
    backbone: Any,
    processors: Processors,
) -> dict[str, dict[str, str | None]]:
    """Say how to call each tower, and in which field its features are; some return them bare."""
    from PIL import Image

    pixels = processors.pixels([Image.new("RGB", (32, 32))])
    inputs = {"image": {"pixel_values": pixels}, "text": processors.tokens(["a"])}
    methods = {}
    for modality, values in inputs.items():
        method = f"get_{modality}_features"
        output = getattr(backbone, method)(**values)
        field = None if isinstance(output, torch.Tensor) else "pooler_output"
        methods[modality] = {"method": method, "method_output_name": field}
    return methods


def _tokenizer(tokenizer: Any, normalizer_name: str) -> tuple[Any, bool]:
    """Make a tokeniser that normalises captions before it does what it always did.

    Returns:
        The tokeniser, and whether it takes texts as written: a slow one stays as it is.
    """
    if normalizer_name == "none":
        return tokenizer, True
    if not tokenizer.is_fast:
        return tokenizer, False
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()  # both are set anew at every call
    backend.no_padding()
    backend.normalizer = albef_steps(backend.normalizer)
    # A class of its own, such as CLIPTokenizer, would set its own normaliser again when it is
    # loaded.
    general = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        model_input_names=tokenizer.model_input_names,
        **tokenizer.special_tokens_map,
    )
    return general, True


def albef_steps(then: Any = None) -> Any:
    """Make :func:`cusa.data.captions.normalize_caption` a normaliser of the tokenizers library.

    The two agree on every string, but that this one maps blank texts to ``""`` where the other
    refuses them, and that their tables may know different versions of Unicode. Within a tokeniser,
    it sees the texts between special tokens.

    Args:
        then: A normaliser that runs afterwards, if any.
    """
    from tokenizers import Regex, normalizers

    # Python's \s
    space = "[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
    skipped = r"\p{Case_Ignorable}"
    cased = r"[\p{Cased}&&[^\p{Case_Ignorable}]]"
    more_than_64_words = r"\A(?:[^ ]* ){63}[^ ]*\K (?m:.*)\z"  # \K keeps what comes before it
    replacements = [
        (r"""[,.'!?"()*#:;~\-/]""", " "),
        ("<person>", "person"),
        (f"{space}{{2,}}", " "),
        (r"\n+\z", ""),
        (r"\A +| +\z", ""),
        (more_than_64_words, ""),
    ]
    steps = [
        # Greek's final sigma depends on its neighbours; Lowercase maps character by character.
        normalizers.Replace(Regex(rf"{cased}{skipped}*\KΣ(?!{skipped}*{cased})"), "ς"),
        normalizers.Lowercase(),
    ]
    for pattern, replacement in replacements:
        steps.append(normalizers.Replace(Regex(pattern), replacement))
    if then is not None:
        steps.append(then)
    return normalizers.Sequence(steps)


@torch.no_grad()
def compare_embeddings(
    folder: Path,
    saved_student: SavedStudent,
    processors: Processors,
    head: Head,
    as_written: bool,
) -> None:
    """Refuse a folder that gives other embeddings than the student."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(folder),
        device="cpu",
        local_files_only=True,
        trust_remote_code=False,
    )
    images = _probe_images()
    normalize = normalizer(saved_student.origin.config.data.normalizer)
    captions = list(map(normalize, _PROBE_CAPTIONS))
    image_features = saved_student.student.encode_image(processors.pixels(images))
    text_features = saved_student.student.encode_text(processors.tokens(captions))
    probes = [
        (images, getattr(image_features, head)),
        (_PROBE_CAPTIONS if as_written else captions, getattr(text_features, head)),
    ]
    for inputs, features in probes:
        # One by one: a batch would pad short texts to its longest, whether or not that is right.
        embeddings = model.encode(
            inputs,
            batch_size=1,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        expected = nn.functional.normalize(features, dim=-1)
        error = (embeddings - expected).abs().max().item()
        if not error <= _TOLERANCE:  # NaN is neither
            name = type(saved_student.backbone).__name__
            raise StudentError(
                f"sentence-transformers gives other embeddings for this student ({name}, off by "
                f"{error:.2g}); export kind 'hf'",
                name=name,
            )


def _probe_images() -> list[Any]:
    """Make images that are not square, from dark to bright in different directions."""
    from PIL import Image

    gradient = Image.linear_gradient("L").convert("RGB")
    return [gradient.rotate(angle).crop((0, 0, 160, 240)) for angle in (0, 90, 180)]
