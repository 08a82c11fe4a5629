"""Files of a search index: its card, its items, and what FAISS wrote, with and without
a checksum.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from cusa.data.unit_rows import unit_rows
from cusa.eval.models.student import StudentEncoder
from cusa.eval.search.index import IndexOptions, build_index
from cusa.eval.search.index_folder import CARD, ITEMS, Kind
from cusa.eval.search.search import answer
from cusa.eval.search.search_index import SearchIndex
from tests.fuzz.harness import Target
from tests.fuzz.mutations import BYTE_MUTATORS, Mutator, mutate_json, mutate_json_lines
from tests.fuzz.readings import is_same, is_taken_from, json_of

_DIM, _N_ITEMS = 8, 120
_TEXTS = [f"text number {number}" for number in range(_N_ITEMS)]


class _Student:
    """Stands for a student: rows that depend on the text alone."""

    uni_head, weights_sha256 = "uni", "0" * 64

    def text_rows(self, texts: Sequence[str], batch_size: int = 32) -> dict[str, np.ndarray]:
        return {head: rows_of(texts, head) for head in ("cross", "uni")}


def rows_of(texts: Sequence[str], head: str) -> np.ndarray:
    """float32 ``[n, 8]``, L2-normalised, different for every text and head."""
    digests = [hashlib.sha256(f"{head} {text}".encode()).digest()[:_DIM] for text in texts]
    return unit_rows(np.array([list(digest) for digest in digests], np.float32) - 127.5)


def make_index(kind: Kind, name: str, with_checksums: bool = True) -> Callable[[Path], Path]:
    """A maker of an index, that names one of its files."""

    def make(folder: Path) -> Path:
        texts = folder / "texts.txt"
        texts.write_text("\n".join(_TEXTS))
        out = folder / "index"
        student = cast(StudentEncoder, _Student())
        build_index(student, Path("/student"), texts, out, IndexOptions(kind))
        card = json.loads((out / CARD).read_text()) | {"source": "/texts.txt"}
        if not with_checksums:  # as format 1.0 has it
            del card["sha256"]
        (out / CARD).write_text(json.dumps(card, indent=2))
        return out / name

    return make


def search(path: Path) -> dict[str, Any]:
    """What an index says of itself, and rank, name and similarity of the five nearest of three of
    its items.
    """
    index = SearchIndex(path.parent)
    answers = [answer(cast(StudentEncoder, _Student()), index, text, 5) for text in _TEXTS[:3]]
    hits = [[[hit.rank, hit.item.text, hit.similarity] for hit in one.hits] for one in answers]
    return {"summary": json.loads(json.dumps(dataclasses.asdict(index.summary))), "hits": hits}


def is_unchanged(valid: Any, read: Any, path: Path) -> bool:
    """Whether what was found is what the valid index finds."""
    return is_same(read, valid)


def is_card_as_written(valid: dict[str, Any], read: dict[str, Any], path: Path) -> bool:
    """Whether the card is as JSON's own parser reads it, and the hits the valid index's where it
    names its heads.
    """
    summary, before = read["summary"], valid["summary"]
    asks_another_head = any(summary[name] != before[name] for name in ("modality", "uni_head"))
    same_hits = asks_another_head or is_same(read["hits"], valid["hits"])
    return same_hits and is_taken_from(
        summary, json_of(path), {"recall_of_exact": None, "sha256": {}}
    )


def are_items_as_written(valid: dict[str, Any], read: dict[str, Any], path: Path) -> bool:
    """Whether hits have the names on their lines; where a line holds no text, there is no hit."""
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    names = dict(zip(_TEXTS, map(_item, lines), strict=True))
    expected = []
    for hits in valid["hits"]:
        named = [[rank, names[text], similarity] for rank, text, similarity in hits]
        expected.append([hit for hit in named if hit[1] is not None])
    return is_same(read, {**valid, "hits": expected})


def _item(line: bytes) -> str | None:
    try:
        item = json.loads(line.decode(errors="replace"))
        item.encode()
    except (ValueError, RecursionError, AttributeError):
        return None
    return item if isinstance(item, str) else None


def are_hits_of_index(valid: dict[str, Any], read: dict[str, Any], path: Path) -> bool:
    """Of an index without checksums: hits may be others, but are items of it."""
    names = {text for hits in read["hits"] for _, text, _ in hits}
    return names <= set(_TEXTS) and is_same(read["summary"], valid["summary"])


_KINDS: tuple[Kind, ...] = ("flat", "hnsw", "ivf")
_CARD: tuple[Mutator, ...] = (*BYTE_MUTATORS, *(mutate_json,) * 8)
_LINES: tuple[Mutator, ...] = (*BYTE_MUTATORS, *(mutate_json_lines,) * 4)

TARGETS = (
    Target("index/card", make_index("flat", CARD), _CARD, search, is_card_as_written, weight=3),
    Target(
        "index/items", make_index("flat", ITEMS), _LINES, search, are_items_as_written, weight=3
    ),
    *(
        Target(f"index/{kind}", make_index(kind, "uni.faiss"), BYTE_MUTATORS, search, is_unchanged)
        for kind in _KINDS
    ),
    *(
        Target(
            f"index/{kind}-without-checksum",
            make_index(kind, "uni.faiss", with_checksums=False),
            BYTE_MUTATORS,
            search,
            are_hits_of_index,
        )
        for kind in _KINDS
    ),
)
