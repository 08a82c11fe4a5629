"""Files of people's judgements of image-caption pairs, in the two forms of Flickr8k.

Hodosh, Young and Hockenmaier, Framing Image Description as a Ranking Task (JAIR 2013). Both forms
are tab-separated lines without a header: the image's file name, the caption's id (``NAME.jpg#2``:
the third caption of NAME.jpg), and

- CrowdFlowerAnnotations.txt: the share of Yes ("the caption describes the image"), and the numbers
  of Yes and of No;
- ExpertAnnotations.txt: three scores from 1 (does not describe the image) to 4 (describes it).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.errors import DataError, FileFormatError
from cusa.data.lines import line_fault, read_lines
from cusa.data.records import SplitView
from cusa.eval.evaluators.splits import EvaluatedSplit

JudgementKind = Literal["crowd", "experts"]

_CAPTION_ID = re.compile(r"(.+)#([0-9]{1,9})")
_COUNT = re.compile(r"[0-9]{1,9}")
_EXPERT_SCORE = re.compile(r"[1-4]")
_ROUNDING = 0.01  # of a share that was written with few digits
_EXPERTS_POSITIVE = 3.0
_CROWD_FORM = "a share of Yes from 0 to 1, the number of Yes and the number of No"
_EXPERTS_FORM = "three scores from 1 to 4"


class JudgedPair(NamedTuple):
    """A line of a file.

    Attributes:
        image_name: File name of the image.
        caption_of: File name of the image that the caption was written for.
        caption_number: Which of that image's captions it is, 0 being the first.
        score: Share of Yes, 0 to 1; or mean of the experts' scores, 1 to 4.
        is_positive: Whether it says that the caption describes the image: there are more Yes than
            No, or the mean is 3 or more.
    """

    image_name: str
    caption_of: str
    caption_number: int
    score: float
    is_positive: bool


@dataclass(frozen=True)
class JudgementFile:
    """A file of judgements.

    Attributes:
        path: The file.
        kind: Whose judgements they are, which is its form.
        pairs: Its lines.
    """

    path: Path
    kind: JudgementKind
    pairs: tuple[JudgedPair, ...]

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over the pairs and their scores, in order."""
        return hashlib.sha256(repr([tuple(pair) for pair in self.pairs]).encode()).hexdigest()


@dataclass(frozen=True)
class SplitJudgements:
    """The judged pairs of a split that has embeddings.

    Attributes:
        images: int64 ``[pairs]``: position of each image among the embeddings.
        captions: int64 ``[pairs]``: position of each caption.
        scores: float64 ``[pairs]``: people's.
        is_positive: bool ``[pairs]``: whether they say that the caption describes the image.
        notes: What a reader of figures should know, such as pairs that were left out.
    """

    images: np.ndarray
    captions: np.ndarray
    scores: np.ndarray
    is_positive: np.ndarray
    notes: tuple[str, ...]


def read_judgements(path: Path) -> JudgementFile:
    """Read a file of either form; which one, its first line tells.

    Args:
        path: The file.

    Raises:
        FileFormatError: If the file is missing or empty, a line is malformed, or a pair is judged
            twice; names the line.
    """
    kind: JudgementKind | None = None
    pairs: list[JudgedPair] = []
    line_of: dict[tuple[str, str], int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != 5:
            message = (
                f"{len(cells)} tab-separated columns; expected an image, a caption's id, and "
                f"{_CROWD_FORM}, or {_EXPERTS_FORM}"
            )
            raise line_fault(path, number, message)
        if kind is None:
            kind = "experts" if _are_expert_scores(cells[2:]) else "crowd"
        key = cells[0], cells[1]
        if key in line_of:
            message = f"{key[0]} and {key[1]} are judged already, in line {line_of[key]}; keep one"
            raise line_fault(path, number, message)
        line_of[key] = number
        pairs.append(_read_pair(cells, kind, path, number))
    if kind is None:
        raise FileFormatError(
            f"{path} holds no judgements; expected CrowdFlowerAnnotations.txt or "
            "ExpertAnnotations.txt of Flickr8k, or lines of their form",
            path=path,
        )
    return JudgementFile(path, kind, tuple(pairs))


def _read_pair(cells: Sequence[str], kind: JudgementKind, path: Path, number: int) -> JudgedPair:
    image_name, caption_id = cells[:2]
    if not image_name:
        raise line_fault(path, number, "no image; expected its file name")
    match = _CAPTION_ID.fullmatch(caption_id)
    if match is None:
        message = f"{caption_id[:80]!r} is no caption's id; expected such as {image_name}#0"
        raise line_fault(path, number, message)
    read_scores = _read_crowd if kind == "crowd" else _read_experts
    score, is_positive = read_scores(cells[2:], path, number)
    return JudgedPair(image_name, match[1], int(match[2]), score, is_positive)


def _read_crowd(cells: Sequence[str], path: Path, number: int) -> tuple[float, bool]:
    """Read a share of Yes with its counts; they must agree."""
    shown = ", ".join(cell[:40] for cell in cells)
    if not (_COUNT.fullmatch(cells[1]) and _COUNT.fullmatch(cells[2])):
        raise line_fault(path, number, f"{shown}; expected {_CROWD_FORM}")
    n_yes, n_no = int(cells[1]), int(cells[2])
    try:
        share = float(cells[0]) if cells[0].isascii() and "_" not in cells[0] else -1.0
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1 or n_yes + n_no == 0:  # NaN is not, either
        raise line_fault(path, number, f"{shown}; expected {_CROWD_FORM}")
    if abs(share - n_yes / (n_yes + n_no)) > _ROUNDING:
        message = f"a share of {share:g} is not that of {n_yes} Yes and {n_no} No; correct the line"
        raise line_fault(path, number, message)
    return n_yes / (n_yes + n_no), n_yes > n_no


def _read_experts(cells: Sequence[str], path: Path, number: int) -> tuple[float, bool]:
    """Read three scores: their mean."""
    if not _are_expert_scores(cells):
        shown = ", ".join(cell[:40] for cell in cells)
        raise line_fault(path, number, f"{shown}; expected {_EXPERTS_FORM}, as in the lines above")
    mean = sum(int(cell) for cell in cells) / len(cells)
    return mean, mean >= _EXPERTS_POSITIVE


def _are_expert_scores(cells: Sequence[str]) -> bool:
    """Whether three columns are scores; a share with its counts never is: they would disagree."""
    return all(_EXPERT_SCORE.fullmatch(cell) for cell in cells)


def match_judgements(
    file: JudgementFile, split: EvaluatedSplit, embeddings: SplitEmbeddings
) -> SplitJudgements:
    """Find the judged images and captions among embeddings.

    Args:
        file: The judgements.
        split: The split; its images are known by their file names, its captions by their number
            within their image.
        embeddings: Embeddings of the split.

    Raises:
        DataError: If none of the pairs is among them, or an image's name stands for several.
    """
    image_position = _positions(embeddings.image_rows, split.view.n_images)
    caption_position = _positions(embeddings.text_rows, split.view.n_captions)
    rows, n_elsewhere, n_skipped = _rows_in_split(file, split), 0, 0
    images, captions, kept = [], [], []
    for pair, pair_rows in zip(file.pairs, rows, strict=True):
        if pair_rows is None:
            n_elsewhere += 1
            continue
        image, caption = image_position[pair_rows[0]], caption_position[pair_rows[1]]
        if image < 0 or caption < 0:
            n_skipped += 1
            continue
        images.append(image)
        captions.append(caption)
        kept.append(pair)
    where = f"{split.dataset} {split.view.name}"
    if not kept:
        raise DataError(
            f"none of the {len(file.pairs):,} pairs of {file.path} is in {where}; judgements go "
            "with the split that they were made on, under the images' file names"
        )
    notes = []
    if n_elsewhere:
        first = file.pairs[rows.index(None)]
        notes.append(
            f"{n_elsewhere:,} of {len(file.pairs):,} pairs are not in {where} and are left out, "
            f"first {first.image_name} with {first.caption_of}#{first.caption_number}"
        )
    if n_skipped:
        notes.append(f"{n_skipped:,} pairs have no embedding and are left out")
    return SplitJudgements(
        np.array(images, np.int64),
        np.array(captions, np.int64),
        np.array([pair.score for pair in kept], np.float64),
        np.array([pair.is_positive for pair in kept], bool),
        tuple(notes),
    )


def check_is_of_split(file: JudgementFile, split: EvaluatedSplit) -> None:
    """Refuse judgements of another split before anything is embedded.

    Raises:
        DataError: If none of the pairs is in the split, or an image's name stands for several.
    """
    if not any(_rows_in_split(file, split)):
        raise DataError(
            f"none of the {len(file.pairs):,} pairs of {file.path} is in {split.dataset} "
            f"{split.view.name}; judgements go with the split that they were made on, under the "
            "images' file names"
        )


def _rows_in_split(file: JudgementFile, split: EvaluatedSplit) -> list[tuple[int, int] | None]:
    """Find the image row and the caption row of each pair; ``None`` for one that is elsewhere."""
    row_of_name = _image_rows_by_name(split.view)
    captions_of_image = _caption_rows_by_image(split.view)
    rows: list[tuple[int, int] | None] = []
    for pair in file.pairs:
        for name in (pair.image_name, pair.caption_of):
            if row_of_name.get(name, 0) < 0:
                raise DataError(
                    f"{file.path} judges {name}, and several images of {split.dataset} "
                    f"{split.view.name} are called so; rename them"
                )
        image_row = row_of_name.get(pair.image_name)
        writer_row = row_of_name.get(pair.caption_of)
        if image_row is None or writer_row is None:
            rows.append(None)
            continue
        own_captions = captions_of_image[writer_row]
        if pair.caption_number < len(own_captions):
            rows.append((image_row, int(own_captions[pair.caption_number])))
        else:
            rows.append(None)
    return rows


def _image_rows_by_name(view: SplitView) -> dict[str, int]:
    """Map file names to image rows; -1 where several images have the name."""
    row_of_name: dict[str, int] = {}
    for row in range(view.n_images):
        name = PurePosixPath(view.image_paths[row]).name
        row_of_name[name] = -1 if name in row_of_name else row
    return row_of_name


def _caption_rows_by_image(view: SplitView) -> list[np.ndarray]:
    """List the caption rows of each image row, in order."""
    caption_image = np.asarray(view.caption_image)
    in_order = np.argsort(caption_image, kind="stable")
    stops = np.searchsorted(caption_image[in_order], np.arange(1, view.n_images))
    return np.split(in_order, stops)


def _positions(rows: np.ndarray, n_rows: int) -> np.ndarray:
    """Map a split's rows to positions among its embeddings; -1 for those that have none."""
    positions = np.full(n_rows, -1, np.int64)
    positions[rows] = np.arange(len(rows))
    return positions
