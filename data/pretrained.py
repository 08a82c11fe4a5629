"""What teachers and students load by transformers, with checks.

Nothing here runs code of a model's folder: ``trust_remote_code`` is False in every call.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cusa.data.errors import CusaError, FileFormatError, first_line
from cusa.data.images import refuse_narrow
from cusa.data.parsing import read_json

if TYPE_CHECKING:
    import torch
    from PIL import Image

# Entries of a vocabulary besides special tokens; the ones that transformers makes up have 0 or 1.
_FEWEST_ENTRIES = 2
_HIGHEST_ENTRY = 10_000_000  # the largest vocabularies have a million
_LIBRARIES = (
    "torchvision",
    "timm",
    "sentencepiece",
    "tiktoken",
    "protobuf",
    "sacremoses",
    "peft",
    "librosa",
)
_REMOTE_CODE = "trust_remote_code"  # what libraries advise where a model needs code of its own
UNLIMITED = 10**9  # tokenisers without a limit say 1e30
_SETTINGS = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
)
_MOST_LAYERS = 10_000
_LAYERS = re.compile(r"layers?$|depth$")  # the ends of what model families call their number
_POSITION_TABLES = (
    "position_embedding",
    "position_embeddings",
    "embed_positions",
    "wpe",
    "positional_embedding",
)


@contextmanager
def one_line_load_errors(
    description: str,
    source: str,
    error_class: type[CusaError],
    advice: str,
) -> Iterator[None]:
    """Turn whatever a library raises while it loads a model's files into one line.

    Damaged files raise nearly anything: ``TypeError`` from a configuration of other types,
    ``pickle.UnpicklingError`` from hostile weights, panics of the tokenizers library.

    Args:
        description: What is being loaded, such as ``"vision model"``.
        source: Its folder or hub name.
        error_class: Class of the error.
        advice: What to do.

    Raises:
        CusaError: Of ``error_class``. A :class:`CusaError` of the block passes as it is.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # the error tells enough
            yield
    except CusaError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        library = _missing_library(error)
        if library is not None:
            advice = f"pip install {library}"
            message = f"cannot load {description} {source!r}: it needs {library}; {advice}"
        elif _REMOTE_CODE in str(error):
            problem = "it needs code of its own, which is not run"
            advice = "use a model that transformers itself has the code of"
            message = f"cannot load {description} {source!r}: {problem}; {advice}"
        else:
            message = f"cannot load {description} {source!r} ({_reason(error)}); {advice}"
        path = Path(source) if os.path.isdir(source) else None
        raise error_class(message, path=path, name=source) from None


def _reason(error: BaseException) -> str:
    """Why a model does not load."""
    if type(error).__name__ == "UnpicklingError":
        return "its weights are a damaged pickle, or one of other things than tensors, never loaded"
    if isinstance(error, EOFError):
        return "its weights end too early"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    # Their message alone tells little: 'path', or 'list' object has no attribute 'get'.
    is_bare = isinstance(error, LookupError | AttributeError | TypeError) or not message
    return f"{type(error).__name__}: {message}" if is_bare else message


def _missing_library(error: BaseException) -> str | None:
    """The library that is not installed; transformers tells it in a paragraph."""
    text = str(error).lower()
    is_missing = isinstance(error, ImportError) or "not found in your environment" in text
    return next((library for library in _LIBRARIES if is_missing and library in text), None)


def load_config(source: str) -> Any:
    """The configuration of a transformers model.

    Raises:
        FileFormatError: If one of a folder's files of settings is no JSON object, or asks for
            more layers than any model has.
    """
    from transformers import AutoConfig

    for name in _SETTINGS:
        path = Path(source, name)
        if path.is_file():
            _refuse_endless_layers(read_object(path), path)
    return AutoConfig.from_pretrained(source, trust_remote_code=False)


def _refuse_endless_layers(settings: Mapping[str, Any], path: Path) -> None:
    """Refuse numbers of layers that would be built until memory or patience ends."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            _refuse_endless_layers(value, path)
        elif isinstance(value, int | float) and value > _MOST_LAYERS and _LAYERS.search(name):
            message = f"{path}: {name} is greater than {_MOST_LAYERS:,}; restore the file"
            raise FileFormatError(message, path=path, location=name)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        FileFormatError: If it cannot be read, or holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        message = f"{path} holds a JSON {type(content).__name__}, not an object; download it again"
        raise FileFormatError(message, path=path)
    return content


def refuse_damaged_pickles(folder: Path) -> None:
    """Refuse pickled weights whose archive is damaged, or compressed as torch.save does not.

    transformers maps these files into memory: it would take the compressed bytes for weights, and
    looks at no checksum.

    Args:
        folder: A model's folder; those below it are looked at, too. Where there is none, nothing is.

    Raises:
        FileFormatError: Names the file.
    """
    for path in sorted(folder.rglob("*.bin")):
        if zipfile.is_zipfile(path) and (problem := _archive_fault(path)):
            message = (
                f"{path} is damaged ({problem}); download it again, or write it with torch.save"
            )
            raise FileFormatError(message, path=path)


def _archive_fault(path: Path) -> str:
    """What is wrong with an archive of weights; empty if nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    return f"{member.filename} is compressed"
            torn = archive.testzip()
    except Exception as error:  # zipfile raises a dozen things
        return first_line(error)
    return "" if torn is None else f"the checksum of {torn} differs"


def load_embedding_model(source: str) -> tuple[Any, list[str]]:
    """A transformers model that gives embeddings, in float32, and what its weights lack.

    Towers with a projection keep it: AutoModel would leave it out, and give another output than the
    embedding.

    Raises:
        FileFormatError: If a file of settings is no JSON object, pickled weights are damaged, or
            weights are not finite.
        Exception: Whatever transformers raises for other damage.
    """
    import torch
    import transformers

    config = load_config(source)
    refuse_damaged_pickles(Path(source))
    if hasattr(config, "mask_ratio"):
        config.mask_ratio = 0.0  # masked autoencoders hide most patches at random, in eval mode too
    model_class: Any = transformers.AutoModel
    is_known = type(config) in transformers.MODEL_MAPPING
    for architecture in getattr(config, "architectures", None) or ():
        suffix = "WithProjection" if is_known else ("WithProjection", "Model")  # SiglipTextModel
        if isinstance(architecture, str) and architecture.endswith(suffix):
            model_class = getattr(transformers, architecture, model_class)
    # float32 whatever the checkpoint's dtype: stores record the precision, and autocast needs it.
    model, report = model_class.from_pretrained(
        source,
        config=config,
        output_loading_info=True,
        dtype=torch.float32,
        trust_remote_code=False,
    )
    refuse_not_finite(model, source)
    return model, sorted(report["missing_keys"])


def refuse_not_finite(model: torch.nn.Module, source: str) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        FileFormatError: Names the first that does.
    """
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.isfinite().all():
            path = Path(source) if Path(source).is_dir() else None
            message = f"{source!r}: its weights hold NaN or infinity, {name} the first; use others"
            raise FileFormatError(message, path=path, name=name)


def lacking(source: str, missing: Sequence[str]) -> str:
    """The message of an error about weights that are missing, of which there is at least one."""
    keys = f"{missing[0]} and {len(missing) - 1} more"
    return f"{source!r}: its weights lack {keys}; use complete ones"


# --- images


def load_image_processor(source: str) -> Any:
    """The image processor of a transformers model: Pillow's, if it has one.

    So no row depends on whether torchvision is installed.
    """
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(source, trust_remote_code=False, backend="pil")


def processed(processor: Any, images: Sequence[Image.Image]) -> dict[str, Any]:
    """What an image processor makes of images, as numpy arrays by the name of the model's input.

    Raises:
        ImageError: If an image is too narrow to be resized.
    """
    size = getattr(processor, "size", None) or {}
    shorter_side = size.get("shortest_edge") if hasattr(size, "get") else size
    for image in images:
        if isinstance(shorter_side, int) and getattr(processor, "do_resize", True):
            refuse_narrow(image, shorter_side)
    return dict(processor(images=[image.convert("RGB") for image in images], return_tensors="np"))


# --- texts


def load_tokenizer(source: str, error_class: type[CusaError]) -> Any:
    """The tokeniser of a transformers model, fit for padded batches.

    Raises:
        CusaError: Of ``error_class``, if it has no vocabulary, or no token to pad with.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    prepare_tokenizer(tokenizer, source, error_class)
    return tokenizer


def prepare_tokenizer(tokenizer: Any, source: str, error_class: type[CusaError]) -> None:
    """Check a tokeniser, and let its end token pad where it has no token of its own for that.

    Args:
        tokenizer: One of transformers.
        source: Folder or hub name of the model.
        error_class: Class of the error.

    Raises:
        CusaError: Of ``error_class``, if it has no vocabulary, an impossible one, or no token to
            pad with.
    """
    path = Path(source) if os.path.isdir(source) else None
    special = set(tokenizer.all_special_ids)
    numbers = set(tokenizer.get_vocab().values())
    if max(numbers, default=0) > _HIGHEST_ENTRY:  # the library would list all numbers below it
        message = (
            f"the vocabulary of {source!r} numbers a token {max(numbers):,}; its tokenizer.json is "
            "damaged, download it again"
        )
        raise error_class(message, path=path, name=source)
    ordinary = numbers - special
    if len(ordinary) < _FEWEST_ENTRIES:
        # transformers makes one up where a folder has none: all texts look alike to it.
        message = (
            f"{source!r} has no tokeniser: the vocabulary holds special tokens only; add "
            "tokenizer.json (or the files of the model's own tokeniser) to its folder"
        )
        raise error_class(message, path=path, name=source)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            message = (
                f"the tokeniser of {source!r} has neither a padding nor an end token; set "
                "pad_token in tokenizer_config.json"
            )
            raise error_class(message, path=path, name=source)
        tokenizer.pad_token = tokenizer.eos_token  # the attention mask hides it


def position_limit(model: torch.nn.Module) -> int | None:
    """Most tokens that a text model has positions for; ``None`` if its positions are no table.

    RoBERTa and its relatives count positions from ``padding_idx + 1``: a table of 514 holds 512.
    """
    from torch import nn

    limits = []
    for name, module in model.named_modules():
        is_of_images = "vision" in name or "image" in name or "visual" in name
        is_table = name.rpartition(".")[2] in _POSITION_TABLES and isinstance(module, nn.Embedding)
        if is_table and not is_of_images:
            padding = module.padding_idx
            unused = padding + 1 if padding is not None else getattr(module, "offset", 0)
            limits.append(module.num_embeddings - unused)
    return min(limits, default=None)


def token_limit(tokenizer: Any, text_model: Any) -> int | None:
    """Most tokens of a text, special ones included; ``None`` if there is no limit."""
    positions = position_limit(text_model)
    if positions is None:  # such as rotary ones: the configuration tells how many it was trained on
        positions = getattr(text_model.config, "max_position_embeddings", None)
    limits = [tokenizer.model_max_length, positions]
    known = [limit for limit in limits if limit is not None and 0 < limit < UNLIMITED]
    return min(known, default=None)


def text_padding(model_type: str) -> str:
    """How a model's texts are padded: SigLIP was trained on full length, and attends to padding."""
    return "max_length" if model_type.startswith("siglip") else "longest"


def tokenized(
    tokenizer: Any,
    texts: list[str],
    limit: int | None,
    padding: str,
) -> dict[str, torch.Tensor]:
    """int64 ``[n, length]`` by the name of the model's input.

    Args:
        tokenizer: One of transformers, with a padding token.
        texts: The texts.
        limit: Tokens that longer texts are cut to; ``None``: none is cut.
        padding: As :func:`text_padding` tells.
    """
    batch = tokenizer(
        texts,
        padding=padding,
        truncation=limit is not None,
        max_length=limit,
        return_tensors="pt",
        verbose=False,
    )
    names = ("input_ids",) if padding == "max_length" else ("input_ids", "attention_mask")
    return {name: batch[name] for name in names if name in batch}
