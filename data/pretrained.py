"""Models and image processors of transformers, loaded with checks.

Nothing here runs code of a model's folder: ``trust_remote_code`` is False in every call.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cusa.data.errors import CusaError, FileFormatError
from cusa.data.image_transform import refuse_narrow
from cusa.data.parsing import read_json
from cusa.data.pickled_weights import refuse_damaged_pickles
from cusa.data.quiet import quiet_transformers

if TYPE_CHECKING:
    import torch
    from PIL import Image

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
# Libraries' messages mention this option if a model needs code of its own.
_REMOTE_CODE = "trust_remote_code"
_SETTINGS = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
)
_MAX_LAYERS = 10_000
# How model families' names for their number of layers end.
_LAYERS = re.compile(r"layers?$|depth$")


@contextmanager
def one_line_load_errors(
    description: str, source: str, error_class: type[CusaError], advice: str
) -> Iterator[None]:
    """Turn whatever a library raises while it loads a model's files into one line.

    Damaged files raise nearly anything: ``TypeError`` for a configuration with values of wrong
    types, ``pickle.UnpicklingError`` for hostile weights, panics of the tokenizers library.

    Args:
        description: What is being loaded, such as ``"vision model"``.
        source: Its folder or hub name.
        error_class: Class of the error to raise.
        advice: What the user should do.

    Raises:
        CusaError: An ``error_class``. A :class:`CusaError` of the block passes unchanged.
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
        message = f"cannot load {description} {source!r}{_reason_and_advice(error, advice)}"
        raise error_class(message, path=folder_of(source), name=source) from None


def _reason_and_advice(error: BaseException, advice: str) -> str:
    """Return the end of a message about a model that does not load."""
    library = _missing_library(error)
    if library is not None:
        return f": it needs {library}; pip install {library}"
    if _REMOTE_CODE in str(error):
        return (
            ": it needs code of its own, which is not run; use a model that transformers itself "
            "implements"
        )
    return f" ({_reason(error)}); {advice}"


def folder_of(source: str) -> Path | None:
    """Return a source's folder; ``None`` if the source is the name of a model on the hub."""
    # Unlike Path.is_dir, this does not raise on names that are too long.
    if os.path.isdir(source):
        return Path(source)
    return None


def _reason(error: BaseException) -> str:
    """Describe why a model does not load."""
    if type(error).__name__ == "UnpicklingError":
        return "its weights are a damaged pickle, or hold more than tensors, which is never loaded"
    if isinstance(error, EOFError):
        return "its weights end too early"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    n_lines = 1
    if lines and lines[0].endswith(":"):
        n_lines = 2
    message = " ".join(lines[:n_lines])
    # The messages of these say little without the class: 'path', or no attribute 'get'.
    if isinstance(error, LookupError | AttributeError | TypeError) or not message:
        return f"{type(error).__name__}: {message}"
    return message


def _missing_library(error: BaseException) -> str | None:
    """Return the library that is not installed, by transformers' long message, or ``None``."""
    text = str(error).lower()
    if not isinstance(error, ImportError) and "not found in your environment" not in text:
        return None
    for library in _LIBRARIES:
        if library in text:
            return library
    return None


def load_config(source: str) -> Any:
    """Load the configuration of a transformers model.

    Raises:
        FileFormatError: If one of a folder's settings files is not a JSON object, or asks for more
            layers than any model has.
        Exception: Whatever transformers raises for other damage.
    """
    from transformers import AutoConfig

    for name in _SETTINGS:
        path = Path(source, name)
        if path.is_file():
            _refuse_endless_layers(read_object(path), path)
    return AutoConfig.from_pretrained(source, trust_remote_code=False)


def _refuse_endless_layers(settings: Mapping[str, Any], path: Path) -> None:
    """Refuse a number of layers so large that building the model would never finish."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            _refuse_endless_layers(value, path)
        elif isinstance(value, int | float) and value > _MAX_LAYERS and _LAYERS.search(name):
            message = f"{path}: {name} is greater than {_MAX_LAYERS:,}; restore the file"
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


def load_embedding_model(source: str, pretrained: bool = True) -> tuple[Any, list[str]]:
    """Load a transformers model that computes embeddings, in float32.

    A tower's projection is loaded with it; AutoModel would leave it out, and so return features
    before the projection instead of embeddings.

    Args:
        source: Folder or hub name.
        pretrained: Whether to load weights; if not, they are random.

    Returns:
        The model, and the names of the weights that its files lack.

    Raises:
        FileFormatError: If a settings file is not a JSON object, pickled weights are damaged, or
            weights are not finite.
        Exception: Whatever transformers raises for other damage.
    """
    import torch

    config = load_config(source)
    # Masked autoencoders drop most patches at random, even in eval mode.
    if hasattr(config, "mask_ratio"):
        config.mask_ratio = 0.0

    model_class = _embedding_class(config)
    if not pretrained:
        return _random_model(model_class, config), []
    refuse_damaged_pickles(Path(source))
    # float32, whatever the checkpoint's dtype: stores record the precision, and autocast needs it.
    with quiet_transformers():
        model, report = model_class.from_pretrained(
            source,
            config=config,
            output_loading_info=True,
            dtype=torch.float32,
            trust_remote_code=False,
        )
    refuse_not_finite(model, source)
    return model, sorted(report["missing_keys"])


def _embedding_class(config: Any) -> Any:
    """Return the class of transformers that computes the embeddings of a configuration's model."""
    import transformers

    model_class: Any = transformers.AutoModel
    suffixes: tuple[str, ...] = ("WithProjection",)
    if type(config) not in transformers.MODEL_MAPPING:
        suffixes = ("WithProjection", "Model")  # such as SiglipTextModel
    for architecture in getattr(config, "architectures", None) or ():
        if isinstance(architecture, str) and architecture.endswith(suffixes):
            model_class = getattr(transformers, architecture, model_class)
    return model_class


def _random_model(model_class: Any, config: Any) -> Any:
    """Make a model with random weights, in float32."""
    import torch
    import transformers

    if model_class is transformers.AutoModel:
        return model_class.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return model_class(config)


def refuse_not_finite(model: torch.nn.Module, source: str) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        FileFormatError: Names the first such weight.
    """
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.isfinite().all():
            message = f"{source!r}: its weights hold NaN or infinity, {name} the first; use others"
            raise FileFormatError(message, path=folder_of(source), name=name)


def lacking(source: str, missing: Sequence[str]) -> str:
    """Return an error's message about missing weights, of which there is at least one."""
    keys = f"{missing[0]} and {len(missing) - 1} more"
    return f"{source!r}: its weights lack {keys}; use complete ones"


def load_image_processor(source: str) -> Any:
    """Load the image processor of a transformers model, the one with Pillow if there is one.

    So no embedding depends on whether torchvision is installed.
    """
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(source, trust_remote_code=False, backend="pil")


def processed(processor: Any, images: Sequence[Image.Image]) -> dict[str, Any]:
    """Preprocess images of any mode with an image processor of transformers.

    Returns:
        Arrays by input name, such as ``pixel_values``: float ``[n, 3, height, width]``.

    Raises:
        ImageError: If an image is too narrow to be resized.
    """
    size = getattr(processor, "size", None) or {}
    shorter_side = size
    if hasattr(size, "get"):
        shorter_side = size.get("shortest_edge")
    if isinstance(shorter_side, int) and getattr(processor, "do_resize", True):
        for image in images:
            refuse_narrow(image, shorter_side)
    rgb_images = [image.convert("RGB") for image in images]
    return dict(processor(images=rgb_images, return_tensors="np"))
