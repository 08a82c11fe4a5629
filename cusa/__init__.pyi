# The public names, and the module of each, for lazy_loader and for type checkers.
from .data.captions import normalize_caption as normalize_caption
from .data.datasets import load_dataset as load_dataset
from .data.errors import CusaError as CusaError
from .data.readers.columns import ColumnNames as ColumnNames
from .data.records import Dataset as Dataset
from .data.records import Record as Record
from .data.store.embeddings import Embeddings as Embeddings
from .data.store.mapped_split import Split as Split
from .data.store.reader import EmbeddingStore as EmbeddingStore
from .eval.evaluators.retrieval.measure import cross_modal_recalls as cross_modal_recalls
from .eval.evaluators.retrieval.measure import uni_modal_recalls as uni_modal_recalls
from .eval.metrics.by_class import image_retrieval as image_retrieval
from .eval.models.any_model import load_encoder as load_encoder
from .eval.models.protocols import Encoder as Encoder
from .eval.models.student import StudentEncoder as StudentEncoder
from .eval.models.student import load_student as load_student
from .train.gradient_cache import encode_in_micro_batches as encode_in_micro_batches
from .train.loss.config import LossConfig as LossConfig
from .train.loss.config import Temperature as Temperature
from .train.loss.config import TemperaturePair as TemperaturePair
from .train.loss.cusa_loss import CUSALoss as CUSALoss
from .train.loss.cusa_loss import LossTerms as LossTerms
from .train.loss.functions import contrastive_loss as contrastive_loss
from .train.loss.functions import fuse_similarities as fuse_similarities
from .train.loss.functions import soft_label_loss as soft_label_loss
from .train.loss.functions import soft_labels as soft_labels
from .train.loss.matching import hard_negatives as hard_negatives
from .train.loss.matching import matching_loss as matching_loss
from .train.loss.matching import matching_targets as matching_targets
from .train.teacher_rows import TeacherBatch as TeacherBatch
from .train.teacher_rows import Teachers as Teachers
from .train.teacher_rows import collate_joined as collate_joined
from .train.teacher_rows import join as join

__version__: str
