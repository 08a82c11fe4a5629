"""The training loop: set-up from a config, epochs, validation, checkpoints."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from cusa.data.errors import CusaError
from cusa.data.files import atomic_file
from cusa.data.schema import TeacherSettings
from cusa.data.store import EmbeddingStore
from cusa.train.batches import Batch, EpochOrder, Inputs, Loader, Pairs, Sources, open_sources
from cusa.train.checkpoint import (
    CONFIG_FILE,
    METRICS_FILE,
    PROVENANCE_FILE,
    STUDENT_FOLDER,
    Provenance,
    checkpoint_path,
    load_checkpoint,
    load_run,
    prefixed,
    read_metrics,
    save_checkpoint,
    under,
)
from cusa.train.config import Config, differing, to_yaml
from cusa.train.encode import encode_split, validation_scores
from cusa.train.losses import CUSALoss, LossTerms
from cusa.train.micro_batches import encode_in_micro_batches
from cusa.train.student import Features, Processors, Student, adapter_student, dual_encoder_student

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Reporter(Protocol):
    """What a command line shows of a run."""

    def started(self, trainer: Trainer) -> None:
        """Called once everything is set up."""
        ...

    def stepped(self, metrics: dict[str, Any]) -> None:
        """Called after every step that is logged."""
        ...

    def validated(self, metrics: dict[str, Any], best: bool) -> None:
        """Called after every epoch."""
        ...


@dataclass
class Progress:
    """How far a run is."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_rsum: float = -math.inf


def learning_rate(step: int, steps_per_epoch: int, config: Config) -> float:
    """Linear warm-up to ``optim.lr``, then a cosine to ``optim.min_lr`` at the last step.

    Args:
        step: Steps done before this one.
        steps_per_epoch: Steps per epoch.
        config: The run's settings.
    """
    o = config.optim
    warmup, total = round(o.warmup_epochs * steps_per_epoch), config.train.epochs * steps_per_epoch
    if step < warmup:
        return o.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total - 1 - warmup)
    return o.min_lr + (o.lr - o.min_lr) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def make_optimizer(modules: dict[str, nn.Module], config: Config) -> tuple[torch.optim.AdamW, list[str]]:
    """AdamW with weight decay on matrices alone.

    Returns:
        The optimizer, and the names of its parameters in its own order.
    """
    named = [(f"{m}.{n}", p) for m, module in modules.items() for n, p in module.named_parameters()]
    decayed = [(n, p) for n, p in named if p.ndim >= 2]
    others = [(n, p) for n, p in named if p.ndim < 2]
    o = config.optim
    groups = [
        {"params": [p for _, p in decayed], "weight_decay": o.weight_decay},
        {"params": [p for _, p in others], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps)
    return optimizer, [n for n, _ in decayed + others]


class Trainer:
    """One run: owns the run directory, the student, the loss and the optimizer.

    Args:
        config: The run's settings, with the device and the names of teachers and encoders still as given.
        device: ``"cpu"`` or ``"cuda"``.
        workers: Processes that read batches.
        run_dir: Directory of the run; must not exist unless resumed.
        resume: Go on from its last checkpoint.

    Raises:
        CusaError: If store, teachers, student or run directory do not fit; says what to do.
    """

    def __init__(self, config: Config, device: str, workers: int, run_dir: Path, resume: bool) -> None:
        if run_dir.exists() and not resume and any(run_dir.iterdir()):
            raise CusaError(f"run directory {run_dir} exists; pass --resume to go on, or another --run-dir")
        self.config, self.device, self.workers, self.run_dir = config, device, workers, run_dir
        self.store = EmbeddingStore(config.data.embeddings)
        self._open_data()
        torch.manual_seed(config.train.seed)
        self.student, self.processors, backbone = self._make_student()
        self.student.to(device)
        self.loss = CUSALoss(config.loss).to(device)
        self.train_sources, self.val_sources = (
            self._sources(name) for name in (config.data.train_split, config.data.val_split)
        )
        teachers = None
        if self.teachers:
            image, text = (self.store.embeddings(n, config.data.train_split) for n, _ in self.teachers.values())
            teachers = (image, text)
        self.pairs = Pairs(*self.train_sources, teachers)
        self.order = EpochOrder(len(self.pairs), config.train.batch_size, config.train.seed)
        self.optimizer, self._names = make_optimizer({"student": self.student, "loss": self.loss}, config)
        self._scaler = torch.amp.GradScaler(device, enabled=config.train.precision == "fp16")
        self.progress = Progress()
        if resume:
            self._resume()
        self._write_run_files(backbone)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return len(self.order)

    def _open_data(self) -> None:
        data, student, store = self.config.data, self.config.student, self.store
        store.split(data.train_split)
        if data.val_split not in store.splits:
            raise CusaError(
                f"{store.path} has no split {data.val_split!r} to choose the best checkpoint on; it has: "
                f"{', '.join(store.splits)}; name one with --set data.val_split=SPLIT"
            )
        wanted = {"csa", "usa"} & set(self.config.loss.terms)
        self.teachers: dict[str, tuple[str, TeacherSettings]] = {}
        self.encoders: dict[str, tuple[str, TeacherSettings]] = {}
        for modality in ("image", "text"):
            if wanted:
                given = getattr(data, f"{modality}_teacher")
                name = store.pick_teacher(modality, given, f"--{modality}-teacher")
                self.teachers[modality] = (name, store.teachers[name])
            if student.name == "adapter":
                given = getattr(student, f"{modality}_encoder")
                name = store.pick_teacher(modality, given, f"--{modality}-encoder")
                self.encoders[modality] = (name, store.teachers[name])
        # A run keeps its teachers by name, also when its store gains others.
        t, e = ({m: name for m, (name, _) in part.items()} for part in (self.teachers, self.encoders))
        self.config = replace(
            self.config,
            data=replace(
                data,
                image_teacher=t.get("image", data.image_teacher),
                text_teacher=t.get("text", data.text_teacher),
            ),
            student=replace(
                student,
                image_encoder=e.get("image", student.image_encoder),
                text_encoder=e.get("text", student.text_encoder),
            ),
        )

    def _make_student(self) -> tuple[Student, Processors | None, Any]:
        config = self.config.student
        if config.name == "adapter":
            dims = (settings.dim for _, settings in self.encoders.values())
            return adapter_student(config, *dims), None, None
        # Once there is a checkpoint, the run directory is all that a run needs.
        begun = checkpoint_path(self.run_dir, "last").exists()
        return dual_encoder_student(
            config, str(self.run_dir / STUDENT_FOLDER) if begun else config.name, pretrained=not begun
        )

    def _sources(self, split: str) -> Sources:
        names = tuple(n for n, _ in self.encoders.values())
        root = self.config.data.image_root
        return open_sources(
            self.store,
            split,
            encoders=(names[0], names[1]) if names else None,
            processors=self.processors,
            image_root=Path(root) if root else None,
            normalizer_name=self.config.data.normalizer,
        )

    def _write_run_files(self, backbone: Any) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        splits = {s.split.name: s.split.fingerprint for s in (self.train_sources, self.val_sources)}
        provenance = Provenance(self.store.dataset, splits, self.teachers, self.encoders)
        if backbone is not None and not checkpoint_path(self.run_dir, "last").exists():
            assert self.processors is not None
            backbone.config.save_pretrained(self.run_dir / STUDENT_FOLDER)
            self.processors.save(self.run_dir / STUDENT_FOLDER)
        for name, text in ((PROVENANCE_FILE, provenance.to_json()), (CONFIG_FILE, to_yaml(self.config))):
            with atomic_file(self.run_dir / name) as temporary:
                temporary.write_text(text)

    def fit(self, reporter: Reporter) -> Progress:
        """Train to the last epoch; every epoch ends with validation and a checkpoint.

        Raises:
            CusaError: If the loss is not finite; the last checkpoint stays.
        """
        loader = Loader(self.pairs, self.order, self.workers, pin=self.device == "cuda")
        reporter.started(self)
        with (self.run_dir / METRICS_FILE).open("a") as log:
            for epoch in range(self.progress.epoch, self.config.train.epochs):
                self.order.epoch = epoch
                self.student.train()
                self._last_step = time.perf_counter()
                for batch in loader:
                    self._step(batch, log, reporter)
                self._finish_epoch(epoch + 1, log, reporter)
        return self.progress

    def _step(self, batch: Batch, log: Any, reporter: Reporter) -> None:
        lr = learning_rate(self.progress.step, self.steps_per_epoch, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batch = batch.to(self.device, inputs=self.config.train.micro_batch is None)
        reduced = _AUTOCAST.get(self.config.train.precision)
        with torch.autocast(self.device, reduced) if reduced else contextlib.nullcontext():
            image = self._encode(self.student.encode_image, batch.images)
            text = self._encode(self.student.encode_text, batch.texts)
            try:
                terms = self.loss(
                    image.cross,
                    text.cross,
                    image.uni,
                    text.uni,
                    batch.teacher_image,
                    batch.teacher_text,
                    batch.image_ids,
                )
            except ValueError as error:
                images = ", ".join(map(str, batch.image_ids.tolist()))
                raise CusaError(f"step {self.progress.step + 1}: {error}; image rows of the batch: {images}") from None
        self._check_finite(terms)
        self.optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(terms.total).backward()
        if self.config.optim.grad_clip > 0:
            self._scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.config.optim.grad_clip)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.progress.step += 1
        self._last_step, started = time.perf_counter(), self._last_step
        if self.progress.step % self.config.train.log_every == 0 or self.progress.step == 1:
            metrics: dict[str, Any] = {
                "kind": "train",
                "step": self.progress.step,
                "epoch": self.progress.step / self.steps_per_epoch,
                "loss": terms.total.item(),
                **{t: getattr(terms, t).item() for t in self.config.loss.terms},
                **self.loss.temperatures(),
                "lr": lr,
                "samples_per_s": len(batch.image_ids) / (self._last_step - started),
            }
            _log(log, metrics)
            reporter.stepped(metrics)

    def _encode(self, encode: Callable[[Any], Features], inputs: Inputs) -> Features:
        size = self.config.train.micro_batch
        return encode(inputs) if size is None else encode_in_micro_batches(encode, inputs, size, self.device)

    def _check_finite(self, terms: LossTerms) -> None:
        if torch.isfinite(terms.total):
            return
        bad = [t for t in self.config.loss.terms if not torch.isfinite(getattr(terms, t))]
        raise CusaError(
            f"the loss is not finite at step {self.progress.step + 1} ({', '.join(bad)}); the last checkpoint stays; "
            "lower optim.lr or use --precision fp32"
        )

    def _finish_epoch(self, epoch: int, log: Any, reporter: Reporter) -> None:
        embeddings = encode_split(self.student, self.val_sources, self.device, workers=self.workers)
        scores = validation_scores(embeddings)
        self.progress.epoch = epoch
        best = scores["rsum"] > self.progress.best_rsum
        weights = {**prefixed("student", self.student.state_dict()), **prefixed("loss", self.loss.state_dict())}
        if best:
            self.progress.best_epoch, self.progress.best_rsum = epoch, scores["rsum"]
            save_checkpoint(checkpoint_path(self.run_dir, "best"), weights, {"epoch": epoch, "val": scores})
        meta: dict[str, Any] = {"epoch": epoch, "val": scores}
        meta |= {"progress": vars(self.progress), "scaler": self._scaler.state_dict()}
        state = {**weights, **self._optimizer_tensors(), "rng.cpu": torch.get_rng_state()}
        if self.device == "cuda":
            state["rng.cuda"] = torch.cuda.get_rng_state()
        metrics = {"kind": "val", "step": self.progress.step, "epoch": epoch, "best": best, **scores}
        _log(log, metrics)
        save_checkpoint(checkpoint_path(self.run_dir, "last"), state, meta)
        reporter.validated(metrics, best)

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        state: dict[int, dict[str, torch.Tensor]] = self.optimizer.state_dict()["state"]
        return {f"optimizer.{self._names[i]}.{key}": value for i, part in state.items() for key, value in part.items()}

    def _resume(self) -> None:
        if not (self.run_dir / CONFIG_FILE).exists():
            return
        before, provenance = load_run(self.run_dir)
        if fields := differing(before, self.config):
            raise CusaError(f"--resume: settings differ from those of {self.run_dir}: {'; '.join(fields)}")
        self._check_provenance(provenance)
        path = checkpoint_path(self.run_dir, "last")
        if not path.exists():  # stopped within its first epoch: from the start
            (self.run_dir / METRICS_FILE).unlink(missing_ok=True)
            return
        tensors, meta = load_checkpoint(path)
        self.student.load_state_dict(under("student", tensors))
        self.loss.load_state_dict(under("loss", tensors))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in under("optimizer", tensors).items():
            parameter, _, key = name.rpartition(".")
            state.setdefault(self._names.index(parameter), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self._scaler.load_state_dict(meta["scaler"])
        self.progress = Progress(**meta["progress"])
        torch.set_rng_state(tensors["rng.cpu"])
        if self.device == "cuda" and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"])
        self._trim_metrics()

    def _check_provenance(self, provenance: Provenance) -> None:
        fields = []
        if provenance.dataset != self.store.dataset:
            fields.append(f"dataset ({provenance.dataset!r} / {self.store.dataset!r})")
        for name, fingerprint in provenance.splits.items():
            if self.store.split(name).fingerprint != fingerprint:
                fields.append(f"fingerprint of split {name!r}")
        for old, new in ((provenance.teachers, self.teachers), (provenance.encoders, self.encoders)):
            for modality, (name, settings) in old.items():
                fields += [f"{name}.{f}" for f in new[modality][1].differing(settings)]
        if fields:
            raise CusaError(f"{self.store.path} is not the store that {self.run_dir} began with: {'; '.join(fields)}")

    def _trim_metrics(self) -> None:
        """Drop lines written after the checkpoint that the run goes on from."""
        lines = [json.dumps(m) + "\n" for m in read_metrics(self.run_dir) if m["step"] <= self.progress.step]
        with atomic_file(self.run_dir / METRICS_FILE) as temporary:
            temporary.write_text("".join(lines))


def _log(log: Any, metrics: dict[str, Any]) -> None:
    log.write(json.dumps(metrics) + "\n")
    log.flush()
