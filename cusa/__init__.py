"""CUSA: cross-modal and uni-modal soft-label alignment for image-text retrieval.

The public names live in the rooms (``cusa.data``, ``cusa.precompute``, ``cusa.train``, ``cusa.eval``) and load on
first use, so that ``import cusa`` stays cheap.
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
    from cusa.data.store import EmbeddingStore
    from cusa.eval.encoder import StudentEncoder, load_student
    from cusa.eval.images import image_retrieval
    from cusa.eval.models import Encoder, load_encoder
    from cusa.eval.retrieval import cross_modal_recalls, uni_modal_recalls
    from cusa.train.losses import (
        CUSALoss,
        LossConfig,
        Temperature,
        TemperaturePair,
        contrastive_loss,
        fuse_similarities,
        soft_label_loss,
        soft_labels,
    )
    from cusa.train.matching import hard_negatives, matching_loss, matching_targets
    from cusa.train.micro_batches import encode_in_micro_batches

_HOME = {
    "normalize_caption": "cusa.data.captions",
    "load_dataset": "cusa.data.datasets",
    "CusaError": "cusa.data.errors",
    "Dataset": "cusa.data.records",
    "Record": "cusa.data.records",
    "EmbeddingStore": "cusa.data.store",
    "image_retrieval": "cusa.eval.images",
    "cross_modal_recalls": "cusa.eval.retrieval",
    "uni_modal_recalls": "cusa.eval.retrieval",
    "StudentEncoder": "cusa.eval.encoder",
    "load_student": "cusa.eval.encoder",
    "Encoder": "cusa.eval.models",
    "load_encoder": "cusa.eval.models",
    "CUSALoss": "cusa.train.losses",
    "LossConfig": "cusa.train.losses",
    "Temperature": "cusa.train.losses",
    "TemperaturePair": "cusa.train.losses",
    "fuse_similarities": "cusa.train.losses",
    "contrastive_loss": "cusa.train.losses",
    "soft_label_loss": "cusa.train.losses",
    "soft_labels": "cusa.train.losses",
    "hard_negatives": "cusa.train.matching",
    "matching_loss": "cusa.train.matching",
    "matching_targets": "cusa.train.matching",
    "encode_in_micro_batches": "cusa.train.micro_batches",
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
    if name in _HOME:
        value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
        return value
    raise AttributeError(f"module 'cusa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
