"""One run of a study: an adapter trained on a store with some settings, and measured on a split."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cusa.data.embeddings import HEADS, SplitEmbeddings
from cusa.data.store.cross_teachers import row_names
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
from cusa.train.loader import EpochOrder, Pairs
from cusa.train.preset_files import load_preset
from cusa.train.processes import Processes
from cusa.train.saving.run_dir import load_trained, read_history
from cusa.train.sources import student_sources
from cusa.train.student import Student
from cusa.train.trainer import Trainer

from study_pairs import SHUFFLED, ControlledPairs, ImageOrder, Labels, Taught

STUDENT = "student"
BOOTSTRAP = Bootstrap(samples=300)


@dataclass(frozen=True)
class Variant:
    """What a run differs in from the others of its study.

    Attributes:
        settings: NAME=VALUE, as ``--set`` of cusa-train takes them.
        labels: Whose rows the soft labels are made of.
        taught: Which modalities have soft labels, and of which teacher.
        order: The order of pairs: :data:`SHUFFLED`, or kind and k of :class:`ImageOrder`.
        measured: What is measured: the :data:`STUDENT`, or a cross-modal teacher of the store, by
            its name; nothing is trained then.
    """

    settings: tuple[str, ...] = ()
    labels: Labels = "teachers"
    taught: Taught = "both"
    order: str = SHUFFLED
    measured: str = STUDENT

    @property
    def cross_teachers(self) -> tuple[str, ...]:
        """Return the names of the cross-modal teachers that the run needs."""
        names = parse_settings(self.settings).get("data", {}).get("cross_teacher", [])
        if isinstance(names, str):
            names = [names]
        if self.measured != STUDENT:
            names = [*names, self.measured]
        return tuple(names)

    def facts(self) -> dict[str, Any]:
        """Return the fields as a row of results holds them."""
        return {**vars(self), "settings": list(self.settings)}


def has_facts(row: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Return whether a row of results has these facts."""
    return all(row[name] == value for name, value in facts.items())


@dataclass(frozen=True)
class Trained:
    """A student that a run has trained.

    Attributes:
        student: The best one by val; the last one without ``data.val_split``.
        config: The run's settings.
        val_rsum: RSUM on val after each epoch; empty without ``data.val_split``.
        tau: The contrastive term's temperature in the last step that was logged.
        seconds: That training took.
        cpu_seconds: The same of all threads' work.
    """

    student: Student
    config: Config
    val_rsum: list[float]
    tau: float
    seconds: float
    cpu_seconds: float


def train(config: Config, variant: Variant) -> Trained:
    """Train a run in a temporary folder."""
    began = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        trainer = Trainer(config, Processes("cpu"), 0, run_dir, False, validation_scores)
        _replace_data(trainer, variant)
        trainer.fit()
        seconds = time.perf_counter() - began[0], time.process_time() - began[1]
        lines = read_history(run_dir).lines
        student = load_trained(run_dir, "best").student
    val_rsum = [line["rsum"] for line in lines if line["kind"] == "val"]
    taus = [line["tau"] for line in lines if "tau" in line]
    tau = taus[-1] if taus else config.loss.tau.init
    return Trained(student, config, val_rsum, tau, *seconds)


def _replace_data(trainer: Trainer, variant: Variant) -> None:
    """Give a run the order and the soft labels of its variant."""
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


@dataclass(frozen=True)
class Study:
    """What the runs of a study have in common.

    Attributes:
        store_path: Index of the store to train on.
        settings: Settings of all runs, nested.
        split: The split that is measured.
        judgements: People's judgements of that split, if any.
    """

    store_path: Path
    settings: dict[str, Any]
    split: str
    judgements: JudgementFile | None

    def __post_init__(self) -> None:
        # Refused before anything is trained.
        self.store.split(self.split)

    @property
    def store(self) -> EmbeddingStore:
        """Return the store as it is now: teachers may have been added."""
        return EmbeddingStore(self.store_path)

    def run(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Train one run, and measure its student: a row of the results, without its facts."""
        if variant.measured != STUDENT:
            return self.measure(teacher_embeddings(self.store, variant.measured, self.split))
        trained = self.train(variant, seed)
        epochs: dict[str, Any] = {}
        if trained.val_rsum:
            epochs["best_epoch"] = int(np.argmax(trained.val_rsum)) + 1
        return {
            **epochs,
            "val_rsum": np.round(trained.val_rsum, 2).tolist(),
            "seconds": round(trained.seconds, 1),
            "cpu_seconds": round(trained.cpu_seconds, 1),
            **self.measure(self.encode(trained, self.split)),
        }

    def train(self, variant: Variant, seed: int) -> Trained:
        """Train one run."""
        settings = merge(self.settings, parse_settings(variant.settings))
        settings = merge(settings, {"train": {"seed": seed}})
        config = build_config(merge(load_preset("adapter-published"), settings))
        return train(config, variant)

    def encode(self, trained: Trained, split_name: str) -> SplitEmbeddings:
        """Encode a split of the store."""
        student = self.settings["student"]
        encoders = {"image": student["image_encoder"], "text": student["text_encoder"]}
        sources = student_sources(self.store, split_name, trained.config, encoders)
        return encode_split(trained.student, sources, "cpu")

    def measure(self, embeddings: SplitEmbeddings) -> dict[str, Any]:
        """Measure embeddings of the split by its labels and, if there are any, by judgements."""
        split = EvaluatedSplit.from_store(self.store, self.split)
        is_final = self.split == "test"
        scoring = Scoring(bootstrap=BOOTSTRAP if is_final else NO_BOOTSTRAP)
        metrics, rankings = measure_split(embeddings, split.view, "uni", scoring=scoring)
        figures, samples = _by_labels(metrics, rankings, is_final)
        if self.judgements is not None:
            by_people, agreement = _by_people(self.judgements, split, embeddings)
            figures |= by_people
            samples["spearman"] = resampled_spearman(agreement, BOOTSTRAP)
        rounded = {name: np.round(values, 2).tolist() for name, values in samples.items()}
        return {"figures": figures, "samples": rounded}


def teacher_embeddings(store: EmbeddingStore, name: str, split_name: str) -> SplitEmbeddings:
    """Return the rows of a cross-modal teacher, which has no heads of its own, as both heads'."""
    split = store.split(split_name)
    image, text = (store.embeddings(rows, split_name) for rows in row_names(name))
    image_rows, text_rows = np.arange(split.n_images), np.arange(split.n_captions)
    images = image.gather(image_rows).astype(np.float32)
    texts = text.gather(text_rows).astype(np.float32)
    return SplitEmbeddings(
        dict.fromkeys(HEADS, images),
        dict.fromkeys(HEADS, texts),
        image_rows,
        text_rows,
        np.asarray(split.caption_image),
    )


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
