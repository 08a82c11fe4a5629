"""Files of human judgements of image-caption pairs, in the two forms of Flickr8k.

Hodosh, Young and Hockenmaier, Framing Image Description as a Ranking Task (JAIR 2013). Both forms
have tab-separated lines without a header: the image's file name, the caption's id (``NAME.jpg#2``
is the third caption of NAME.jpg), and

- CrowdFlowerAnnotations.txt: the share of Yes ("the caption describes the image"), and the numbers
  of Yes and of No;
- ExpertAnnotations.txt: three scores from 1 (does not describe the image) to 4 (describes it).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from cusa.data.errors import FileFormatError
from cusa.data.lines import line_fault, read_lines

JudgementKind = Literal["crowd", "experts"]
Fault = Callable[
    [str], FileFormatError
]  # makes the error of a line from a description of its fault

_CAPTION_ID = re.compile(r"(.+)#([0-9]{1,9})")
_COUNT = re.compile(r"[0-9]{1,9}")
_EXPERT_SCORE = re.compile(r"[1-4]")
_ROUNDING = 0.01  # tolerance for shares that are written with few digits
_EXPERTS_POSITIVE = 3.0
_CROWD_FORM = "a share of Yes from 0 to 1, the number of Yes and the number of No"
_EXPERTS_FORM = "three scores from 1 to 4"
_LINE_FORM = f"an image, a caption's id, and either {_CROWD_FORM}, or {_EXPERTS_FORM}"


class JudgedPair(NamedTuple):
    """The judgement of one image-caption pair, a line of a file.

    Attributes:
        image_name: File name of the image.
        caption_of: File name of the image that the caption was written for.
        caption_number: Number of the caption among that image's captions, from 0.
        score: Share of Yes, 0 to 1; or mean of the experts' scores, 1 to 4.
        is_positive: Whether people say that the caption describes the image: there are more Yes
            than No, or the mean score is 3 or more.
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
        kind: Whose judgements it holds, which determines its form.
        pairs: The judged pairs, one per line.
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
    """Read a file of judgements of either form, which the first line determines.

    Args:
        path: The file.

    Raises:
        FileFormatError: If the file is missing or empty, a line is malformed, or a pair is judged
            twice; the message names the line.
    """
    kind: JudgementKind | None = None
    pairs: list[JudgedPair] = []
    line_of_pair: dict[tuple[str, str], int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        fault = partial(line_fault, path, number)
        cells = list(map(str.strip, line.split("\t")))
        if len(cells) != 5:
            raise fault(f"{len(cells)} tab-separated columns; expected {_LINE_FORM}")
        image_name, caption_id, *scores = cells
        if kind is None:
            kind = "experts" if _are_expert_scores(scores) else "crowd"
        first_line = line_of_pair.setdefault((image_name, caption_id), number)
        if first_line != number:
            raise fault(
                f"{image_name} and {caption_id} are already judged in line {first_line}; keep one "
                "of the two"
            )
        read_scores = _read_crowd if kind == "crowd" else _read_experts
        caption_of, caption_number = _read_ids(image_name, caption_id, fault)
        score, is_positive = read_scores(scores, fault)
        pairs.append(JudgedPair(image_name, caption_of, caption_number, score, is_positive))
    if kind is None:
        raise FileFormatError(
            f"{path} holds no judgements; expected CrowdFlowerAnnotations.txt or "
            "ExpertAnnotations.txt of Flickr8k, or lines of their form",
            path=path,
        )
    return JudgementFile(path, kind, tuple(pairs))


def _read_ids(image_name: str, caption_id: str, fault: Fault) -> tuple[str, int]:
    """Split a caption's id into its image's file name and its number; require an image, too."""
    if not image_name:
        raise fault("the image is missing; expected its file name")
    match = _CAPTION_ID.fullmatch(caption_id)
    if match is None:
        raise fault(f"{caption_id[:80]!r} is not a caption's id; expected one like {image_name}#0")
    return match[1], int(match[2])


def _read_crowd(cells: Sequence[str], fault: Fault) -> tuple[float, bool]:
    """Read the share of Yes and the counts, which must agree."""
    form_fault = f"{', '.join(cells)[:80]}; expected {_CROWD_FORM}"
    if not (_COUNT.fullmatch(cells[1]) and _COUNT.fullmatch(cells[2])):
        raise fault(form_fault)
    n_yes, n_no = int(cells[1]), int(cells[2])
    try:
        share = float(cells[0]) if cells[0].isascii() and "_" not in cells[0] else -1.0
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1 or n_yes + n_no == 0:  # NaN fails this, too
        raise fault(form_fault)
    counted_share = n_yes / (n_yes + n_no)
    if abs(share - counted_share) > _ROUNDING:
        raise fault(
            f"the share {share:g} does not agree with {n_yes} Yes and {n_no} No; correct the line"
        )
    return counted_share, n_yes > n_no


def _read_experts(cells: Sequence[str], fault: Fault) -> tuple[float, bool]:
    """Read three scores, and return their mean and whether it is positive."""
    if not _are_expert_scores(cells):
        raise fault(f"{', '.join(cells)[:80]}; expected {_EXPERTS_FORM}, as in the lines above")
    mean = sum(map(int, cells)) / len(cells)
    return mean, mean >= _EXPERTS_POSITIVE


def _are_expert_scores(cells: Sequence[str]) -> bool:
    """Tell experts' scores from a share with its counts, which would disagree with such numbers."""
    return all(map(_EXPERT_SCORE.fullmatch, cells))
