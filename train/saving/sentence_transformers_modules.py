"""A student as modules that sentence-transformers loads without cusa."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cusa.data.captions import normalizer
from cusa.data.embeddings import Head
from cusa.data.errors import StudentError
from cusa.train.saving.probes import PROBE_CAPTIONS, check_embeddings, probe_images
from cusa.train.saving.student_folder import SavedStudent


def save_modules(
    folder: Path,
    saved_student: SavedStudent,
    head: Head,
) -> bool:
    """Write the modules of a student and one of its heads.

    Args:
        folder: Where to write them.
        saved_student: The student, a dual encoder.
        head: The head.

    Returns:
        Whether their tokeniser takes texts as written, that is, normalises captions itself.

    Raises:
        StudentError: If the installed sentence-transformers lacks these modules, or transformers
            has no processor for this backbone.
    """
    try:
        from sentence_transformers.sentence_transformer.modules import Transformer
    except ImportError as error:
        problem = f"the export needs a newer sentence-transformers ({error})"
        raise StudentError(f"{problem}; pip install -U sentence-transformers") from None

    transformer, as_written = _transformer(Transformer, folder, saved_student)
    student = saved_student.student
    routes = {
        "image": head_modules(student.image_heads.get_submodule(head)),
        "text": head_modules(student.text_heads.get_submodule(head)),
    }
    model = routed_model([transformer], routes)
    model.save(str(folder), create_model_card=False)
    return as_written


def routed_model(modules: list[Any], routes: Mapping[Any, list[Any]]) -> Any:
    """Make a model of some modules, then those of an input's modality, then a Normalize.

    Args:
        modules: Modules for all inputs.
        routes: Modules by modality.

    Returns:
        A ``SentenceTransformer`` on the CPU, in eval mode.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Router

    # Route by modality only, whatever the task.
    mappings = {(None, modality): modality for modality in routes}
    router = Router(routes, allow_empty_key=False, route_mappings=mappings)
    all_modules = [*modules, router, Normalize()]
    return SentenceTransformer(modules=all_modules, device="cpu").eval()


def head_modules(head: nn.Module) -> list[nn.Module]:
    """Make sentence-transformers' modules of a head's LayerNorm and Linear."""
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
) -> tuple[Any, bool]:
    """Make sentence-transformers' module of the backbone, and say if it takes texts as written."""
    from transformers import ProcessorMixin

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as stage:
        saved_student.backbone.save_pretrained(stage)
        saved_student.towers.save(Path(stage))
        # SigLIP attends to its padding, so it gets no mask. The length limit is set on the
        # tokeniser below, where users can lower it.
        tokenization = saved_student.towers.text.preparation
        padding = tokenization.padding
        text_settings = {"padding": padding, "return_attention_mask": padding != "max_length"}
        transformer = module(
            stage,
            model_kwargs={"trust_remote_code": False},
            processor_kwargs={"trust_remote_code": False},
            config_kwargs={"trust_remote_code": False},
            modality_config=_tower_methods(saved_student),
            module_output_name="sentence_embedding",
            processing_kwargs={"text": text_settings},
        )
    transformer.model = saved_student.backbone  # drop the second copy
    processor = transformer.processor
    if not isinstance(processor, ProcessorMixin):
        name = type(saved_student.backbone).__name__
        raise StudentError(f"transformers has no processor for {name}; export kind 'hf'", name=name)
    processor.image_processor.do_convert_rgb = True
    normalizer_name = saved_student.origin.config.data.normalizer
    processor.tokenizer, as_written = with_normalizer(processor.tokenizer, normalizer_name)
    if tokenization.max_length is not None:
        processor.tokenizer.model_max_length = tokenization.max_length
    return transformer, as_written


@torch.no_grad()
def _tower_methods(saved_student: SavedStudent) -> dict[str, dict[str, str | None]]:
    """Return, by modality, the method to call and the field of its output; ``None``: a tensor."""
    from PIL import Image

    image, text = saved_student.towers
    picture = Image.new("RGB", (32, 32))
    inputs = {
        "image": {"pixel_values": image.preparation.pixels([picture])},
        "text": text.preparation.tokens(["a"]),
    }
    methods = {}
    for modality, modality_inputs in inputs.items():
        method_name = f"get_{modality}_features"
        encode = getattr(saved_student.backbone, method_name)
        output_field: str | None = "pooler_output"
        if isinstance(encode(**modality_inputs), torch.Tensor):
            output_field = None
        methods[modality] = {"method": method_name, "method_output_name": output_field}
    return methods


def with_normalizer(tokenizer: Any, normalizer_name: str) -> tuple[Any, bool]:
    """Prepend a caption normaliser to a tokeniser.

    Args:
        tokenizer: The tokeniser.
        normalizer_name: ``"albef"`` or ``"none"``.

    Returns:
        The tokeniser, and whether it takes texts as written; a slow one cannot be changed.
    """
    if normalizer_name == "none":
        return tokenizer, True
    if not getattr(tokenizer, "is_fast", False):
        return tokenizer, False
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()  # transformers sets truncation and padding at every call
    backend.no_padding()
    backend.normalizer = albef_steps(backend.normalizer)
    # A model's own class, such as CLIPTokenizer, would replace the normaliser when it is loaded.
    general = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        model_input_names=tokenizer.model_input_names,
        **tokenizer.special_tokens_map,
    )
    return general, True


def albef_steps(then: Any = None) -> Any:
    """Express :func:`cusa.data.captions.normalize_caption` as a normaliser of ``tokenizers``.

    The two agree on every string with two exceptions: this one maps blank texts to ``""``, which
    the other refuses, and the two may follow different versions of Unicode. Within a tokeniser, it
    is applied to the texts between special tokens.

    Args:
        then: A normaliser to run afterwards, if any.

    Returns:
        A ``tokenizers.normalizers.Sequence``.
    """
    from tokenizers import Regex, normalizers

    # The characters that Python's \s matches.
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
        # Lowercase maps each character by itself, but the Greek final sigma depends on its
        # neighbours.
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
    head: Head,
    as_written: bool,
) -> None:
    """Refuse a folder whose embeddings differ from the student's.

    Args:
        folder: The folder.
        saved_student: The student, a dual encoder.
        head: The head of the folder.
        as_written: Whether the folder's tokeniser takes texts as written.

    Raises:
        StudentError: If an embedding differs by more than rounding.
    """
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, trust_remote_code=False
    )
    normalize = normalizer(saved_student.origin.config.data.normalizer)
    captions = list(map(normalize, PROBE_CAPTIONS))
    student = saved_student.student
    towers = saved_student.towers
    images = probe_images()
    image_features = student.encode_image(towers.image.preparation.pixels(images))
    text_features = student.encode_text(towers.text.preparation.tokens(captions))
    texts = captions
    if as_written:
        texts = PROBE_CAPTIONS
    probes = []
    for inputs, features in ((images, image_features), (texts, text_features)):
        head_features = getattr(features, head)
        embeddings = nn.functional.normalize(head_features)
        probes.append((inputs, embeddings))
    check_embeddings(model, probes, type(saved_student.backbone).__name__)
