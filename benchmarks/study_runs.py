"""One run of a study: an adapter trained on a store with some settings, and measured on a split.

Teachers' rows may be replaced by controls, which are as easy to fit but say less: what of a gain is
knowledge of the teachers, and what would any soft label give.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.utils.data import Dataset

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.store.reader import EmbeddingStore
from cusa.eval.evaluators.judgements.data import JudgementFile
from cusa.eval.evaluators.judgements.matching import match_judgements, rows_in_split
from cusa.eval.evaluators.judgements.measure import measure_heads
from cusa.eval.evaluators.retrieval.measure import measure_split
from cusa.eval.evaluators.splits import EvaluatedSplit
from cusa.eval.metrics.bootstrap import NO_BOOTSTRAP, Bootstrap
from cusa.eval.metrics.correlation import ScoredPairs, resampled_spearman, spearman
from cusa.eval.metrics.metric_options import PerQuery, Scoring
from cusa.eval.metrics.recalls import RECALL_NAMES, recall_sum
from cusa.eval.metrics.validation import validation_scores
from cusa.train.config import Config
from cusa.train.config_building import build_config, merge, parse_settings
from cusa.train.encode_split import encode_split
from cusa.train.loader import Batch, EpochOrder, Pairs
from cusa.train.preset_files import load_preset
from cusa.train.processes import Processes
from cusa.train.saving.run_dir import load_trained, read_history
from cusa.train.sources import student_sources
from cusa.train.teacher_set import MaybeRows
from cusa.train.trainer import Trainer

# Whose rows a batch's soft labels are made of.
Labels = Literal["teachers", "constant", "random", "permuted"]
LABELS: tuple[Labels, ...] = get_args(Labels)
# Which of them are used: those of images, of captions, or of one modality in place of the other's.
Taught = Literal["both", "image", "text", "image twice", "text twice"]
TAUGHT: tuple[Taught, ...] = get_args(Taught)
CONTROL_DIM = 256
SHUFFLED = "shuffled"
BOOTSTRAP = Bootstrap(samples=300)


@dataclass(frozen=True)
class Variant:
    """What a run differs in from the others of its study.

    Attributes:
        settings: NAME=VALUE, as ``--set`` of cusa-train takes them.
        labels: Whose rows the soft labels are made of.
        taught: Which modalities have soft labels, and of which teacher.
        order: The order of pairs: :data:`SHUFFLED`, or kind and k of :class:`ImageOrder`.
    """

    settings: tuple[str, ...] = ()
    labels: Labels = "teachers"
    taught: Taught = "both"
    order: str = SHUFFLED

    def facts(self) -> dict[str, Any]:
        """Return the fields as a row of results holds them."""
        return {**vars(self), "settings": list(self.settings)}


class ControlledPairs(Dataset[Batch]):
    """The pairs of a run, with other rows in place of the teachers'.

    Random rows are drawn once for each image and each caption; permuted ones are the teachers'
    rows of another image and one of its captions, always the same.

    Args:
        pairs: The pairs.
        labels: Whose rows to use.
        taught: Which of them.
    """

    def __init__(self, pairs: Pairs, labels: Labels, taught: Taught) -> None:
        self._pairs = pairs
        self._labels = labels
        self._taught = taught
        self._image_rows, self._caption_rows = pairs.rows(np.arange(len(pairs)))
        if labels == "permuted":
            self._other_pairs = other_images_pairs(self._image_rows)
        generator = torch.Generator().manual_seed(0)
        self._random_rows = []
        for rows in (self._image_rows, self._caption_rows):
            size = int(rows.max()) + 1, CONTROL_DIM
            self._random_rows.append(torch.randn(size, generator=generator))

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, numbers: np.ndarray) -> Batch:
        batch = self._pairs[numbers]
        image, text = self._rows(batch, np.asarray(numbers))
        chosen = {
            "both": (image, text),
            "image": (image, None),
            "text": (None, text),
            "image twice": (image, image),
            "text twice": (text, text),
        }
        teacher_image, teacher_text = chosen[self._taught]
        return replace(batch, teacher_image=teacher_image, teacher_text=teacher_text)

    def _rows(self, batch: Batch, numbers: np.ndarray) -> tuple[MaybeRows, MaybeRows]:
        """Return rows for the images and for the captions."""
        if self._labels == "constant":
            ones = torch.ones(len(numbers), CONTROL_DIM)
            return ones, ones
        if self._labels == "random":
            images, captions = self._random_rows
            return images[self._image_rows[numbers]], captions[self._caption_rows[numbers]]
        if self._labels == "permuted":
            batch = self._pairs[self._other_pairs[numbers]]
        return batch.teacher_image, batch.teacher_text


def other_images_pairs(image_rows: np.ndarray) -> np.ndarray:
    """Return for each pair one of another image: int64 ``[n]``; the same for pairs of one image.

    Args:
        image_rows: int64 ``[n]``: the image of each pair.
    """
    images, firsts, counts = np.unique(image_rows, return_index=True, return_counts=True)
    shuffled = np.random.default_rng(0).permutation(len(images))
    # One cycle through all images, so that none stays itself.
    successor = np.empty_like(shuffled)
    successor[shuffled] = np.roll(shuffled, 1)
    position = np.searchsorted(images, image_rows)
    caption_number = np.arange(len(image_rows)) - firsts[position]
    other = successor[position]
    return firsts[other] + caption_number % counts[other]


@dataclass
class ImageOrder(EpochOrder):
    """An epoch's order in which captions of an image come together, or soon after each other.

    Attributes:
        image_rows: int64 ``[n_pairs]``: the image of each pair.
        kind: ``"together"``: k captions of an image side by side; ``"in turn"``: one caption of
            each of k images, then another of each, until all of theirs have come.
        k: Captions, or images.
    """

    image_rows: np.ndarray = field(kw_only=True)
    kind: str = field(kw_only=True)
    k: int = field(kw_only=True)

    def __iter__(self) -> Iterator[np.ndarray]:
        generator = np.random.default_rng([self.seed, self.epoch])
        shuffled = generator.permutation(self.n_pairs)
        pairs = shuffled[np.argsort(self.image_rows[shuffled], kind="stable")]
        images = self.image_rows[pairs]
        counts = np.bincount(images)
        caption_number = np.arange(self.n_pairs) - (np.cumsum(counts) - counts)[images]
        if self.kind == "together":
            groups = images * (counts.max() + 1) + caption_number // self.k
            place = generator.permutation(groups.max() + 1)
            places = [place[groups]]
        else:
            place = generator.permutation(len(counts))[images]
            places = [place, caption_number, place // self.k]
        in_order = pairs[np.lexsort(places)]
        n_in_batches = len(self) * self.batch_size
        yield from in_order[:n_in_batches].reshape(len(self), -1)[self.first :]


def train(config: Config, variant: Variant, run_dir: Path) -> list[float]:
    """Train a run, and return RSUM on val after each epoch."""
    trainer = Trainer(config, Processes("cpu"), 0, run_dir, False, validation_scores)
    data = trainer.setup.data
    pairs, order = data.pairs, data.order
    assert isinstance(pairs, Pairs), "the store is a set of tars"
    assert isinstance(order, EpochOrder)
    if variant.order != SHUFFLED:
        kind, k = variant.order.rsplit(maxsplit=1)
        image_rows, _ = pairs.rows(np.arange(len(pairs)))
        data.order = ImageOrder(
            *(order.n_pairs, order.batch_size, order.seed),
            image_rows=image_rows,
            kind=kind,
            k=int(k),
        )
    if (variant.labels, variant.taught) != ("teachers", "both"):
        data.pairs = ControlledPairs(pairs, variant.labels, variant.taught)
    trainer.fit()
    return [line["rsum"] for line in read_history(run_dir).lines if line["kind"] == "val"]


@dataclass(frozen=True)
class Study:
    """What the runs of a study have in common.

    Attributes:
        store: The store to train on.
        settings: Settings of all runs, nested.
        split: The split that is measured.
        judgements: People's judgements of that split, if any.
    """

    store: EmbeddingStore
    settings: dict[str, Any]
    split: str
    judgements: JudgementFile | None

    def run(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Train one run, and measure its best student by val: a row of the results."""
        settings = merge(self.settings, parse_settings(variant.settings))
        settings = merge(settings, {"train": {"seed": seed}})
        config = build_config(merge(load_preset("adapter-published"), settings))
        began = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            run_dir = Path(folder) / "run"
            val_rsum = train(config, variant, run_dir)
            seconds = time.perf_counter() - began[0], time.process_time() - began[1]
            trained = load_trained(run_dir, "best").student
            student = settings["student"]
            encoders = {"image": student["image_encoder"], "text": student["text_encoder"]}
            sources = student_sources(self.store, self.split, config, encoders)
            embeddings = encode_split(trained, sources, "cpu")
        return {
            "best_epoch": int(np.argmax(val_rsum)) + 1,
            "val_rsum": np.round(val_rsum, 2).tolist(),
            "seconds": round(seconds[0], 1),
            "cpu_seconds": round(seconds[1], 1),
            **self.measure(embeddings),
        }

    def measure(self, embeddings: SplitEmbeddings) -> dict[str, Any]:
        """Measure embeddings of the split by its labels and, if there are any, by judgements."""
        view, skipped = self.store.split(self.split), self.store.skipped(self.split)
        is_final = self.split == "test"
        scoring = Scoring(bootstrap=BOOTSTRAP if is_final else NO_BOOTSTRAP)
        metrics, rankings = measure_split(embeddings, view, "uni", scoring=scoring)
        figures, samples = _by_labels(metrics, rankings, is_final)
        if self.judgements is not None:
            split = EvaluatedSplit(
                self.store.dataset, view, self.store.image_root, *skipped, self.store
            )
            by_people, agreement = _by_people(self.judgements, split, embeddings)
            figures |= by_people
            samples["spearman"] = resampled_spearman(agreement, BOOTSTRAP)
        rounded = {name: np.round(values, 2).tolist() for name, values in samples.items()}
        return {"figures": figures, "samples": rounded}


def _by_labels(
    metrics: dict[str, Any], rankings: PerQuery, with_samples: bool
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    heads = metrics["heads"]
    retrieval = heads["cross"]["retrieval"]
    figures = {"rsum": retrieval["rsum"]}
    for direction in ("i2t", "t2i"):
        for name in RECALL_NAMES:
            figures[f"{direction}_{name}"] = retrieval[direction][name]
    for head, measured in heads.items():
        figures[f"t2t_r1_{head}"] = measured["unimodal"]["t2t"]["r1"]
    samples: dict[str, np.ndarray] = {}
    if with_samples:
        resampled = []
        for direction in ("i2t", "t2i"):
            ranked = rankings[f"cross/retrieval/{direction}"]
            resampled.append(ranked.resampled("pessimistic", BOOTSTRAP))
        samples["rsum"] = recall_sum(resampled)
        for head in heads:
            t2t = rankings[f"{head}/unimodal/t2t"].resampled("pessimistic", BOOTSTRAP)
            samples[f"t2t_r1_{head}"] = t2t["r1"]
    return figures, samples


def _by_people(
    file: JudgementFile, split: EvaluatedSplit, embeddings: SplitEmbeddings
) -> tuple[dict[str, float], ScoredPairs]:
    """Return figures by judged positives, and agreement over pairs that are no labelled ones."""
    judged = match_judgements(file, split, rows_in_split(file, split), embeddings)
    heads, per_query = measure_heads(embeddings, {file.kind: judged}, split.title, Scoring())
    retrieval = heads["cross"]["judged"][file.kind]["retrieval"]
    figures = {f"{way}_r1_people": retrieval[way]["r1"] for way in ("i2t", "t2i")}
    pairs = per_query[f"{split.title}/cross/{file.kind}/agreement"]
    is_other = embeddings.caption_image[judged.captions] != judged.images
    others = ScoredPairs(
        pairs.similarities[is_other], pairs.human_scores[is_other], pairs.clusters[is_other]
    )
    figures["spearman"] = spearman(others.similarities, others.human_scores)
    figures["judged_pairs"] = len(others.human_scores)
    return figures, others
