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
from pathlib import Path
from typing import Literal, NamedTuple

from cusa.data.errors import FileFormatError
from cusa.data.lines import line_fault, read_lines

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
        digest = hashlib.sha256()
        for pair in self.pairs:
            digest.update(f"{tuple(pair)}\n".encode())
        return digest.hexdigest()


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
        cells = list(map(str.strip, line.split("\t")))
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
    scores = ", ".join(cells)[:80]
    if not (_COUNT.fullmatch(cells[1]) and _COUNT.fullmatch(cells[2])):
        raise line_fault(path, number, f"{scores}; expected {_CROWD_FORM}")
    n_yes, n_no = int(cells[1]), int(cells[2])
    try:
        share = float(cells[0]) if cells[0].isascii() and "_" not in cells[0] else -1.0
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1 or n_yes + n_no == 0:  # NaN is not, either
        raise line_fault(path, number, f"{scores}; expected {_CROWD_FORM}")
    if abs(share - n_yes / (n_yes + n_no)) > _ROUNDING:
        message = f"a share of {share:g} is not that of {n_yes} Yes and {n_no} No; correct the line"
        raise line_fault(path, number, message)
    return n_yes / (n_yes + n_no), n_yes > n_no


def _read_experts(cells: Sequence[str], path: Path, number: int) -> tuple[float, bool]:
    """Read three scores: their mean."""
    if not _are_expert_scores(cells):
        message = f"{', '.join(cells)[:80]}; expected {_EXPERTS_FORM}, as in the lines above"
        raise line_fault(path, number, message)
    mean = sum(map(int, cells)) / len(cells)
    return mean, mean >= _EXPERTS_POSITIVE


def _are_expert_scores(cells: Sequence[str]) -> bool:
    """Whether three columns are scores; a share with its counts never is: they would disagree."""
    return all(map(_EXPERT_SCORE.fullmatch, cells))
