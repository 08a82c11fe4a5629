"""The files in a sentence-transformers model's folder: checks, and a folder without weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cusa.data.errors import WEIGHTS, CusaError, FileFormatError
from cusa.data.parsing import read_json
from cusa.data.pretrained import lacking
from cusa.data.quiet import quiet_transformers

_OWN_NAMESPACE = "sentence_transformers."


def module_path(folder: Path, number: int) -> str:
    """Return the path of a module's files relative to the model's folder.

    Raises:
        FileFormatError: If ``modules.json`` cannot be read.
    """
    path = folder / "modules.json"
    modules = []
    if path.is_file():
        modules = read_json(path)
    if number >= len(modules):
        return ""
    return str(modules[number]["path"])


def save_without_weights(
    model: Any,
    folder: Path,
) -> None:
    """Write a ``SentenceTransformer`` without the weights of its transformers models.

    The library makes no model without a file of weights, but it makes one with a file of no
    tensors, whose missing weights it draws at random.

    Args:
        model: The model, without LoRA adapters.
        folder: The folder.

    Raises:
        OSError: If it cannot be written.
    """
    from safetensors.torch import save

    no_tensors = save({}, {"format": "pt"})
    with quiet_transformers():
        model.save(str(folder), create_model_card=False)
    for number, module in enumerate(model):
        if not hasattr(module, "auto_model"):
            continue
        module_folder = folder / module_path(folder, number)
        weight_files = list(module_folder.glob("model*.safetensors*"))
        for path in weight_files:
            path.unlink()
        if weight_files:  # there are none if the model is itself an adapter of peft
            (module_folder / "model.safetensors").write_bytes(no_tensors)


def refuse_own_code(folder: Path, error_class: type[CusaError]) -> None:
    """Refuse modules of other packages, which older versions of sentence-transformers load.

    Raises:
        CusaError: An ``error_class``, if a module's class is not one of sentence-transformers.
        FileFormatError: If the list of modules cannot be read.
    """
    for path in (folder / "modules.json", *folder.glob("*/router_config.json")):
        if not path.is_file():
            continue
        for reference in _module_types(path):
            if reference.startswith(_OWN_NAMESPACE):
                continue
            message = (
                f"{folder} needs code of its own ({reference}), which is not run; use a model "
                "of sentence-transformers' own modules"
            )
            raise error_class(message, path=path, name=reference)


def _module_types(path: Path) -> Iterator[str]:
    """Yield the class names in a ``modules.json`` or ``router_config.json``."""
    content = read_json(path)
    names: list[Any] = []
    if path.name == "modules.json":
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            raise FileFormatError(f"{path} is not a list of modules; download it again", path=path)
        names = [entry.get("type") for entry in content]
    elif isinstance(content, dict):
        names = list((content.get("types") or {}).values())

    for name in names:
        if not isinstance(name, str):
            message = f"{path} has a module without the name of its class; download it again"
            raise FileFormatError(message, path=path)
        yield name


def refuse_missing_weights(
    model: Any,
    folder: Path,
    source: str,
    error_class: type[CusaError],
) -> None:
    """Refuse a model some of whose weights are missing, and so initialised at random.

    Raises:
        CusaError: An ``error_class``, which names a missing weight.
    """
    from transformers.utils import is_accelerate_available

    if (folder / "adapter_config.json").is_file():
        return
    # sentence-transformers does not pass on transformers' report, so load once more; on the device
    # "meta", no weight is read.
    device = {}
    if is_accelerate_available():
        device = {"device_map": "meta"}
    with quiet_transformers():
        _, report = type(model).from_pretrained(
            folder,
            config=model.config,
            output_loading_info=True,
            trust_remote_code=False,
            **device,
        )
    # sentence-transformers pools the tokens itself and does not use the model's pooler.
    missing = [key for key in report["missing_keys"] if "pooler" not in key.split(".")]
    if missing:
        message = lacking(source, sorted(missing))
        raise error_class(message, path=folder, location=WEIGHTS, name=source)
