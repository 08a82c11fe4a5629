"""Exporting a trained student as a folder that transformers or sentence-transformers loads."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, FiniteFloat

from cusa.data.embeddings import HEADS, Head
from cusa.data.errors import SettingError, StudentError
from cusa.data.parsing import read_json
from cusa.train.saving.model_card import Usage, write_card
from cusa.train.saving.plain_values import checked, named_as_damaged
from cusa.train.saving.run_dir import load_trained
from cusa.train.saving.sentence_transformers_modules import compare_embeddings, save_modules
from cusa.train.saving.student_folder import HEADS_FILE, Origin, SavedStudent, heads_of
from cusa.train.saving.tensors import save_tensors
from cusa.train.towers.lora import merge_adapters

# Writes the modules of a student's towers, with one of their heads: folder, student, head.
SaveTowers = Callable[[Path, SavedStudent, Head], Usage]
Kind = Literal["hf", "sentence-transformers"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def export(
    run: Path,
    kind: Kind = "hf",
    out: Path | None = None,
    head: Head = "cross",
    checkpoint: str = "best",
    save_towers: SaveTowers | None = None,
) -> Path:
    """Export the student of a run, with a model card, and return the folder.

    Args:
        run: The run directory; for ``"best"``, also a folder that holds a student.
        kind: ``"hf"`` (:func:`export_hf`) or ``"sentence-transformers"``
            (:func:`export_sentence_transformers`).
        out: Folder to write; ``None``: ``export-hf``, ``export-sentence-transformers`` or
            ``export-sentence-transformers-uni`` in the run directory.
        head: The head of a sentence-transformers export; ``"hf"`` has all heads.
        checkpoint: ``"best"`` or ``"last"``.
        save_towers: As :func:`export_sentence_transformers` takes it.

    Raises:
        CusaError: If the student cannot be loaded or exported, or the folder is not empty.
    """
    if kind not in KINDS:
        raise SettingError(
            f"unknown kind of export {kind!r}; legal: {', '.join(KINDS)}", name="kind"
        )
    if out is None:
        folder_name = f"export-{kind}"
        if kind == "sentence-transformers" and head == "uni":
            folder_name += "-uni"
        out = run / folder_name
    _refuse_full(out)  # before the student is loaded
    saved = load_trained(run, checkpoint)
    metrics = _metrics_of_these_weights(run, saved.origin)
    if kind == "hf":
        export_hf(saved, out, metrics)
    else:
        export_sentence_transformers(saved, out, head, metrics, save_towers)
    return out


def export_hf(
    saved: SavedStudent,
    out: Path,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder from which transformers loads the backbone.

    LoRA adapters are added to its weights. The four heads are in ``heads.safetensors`` beside it;
    ``cusa.load_student`` loads both.

    Args:
        saved: The student, with its backbone in float32.
        out: The folder; it is written completely or not at all.
        metrics: Content of metrics.json, for the model card.

    Raises:
        CusaError: If the student is an adapter, or the folder is not empty.
        OSError: If it cannot be written.
    """
    _require_backbone(saved)
    merge_adapters(saved.backbone)
    with _new_folder(out) as folder:
        saved.backbone.save_pretrained(folder)
        saved.towers.save(folder)
        heads = heads_of(saved.student.state_dict())
        save_tensors(folder / HEADS_FILE, heads, saved.origin.to_dict())
        write_card(folder, saved.origin, Usage("hf"), metrics)


def export_sentence_transformers(
    saved: SavedStudent,
    out: Path,
    head: Head = "cross",
    metrics: Mapping[str, Any] | None = None,
    save_towers: SaveTowers | None = None,
) -> None:
    """Write a folder that ``SentenceTransformer(out)`` loads.

    It embeds images and texts with one head, L2-normalised: the backbone, then LayerNorm and Dense
    for each modality, then Normalize. If the towers are not of one model, each of them takes the
    place of the backbone: its model or, if it is stored, the frozen encoder and the MLP. The model
    card says if users must install cusa or normalise texts first. Before the folder gets its name,
    its embeddings are compared with the student's.

    Args:
        saved: The student, on the CPU.
        out: The folder; it is written completely or not at all.
        head: ``"cross"``, to compare images with texts; ``"uni"``, to compare images with images or
            texts with texts.
        metrics: Content of metrics.json, for the model card.
        save_towers: For students whose towers are not of one model:
            :func:`cusa.hosts.towers_export.save_towers`.

    Raises:
        CusaError: If the towers are not of one model and there is no ``save_towers``, ``"uni"`` is
            asked for but was never trained, the folder is not empty, or sentence-transformers
            cannot express this student.
        OSError: If it cannot be written.
    """
    _check_head(head, saved.origin)
    save: SaveTowers = _save_dual_encoder
    if saved.backbone is None and save_towers is not None:
        save = save_towers
    with _new_folder(out) as folder:
        usage = save(folder, saved, head)
        write_card(folder, saved.origin, usage, metrics)


def _check_head(head: Head, origin: Origin) -> None:
    if head not in HEADS:
        raise SettingError(f"head must be one of {', '.join(HEADS)}, got {head!r}", name="head")
    loss = origin.config.loss
    if head == "uni" and "usa" not in loss.terms:
        terms = ", ".join(loss.term_titles)
        raise SettingError(
            f"this run trained no uni-modal heads (loss terms: {terms}); export head 'cross'",
            name="head",
        )


def _save_dual_encoder(folder: Path, saved: SavedStudent, head: Head) -> Usage:
    _require_backbone(saved)
    merge_adapters(saved.backbone)
    as_written = save_modules(folder, saved, head)
    compare_embeddings(folder, saved, head, as_written)
    return Usage("sentence-transformers", head, as_written)


def _require_backbone(saved: SavedStudent) -> None:
    """Refuse a student whose towers are not both of one model."""
    if saved.backbone is not None:
        return
    student = saved.origin.config.student
    if student.is_adapter:
        raise StudentError(
            "an adapter has no backbone to export: it works on the embeddings of frozen encoders; "
            "use cusa-train export --to sentence-transformers, or cusa.load_student(RUN)",
            name="adapter",
        )
    raise StudentError(
        f"the towers of {student.title} are not of one model, for which transformers has no class; "
        "use cusa-train export --to sentence-transformers, or share the run's best/, which "
        "cusa.load_student loads wherever it is",
        name=student.title,
    )


class _RecallsForm(BaseModel):
    r1: FiniteFloat | None
    r5: FiniteFloat | None
    r10: FiniteFloat | None


class _RetrievalForm(BaseModel):
    i2t: _RecallsForm
    t2i: _RecallsForm
    rsum: FiniteFloat | None


class _MetricsForm(BaseModel):
    """The entries of metrics.json that a model card uses (docs/METRICS.md)."""

    split: str
    retrieval: _RetrievalForm
    dataset: str | None = None
    epoch: int | FiniteFloat | None = None
    step: int | None = None


def _metrics_of_these_weights(run: Path, origin: Origin) -> dict[str, Any] | None:
    """Read the metrics that cusa-eval measured with the weights that are exported, if any."""
    path = run / "eval" / "metrics.json"
    if not path.is_file():
        return None
    with named_as_damaged(path, "remove it or run cusa-eval again"):
        metrics = read_json(path)
        form = checked(_MetricsForm, metrics, "metrics")
    # Other weights were measured unless epoch and step agree; earlier versions wrote no step.
    if form.epoch != origin.epoch or form.step not in (None, origin.step):
        return None
    return metrics


def _refuse_full(out_folder: Path) -> None:
    if not out_folder.exists():
        return
    if not out_folder.is_dir() or any(out_folder.iterdir()):
        raise SettingError(
            f"{out_folder} exists and is not an empty folder; remove it or pass another --out",
            path=out_folder,
        )


@contextlib.contextmanager
def _new_folder(out_folder: Path) -> Iterator[Path]:
    """Make a temporary folder, which is renamed to ``out_folder`` only if the block succeeds."""
    _refuse_full(out_folder)
    out_folder = out_folder.resolve()
    # In the same parent folder, so that os.replace stays on one file system.
    temporary = out_folder.with_name(f".{out_folder.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, out_folder)
    finally:
        # After os.replace, there is nothing to remove.
        shutil.rmtree(temporary, ignore_errors=True)
