"""CUSA: cross-modal and uni-modal soft-label alignment for image-text retrieval.

The public names live in the rooms (``cusa.data``, ``cusa.precompute``, ``cusa.train``,
``cusa.eval``) and load on first use, so that ``import cusa`` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cusa.data.captions import normalize_caption
    from cusa.data.datasets import load_dataset
    from cusa.data.errors import CusaError
    from cusa.data.records import Dataset, Record
    from cusa.data.store.reader import EmbeddingStore
    from cusa.eval.evaluators.retrieval.measure import cross_modal_recalls, uni_modal_recalls
    from cusa.eval.metrics.by_class import image_retrieval
    from cusa.eval.models.any_model import load_encoder
    from cusa.eval.models.protocols import Encoder
    from cusa.eval.models.student import StudentEncoder, load_student
    from cusa.train.gradient_cache import encode_in_micro_batches
    from cusa.train.loss.config import LossConfig, Temperature, TemperaturePair
    from cusa.train.loss.cusa_loss import CUSALoss
    from cusa.train.loss.functions import (
        contrastive_loss,
        fuse_similarities,
        soft_label_loss,
        soft_labels,
    )
    from cusa.train.loss.matching import hard_negatives, matching_loss, matching_targets

# The module that each public name is loaded from.
_HOME = {
    "normalize_caption": "cusa.data.captions",
    "load_dataset": "cusa.data.datasets",
    "CusaError": "cusa.data.errors",
    "Dataset": "cusa.data.records",
    "Record": "cusa.data.records",
    "EmbeddingStore": "cusa.data.store.reader",
    "image_retrieval": "cusa.eval.metrics.by_class",
    "cross_modal_recalls": "cusa.eval.evaluators.retrieval.measure",
    "uni_modal_recalls": "cusa.eval.evaluators.retrieval.measure",
    "StudentEncoder": "cusa.eval.models.student",
    "load_student": "cusa.eval.models.student",
    "Encoder": "cusa.eval.models.protocols",
    "load_encoder": "cusa.eval.models.any_model",
    "CUSALoss": "cusa.train.loss.cusa_loss",
    "LossConfig": "cusa.train.loss.config",
    "Temperature": "cusa.train.loss.config",
    "TemperaturePair": "cusa.train.loss.config",
    "fuse_similarities": "cusa.train.loss.functions",
    "contrastive_loss": "cusa.train.loss.functions",
    "soft_label_loss": "cusa.train.loss.functions",
    "soft_labels": "cusa.train.loss.functions",
    "hard_negatives": "cusa.train.loss.matching",
    "matching_loss": "cusa.train.loss.matching",
    "matching_targets": "cusa.train.loss.matching",
    "encode_in_micro_batches": "cusa.train.gradient_cache",
}

__all__ = [
    "CUSALoss",
    "CusaError",
    "Dataset",
    "EmbeddingStore",
    "Encoder",
    "LossConfig",
    "Record",
    "StudentEncoder",
    "Temperature",
    "TemperaturePair",
    "contrastive_loss",
    "cross_modal_recalls",
    "encode_in_micro_batches",
    "fuse_similarities",
    "hard_negatives",
    "image_retrieval",
    "load_dataset",
    "load_encoder",
    "load_student",
    "matching_loss",
    "matching_targets",
    "normalize_caption",
    "soft_label_loss",
    "soft_labels",
    "uni_modal_recalls",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cusa' has no attribute {name!r}")
    module = importlib.import_module(_HOME[name])
    value = getattr(module, name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
