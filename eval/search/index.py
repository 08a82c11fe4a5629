"""An index of a folder of images, or of a list of texts: embedded by a trained student, for cusa.eval.search.search.

An index is a folder. ``index.json`` says what it is and whose. ``items.jsonl`` holds its items, a JSON string per line
(absolute image path, or text), in the order of the rows. ``cross.faiss`` holds their embeddings from the cross head,
for queries of the other modality; where the student has a trained uni head, ``uni.faiss`` holds those for their own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import faiss
import numpy as np
from PIL import Image
from pydantic import Field, TypeAdapter, ValidationError

from cusa.data.embeddings import HEADS, Head
from cusa.data.errors import CusaError, FileFormatError, RunError, first_line
from cusa.data.files import atomic_file
from cusa.data.image_folder import find_images
from cusa.data.images import load_image
from cusa.data.parsing import read_json
from cusa.eval.models.batched import enough_memory, in_threads
from cusa.eval.models.student import StudentEncoder
from cusa.eval.search.approximate import ApproximateKind, make_index, recall_of_exact

Modality = Literal["image", "text"]
Kind = Literal["flat", "hnsw", "ivf"]

FORMAT, VERSION = "cusa-index", (1, 1)
CARD, ITEMS = "index.json", "items.jsonl"
_FILES = {CARD, ITEMS, *(f"{head}.faiss" for head in HEADS)}
_MOST_PIXELS = 64_000_000  # that a thread holds decoded: batches of large photographs are cut
_ASKED, _NEAREST = (
    200,
    10,
)  # items that an approximate index is asked for, and how many hits are compared


@dataclass(frozen=True)
class IndexOptions:
    """How to build an index.

    Attributes:
        kind: ``"flat"``: exact search; ``"hnsw"`` or ``"ivf"``: approximate, for galleries of millions.
        batch_size: Items at a time, per thread.
        workers: Threads that decode and encode images; on a CPU, each computes on one core.
    """

    kind: Kind = "flat"
    batch_size: int = 32
    workers: int = 1


@dataclass(frozen=True)
class Skipped:
    """An item that is not in the index, and why."""

    item: str
    reason: str


@dataclass(frozen=True)
class IndexSummary:
    """What an index is; kept as ``index.json``.

    Attributes:
        modality: Of the items: ``"image"`` or ``"text"``.
        kind: ``"flat"``, ``"hnsw"`` or ``"ivf"``.
        dim: Dimension of the embeddings.
        count: Items in it.
        uni_head: The head whose embeddings answer queries of the items' own modality.
        student: Absolute path of the student, a run or a folder.
        weights_sha256: sha256 (hex) of the student's weights.
        source: Absolute path of the folder of images, or of the list of texts.
        skipped: Items that could not be read.
        blank_lines: Empty lines of the list of texts.
        recall_of_exact: Approximate: percent of the exact ten nearest that it finds, asked for up to 200 of its items;
            ``None``: it is exact.
        sha256: sha256 (hex) of each ``.faiss`` file by its name; indexes of format 1.0 have none.
    """

    modality: Modality
    kind: Kind
    dim: int
    count: int
    uni_head: Head
    student: str
    weights_sha256: str
    source: str
    skipped: tuple[Skipped, ...]
    blank_lines: int
    recall_of_exact: Annotated[float, Field(ge=0, le=100)] | None = None
    sha256: dict[str, str] = dataclasses.field(default_factory=dict)


# --- what to index


def read_texts(path: Path) -> tuple[list[str], int]:
    """The texts of a file, one per line, without white space around them; and how many lines are empty.

    Raises:
        CusaError: If the file is missing, is not UTF-8, or holds no text.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except FileNotFoundError:
        raise CusaError(
            f"{path} does not exist; pass a folder of images, or a .txt file of one text per line"
        ) from None
    except UnicodeDecodeError:
        raise CusaError(
            f"{path} is not UTF-8 text; convert it, or pass a folder of images"
        ) from None
    texts = [line for line in lines if line]
    if not texts:
        raise CusaError(f"{path} holds no text; write one per line")
    return texts, len(lines) - len(texts)


def _read_source(source: Path) -> tuple[Modality, list[str], int]:
    """Modality, items, and the number of empty lines."""
    if source.is_dir():
        return "image", [str(path) for path in find_images(source)], 0
    if source.exists() and source.suffix.lower() != ".txt":
        raise CusaError(
            f"{source} is neither a folder of images nor a .txt file of one text per line"
        )
    return "text", *read_texts(source)


# --- building


def build_index(
    student: StudentEncoder,
    student_path: Path,
    source: Path,
    out: Path,
    options: IndexOptions = IndexOptions(),
    advanced: Callable[[int, int], None] = lambda done, total: None,
) -> IndexSummary:
    """Embed all images below a folder, or all lines of a text file, and write their index.

    Args:
        student: The student.
        student_path: Where it was loaded from; a search loads it from there.
        source: A folder of images, or a ``.txt`` file with a text per line.
        out: Folder of the index; an index that is there is replaced once the new one is whole.
        options: How.
        advanced: Told how many items are done, of how many.

    Raises:
        CusaError: If there is nothing to index, no item can be read, ``out`` is something else than an index, or
            memory is too small.
        ValueError: If an option is out of range.
    """
    if options.kind not in get_args(Kind) or options.batch_size < 1 or options.workers < 1:
        raise ValueError(
            f"kind is flat, hnsw or ivf, batch_size and workers are at least 1; got {options}"
        )
    out = Path(os.path.realpath(out))
    _check_replaceable(out)
    modality, items, blank_lines = _read_source(source)
    rows = _IndexRows(student.uni_head)
    done, skipped = 0, []
    with (
        enough_memory(options.batch_size),
        closing(_encode(student, modality, items, options)) as parts,
    ):
        for part in parts:
            if part.reason is not None:
                skipped += [Skipped(item, part.reason) for item in part.items]
            else:
                rows.add(part)
            done += len(part.items)
            advanced(done, len(items))
    if not rows.items:
        raise CusaError(
            f"none of the {len(items)} items of {source} can be read; the first: {skipped[0].reason}"
        )
    recall = rows.approximate(options.kind) if options.kind != "flat" else None
    summary = IndexSummary(
        modality=modality,
        kind=options.kind,
        dim=rows.indexes["cross"].d,
        count=len(rows.items),
        uni_head=student.uni_head,
        student=str(student_path.absolute()),
        weights_sha256=student.weights_sha256,
        source=str(source.absolute()),
        skipped=tuple(skipped),
        blank_lines=blank_lines,
        recall_of_exact=recall,
    )
    return _write(out, summary, rows)


@dataclass(frozen=True)
class _Part:
    """Items and their rows from both heads; or items that cannot be read, and why."""

    items: tuple[str, ...]
    rows: dict[Head, np.ndarray]
    reason: str | None = None


class _IndexRows:
    """The items embedded so far, in memory."""

    def __init__(self, uni_head: Head) -> None:
        self._heads: tuple[Head, ...] = tuple(dict.fromkeys(("cross", uni_head)))
        self.items: list[str] = []
        self.indexes: dict[Head, Any] = {}

    def add(self, part: _Part) -> None:
        for head in self._heads:
            rows = part.rows[head]
            if not np.isfinite(rows).all():
                raise CusaError(
                    f"the student's {head} head returns NaN, for {part.items[0]!r} or one after it"
                )
            self.indexes.setdefault(head, faiss.IndexFlatIP(rows.shape[1])).add(rows)
        self.items += part.items

    def approximate(self, kind: ApproximateKind) -> float | None:
        """Put approximate indexes in the exact ones' place; percent of their hits that they find, the worst head's."""
        recalls = []
        for head, exact in self.indexes.items():
            rows = exact.reconstruct_n(0, exact.ntotal)
            asked = rows[np.random.default_rng(0).permutation(len(rows))[:_ASKED]]
            self.indexes[head], _ = make_index(rows, kind)
            found, expected = (
                index.search(asked, _NEAREST)[1] for index in (self.indexes[head], exact)
            )
            recalls.append(recall_of_exact(found, expected))
        return min((r for r in recalls if r is not None), default=None)


def _encode(
    student: StudentEncoder, modality: Modality, items: list[str], options: IndexOptions
) -> Generator[_Part, None, None]:
    """Embed items in order; those of a batch that cannot be read come as parts of their own."""
    batches = [items[i : i + options.batch_size] for i in range(0, len(items), options.batch_size)]
    if modality == "text":  # in this thread: a tokeniser is not safe to share
        encode_texts = partial(student.text_rows, batch_size=options.batch_size)
        encode_texts(["a"])  # what is wrong with all texts stops it here
        for batch in batches:
            yield from _encode_each(encode_texts, batch, batch)
        return
    encode_images = partial(student.image_rows, batch_size=options.batch_size)
    encode_images(
        [Image.new("RGB", (64, 64))]
    )  # as above; and an adapter's encoder is loaded once, not in each thread
    with closing(
        in_threads(partial(_decode_and_encode, encode_images), batches, options.workers)
    ) as parts:
        for found in parts:
            yield from found


def _decode_and_encode(
    encode: Callable[[list[Any]], dict[Head, np.ndarray]], paths: list[str]
) -> list[_Part]:
    """Runs in a thread; few images are held decoded."""
    parts: list[_Part] = []
    held: dict[str, Image.Image] = {}
    for path in paths:
        try:
            held[path] = load_image(Path(path))
        except CusaError as error:
            parts.append(_Part((path,), {}, str(error)))
        if sum(image.width * image.height for image in held.values()) > _MOST_PIXELS:
            parts += _encode_each(encode, list(held), list(held.values()))
            held = {}
    return parts + list(_encode_each(encode, list(held), list(held.values())))


def _encode_each(
    encode: Callable[[list[Any]], dict[Head, np.ndarray]], items: Sequence[str], inputs: list[Any]
) -> Iterator[_Part]:
    """A batch, or one by one where the batch cannot be encoded: a text without words, an image one pixel high."""
    if not items:
        return
    try:
        part = _Part(tuple(items), encode(inputs))
    except (OSError, ValueError) as error:  # a CusaError is a ValueError
        if len(items) > 1:
            for item, one in zip(items, inputs, strict=True):
                yield from _encode_each(encode, [item], [one])
            return
        part = _Part(tuple(items), {}, str(error))
    yield part


# --- files


def _check_replaceable(out: Path) -> None:
    """Refuse to replace what is not an index."""
    if not out.exists():
        return
    if not out.is_dir():
        raise CusaError(f"{out} is a file; pass another folder for the index")
    present = {path.name for path in out.iterdir()}
    if not present:
        return
    if CARD in present:
        _read_plain(out)
    if CARD not in present or not present <= _FILES:
        other = min(present - _FILES, default=CARD)
        raise CusaError(
            f"{out} is no index, or not only one (it holds {other}); pass another folder for the index"
        )


def _write(out: Path, summary: IndexSummary, rows: _IndexRows) -> IndexSummary:
    """Write an index beside its place, and put it there; what it is, with the sums of its files."""
    new = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        for head, index in rows.indexes.items():
            with atomic_file(new / f"{head}.faiss") as temporary:
                try:
                    faiss.write_index(index, str(temporary))
                except RuntimeError as error:  # its word for any error of the file system
                    raise CusaError(f"{out} cannot be written ({first_line(error)})") from None
        digests = {f"{head}.faiss": file_digest(new / f"{head}.faiss") for head in rows.indexes}
        summary = dataclasses.replace(summary, sha256=digests)
        with atomic_file(new / ITEMS) as temporary:
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(item) + "\n" for item in rows.items)
        with atomic_file(new / CARD) as temporary:
            card = {
                "format": FORMAT,
                "format_version": list(VERSION),
                **dataclasses.asdict(summary),
            }
            temporary.write_text(json.dumps(card, indent=2) + "\n")
        _check_replaceable(out)
        _swap_in(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return summary


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _swap_in(new: Path, out: Path) -> None:
    """Two renames, as a folder cannot be renamed onto a full one; killed in between, the old one is .NAME.*.old."""
    old = None
    if out.exists():
        old = out.with_name(f".{out.name}.{secrets.token_hex(4)}.old")
        out.rename(old)
    try:
        new.rename(out)
    except BaseException:
        if old is not None:
            old.rename(out)
        raise
    if old is not None:
        shutil.rmtree(old)


def _read_plain(folder: Path) -> dict[str, Any]:
    """The content of ``index.json``, whatever its version."""
    if not (folder / CARD).is_file():
        raise RunError(f"{folder} holds no index; build one with cusa-eval index", path=folder)
    try:
        content = read_json(folder / CARD)
    except FileFormatError as error:
        raise _no_card(folder, error.location) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _no_card(folder)
    return content


def read_card(folder: Path) -> IndexSummary:
    """What an index says of itself.

    Raises:
        RunError: If there is none, it is damaged, or it is of another version.
    """
    content = _read_plain(folder)
    version = content.get("format_version")
    if not isinstance(version, list) or not version:
        raise _no_card(folder, "format_version")
    if version[0] != VERSION[0]:
        message = (
            f"the index {folder} has format version {version[0]}, not {VERSION[0]}; build it again"
        )
        raise RunError(message, path=folder / CARD, location="format_version")
    try:  # fields that a later minor version adds are not for us, and are left out
        summary = TypeAdapter(IndexSummary).validate_json((folder / CARD).read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _no_card(folder, ".".join(str(part) for part in first["loc"])) from None
    if summary.dim < 1 or summary.count < 1:
        raise _no_card(folder, "dim or count")
    return summary


def _no_card(folder: Path, location: str = "") -> RunError:
    where = f" ({location})" if location else ""
    message = (
        f"{folder / CARD} is damaged, or not an index's{where}; pass another folder, or remove it"
    )
    return RunError(message, path=folder / CARD, location=location)


def latest_index(folder: Path) -> Path:
    """The index written last of those in run directories below a folder: ``**/index``.

    Raises:
        CusaError: If there is none.
    """
    found = sorted(folder.glob(f"**/index/{CARD}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CusaError(
            f"no index under {folder}/; build one with cusa-eval index, or say where it is"
        )
    return found[-1].parent
