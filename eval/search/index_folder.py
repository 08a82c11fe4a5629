"""The files of an index: written atomically, and checked when read.

An index is a folder. ``index.json`` describes its content and the student behind it.
``items.jsonl`` holds its items, a JSON string per line (an absolute image path, or a text), in the
order of the rows. ``cross.faiss`` holds their embeddings from the cross head, for queries of the
other modality; if the student has a trained uni head, ``uni.faiss`` holds those for queries of the
same modality.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import faiss
from pydantic import Field, TypeAdapter, ValidationError

from cusa.data.embeddings import HEADS, Head
from cusa.data.errors import FileFormatError, RunError, first_line
from cusa.data.files import atomic_file, file_digest
from cusa.data.parsing import read_json

Modality = Literal["image", "text"]
Kind = Literal["flat", "hnsw", "ivf"]

# Fields of a later minor version are ignored; another major version is refused.
FORMAT, VERSION = "cusa-index", (1, 1)
CARD, ITEMS = "index.json", "items.jsonl"


def faiss_name(head: Head) -> str:
    """Return the name of the file that holds the embeddings of a head."""
    return f"{head}.faiss"


_FILES = {CARD, ITEMS, *(faiss_name(head) for head in HEADS)}


@dataclass(frozen=True)
class Skipped:
    """An item that was left out of the index, and the reason."""

    item: str
    reason: str


@dataclass(frozen=True)
class IndexSummary:
    """Summary of an index; kept as ``index.json``.

    Attributes:
        modality: Modality of the items: ``"image"`` or ``"text"``.
        kind: ``"flat"``, ``"hnsw"`` or ``"ivf"``.
        dim: Dimension of the embeddings.
        count: Number of items in the index.
        uni_head: The head whose embeddings answer queries of the items' modality.
        student: Absolute path of the student, a run or a folder.
        weights_sha256: sha256 (hex) of the student's weights.
        source: Absolute path of the folder of images, or of the file of texts.
        skipped: Items that could not be embedded.
        blank_lines: Number of empty lines in the file of texts.
        recall_of_exact: Percentage of the exact ten nearest items that an approximate index finds,
            with up to 200 of its items as queries; ``None`` for an exact index.
        sha256: sha256 (hex) of each ``.faiss`` file by its name; empty in format 1.0.
    """

    modality: Modality
    kind: Kind
    dim: Annotated[int, Field(ge=1)]
    count: Annotated[int, Field(ge=1)]
    uni_head: Head
    student: str
    weights_sha256: str
    source: str
    skipped: tuple[Skipped, ...]
    blank_lines: int
    recall_of_exact: Annotated[float, Field(ge=0, le=100)] | None = None
    sha256: dict[str, str] = dataclasses.field(default_factory=dict)


_CARD_FORM = TypeAdapter(IndexSummary)


def check_replaceable(out_folder: Path) -> None:
    """Refuse to replace anything but an index or an empty folder.

    Raises:
        RunError: If the path is a file, or a folder with other files.
    """
    if not out_folder.exists():
        return
    if not out_folder.is_dir():
        raise RunError(
            f"{out_folder} is a file; pass another folder for the index", path=out_folder
        )

    # An empty folder may be used.
    present = {path.name for path in out_folder.iterdir()}
    if not present:
        return
    if CARD in present:
        _read_any_version(out_folder)
    if CARD not in present or not present <= _FILES:
        foreign = min(present - _FILES, default=CARD)
        raise RunError(
            f"{out_folder} is not an index, or holds other files, too ({foreign}); pass another "
            "folder for the index",
            path=out_folder,
        )


def write_index(
    out_folder: Path,
    summary: IndexSummary,
    items: Sequence[str],
    indexes: Mapping[Head, Any],
) -> IndexSummary:
    """Write an index to a temporary folder, and rename that once it is complete.

    Args:
        out_folder: Folder of the index; an index that is there is replaced.
        summary: Summary of the index, without checksums.
        items: Image paths or texts, in the order of the rows.
        indexes: The FAISS index of each head.

    Returns:
        The summary, with the checksums of its files.

    Raises:
        RunError: If a file cannot be written, or ``out_folder`` holds anything but an index.
    """
    temporary_folder = out_folder.with_name(f".{out_folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        summary = _write_files(temporary_folder, summary, items, indexes)
        # Something else may have appeared there while the items were embedded.
        check_replaceable(out_folder)
        _swap_in(temporary_folder, out_folder)
    except RuntimeError as error:  # FAISS raises it for all errors of the file system
        raise RunError(
            f"{out_folder} cannot be written ({first_line(error)}); free some space, or pass "
            "another folder for the index",
            path=out_folder,
        ) from None
    finally:
        shutil.rmtree(temporary_folder, ignore_errors=True)
    return summary


def _write_files(
    folder: Path,
    summary: IndexSummary,
    items: Sequence[str],
    indexes: Mapping[Head, Any],
) -> IndexSummary:
    digests: dict[str, str] = {}
    for head, index in indexes.items():
        faiss_path = folder / faiss_name(head)
        with atomic_file(faiss_path) as temporary:
            faiss.write_index(index, str(temporary))
        digests[faiss_path.name] = file_digest(faiss_path).hex()
    summary = dataclasses.replace(summary, sha256=digests)

    item_lines = [json.dumps(item) + "\n" for item in items]
    with atomic_file(folder / ITEMS) as temporary:
        temporary.write_text("".join(item_lines))
    header = {"format": FORMAT, "format_version": list(VERSION)}
    card = {**header, **dataclasses.asdict(summary)}
    with atomic_file(folder / CARD) as temporary:
        temporary.write_text(json.dumps(card, indent=2) + "\n")
    return summary


def _swap_in(new: Path, out_folder: Path) -> None:
    """Replace a folder by a new one.

    A folder cannot be renamed onto one that is not empty, so there are two renames. If the process
    is killed in between, the old index remains as ``.NAME.*.old``.
    """
    old = None
    if out_folder.exists():
        old = out_folder.with_name(f".{out_folder.name}.{secrets.token_hex(4)}.old")
        out_folder.rename(old)
    # Whatever interrupts the second rename, the old index is restored.
    try:
        new.rename(out_folder)
    except BaseException:
        if old is not None:
            old.rename(out_folder)
        raise
    if old is not None:
        shutil.rmtree(old)


def read_card(folder: Path) -> IndexSummary:
    """Read the summary of an index.

    Raises:
        RunError: If there is no index, or it is damaged or of another major version.
    """
    # The version is checked first, since another one may have other fields.
    content = _read_any_version(folder)
    version = content.get("format_version")
    if not isinstance(version, list) or not version:
        raise _damaged_card(folder, "format_version")
    if version[0] != VERSION[0]:
        raise RunError(
            f"the index {folder} has format version {version[0]}, not {VERSION[0]}; build it again",
            path=folder / CARD,
            location="format_version",
        )

    # Validation ignores the fields that a later minor version adds.
    try:
        summary = _CARD_FORM.validate_json((folder / CARD).read_bytes(), strict=True)
    except ValidationError as error:
        field_path = error.errors(include_url=False)[0]["loc"]
        location = ".".join(str(field) for field in field_path)
        raise _damaged_card(folder, location) from None
    return summary


def latest_index(folder: Path) -> Path:
    """Return the newest of the indexes ``**/index`` below a folder of runs.

    Raises:
        RunError: If there is no index.
    """
    cards = folder.glob(f"**/index/{CARD}")
    latest_card = max(cards, key=lambda card: card.stat().st_mtime, default=None)
    if latest_card is None:
        raise RunError(
            f"no index under {folder}/; build one with cusa-eval index, or pass --index",
            path=folder,
        )
    return latest_card.parent


def _read_any_version(folder: Path) -> dict[str, Any]:
    """Read the content of ``index.json``, whatever its version."""
    if not (folder / CARD).is_file():
        raise RunError(f"{folder} holds no index; build one with cusa-eval index", path=folder)
    try:
        content = read_json(folder / CARD)
    except FileFormatError as error:
        raise _damaged_card(folder, error.location) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _damaged_card(folder)
    return content


def _damaged_card(folder: Path, location: str = "") -> RunError:
    card_path = folder / CARD
    location_note = f" ({location})" if location else ""
    return RunError(
        f"{card_path} is damaged, or does not belong to an index{location_note}; pass another "
        "folder, or remove it",
        path=card_path,
        location=location,
    )
