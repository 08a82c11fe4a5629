"""COCO's test protocols: 5K, 1K, and the ground truths of ECCV Caption, CxC and plausible matches (PMRP).

ECCV Caption: Chun et al., ECCV 2022. CxC: Parekh et al., EACL 2021. PMRP: Chun et al., CVPR 2021. All are ranked
in full: the published CUSA script passes 50 items per query, too few for 1K.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.errors import FileFormatError, SettingError
from cusa.data.foreign.npy import open_npy
from cusa.data.parsing import read_json
from cusa.data.records import SplitView, csr
from cusa.eval.metrics.per_query import Rankings, rank_all
from cusa.eval.metrics.ranks import RankBounds, join_bounds, rank_bounds, two_way_rank_bounds

Way = Literal["i2t", "t2i"]
# What the protocols report that have metrics of their own; the others report recalls.
PROTOCOL_METRICS = {"eccv": ("map_at_r", "r_precision", "r1"), "pmrp": ("r_precision",)}
PLAUSIBLE = ("pm_image_to_caption.json", "pm_caption_to_image.json")
IMAGES, CAPTIONS_PER_IMAGE, FOLDS = 5_000, 5, 5


@dataclass(frozen=True)
class Relevance:
    """A ground truth of one direction, by position among the test's images and captions.

    Attributes:
        queries: int64 ``[q]``.
        indptr: int64 ``[q + 1]``.
        indices: int64: relevant candidates of each query.
        n_relevant: int64 ``[q]``: how many there are, those included that are not among the candidates.
    """

    queries: np.ndarray
    indptr: np.ndarray
    indices: np.ndarray
    n_relevant: np.ndarray


@dataclass(frozen=True)
class CocoTest:
    """The 5,000 images and 25,000 captions of the test, in its order.

    Attributes:
        images: int64 ``[5000]``: positions among the embeddings.
        captions: int64 ``[25000]``: same.
        caption_image: int64 ``[25000]``: index into ``images``.
        truths: Ground truth by ``"eccv"``, ``"cxc"``, ``"pmrp"`` and direction; those that are there.
    """

    images: np.ndarray
    captions: np.ndarray
    caption_image: np.ndarray
    truths: Mapping[str, Mapping[Way, Relevance]]


class Judgements:
    """Which captions and images of COCO's test belong together; each file is read once.

    With the ``eccv`` extra: ECCV Caption's list of ids, its ground truth and that of CxC.

    Args:
        pmrp: Folder of the two files of plausible matches, if given.
    """

    def __init__(self, pmrp: Path | None = None) -> None:
        self.pmrp = pmrp

    @cached_property
    def test_ids(self) -> list[str] | None:
        """ECCV Caption's 25,000 caption ids, in its order; ``None`` without the extra.

        Raises:
            FileFormatError: If the file is damaged.
        """
        folder = _package_data()
        return (
            None
            if folder is None
            else open_npy(folder / "coco_test_ids.npy").astype(str).ravel().tolist()
        )

    @cached_property
    def files(self) -> Mapping[str, Mapping[Way, tuple[Path, dict[str, list[str]]]]]:
        """By ground truth and direction: file, and the ids of each query's relevant candidates.

        Raises:
            CusaError: If a file is missing or malformed, or plausible matches are given without the
                extra.
        """
        folder = _package_data()
        paths: dict[str, tuple[Path, Path]] = {}
        if folder is not None:
            for name in ("eccv", "cxc"):
                paths[name] = (
                    folder / f"{name}_image_to_caption.json",
                    folder / f"{name}_caption_to_image.json",
                )
        if self.pmrp is not None:
            if folder is None:
                message = "--pmrp needs the list of COCO's test ids: pip install 'cusa[eccv]'"
                raise SettingError(message, name="--pmrp")
            paths["pmrp"] = self.pmrp / PLAUSIBLE[0], self.pmrp / PLAUSIBLE[1]
        return {
            name: {"i2t": (i2t, read_judgements(i2t)), "t2i": (t2i, read_judgements(t2i))}
            for name, (i2t, t2i) in paths.items()
        }


def coco_test(
    embeddings: SplitEmbeddings, split: SplitView, dataset: str, judgements: Judgements
) -> CocoTest | None:
    """The test's items among embeddings; ``None`` if they are of another data set, or not all there.

    With the ``eccv`` extra, the items are those of its id list, whatever the split's order. Without it, those of a
    split ``test`` of the data set ``coco`` with 5,000 images: the first five captions of each, in the split's order.

    Args:
        embeddings: Embeddings of the split.
        split: The split, with COCO's ids of images and captions (Karpathy's json has them).
        dataset: Name of the data set.
        judgements: Which belong together.

    Raises:
        CusaError: If plausible matches are given, and a file is missing or malformed, or the ids do
            not fit.
    """
    if judgements.test_ids is None:
        items = _by_order(embeddings, split, dataset)
    else:
        caption_at = {
            split.caption_ids[row]: i for i, row in enumerate(embeddings.text_rows.tolist())
        }
        items = _by_ids([caption_at.get(i, -1) for i in judgements.test_ids], embeddings)
    if items is None:
        if judgements.pmrp is not None:
            message = "--pmrp goes with COCO's 5,000 test images under COCO's ids (Karpathy's json)"
            raise SettingError(message, name="--pmrp")
        return None
    images, captions, caption_image = items
    image_index = {
        split.image_ids[row]: n for n, row in enumerate(embeddings.image_rows[images].tolist())
    }
    caption_index = {
        split.caption_ids[row]: n for n, row in enumerate(embeddings.text_rows[captions].tolist())
    }
    sides = {"i2t": (image_index, caption_index), "t2i": (caption_index, image_index)}
    truths: dict[str, dict[Way, Relevance]] = {}
    for name, ways in judgements.files.items():
        truths[name] = {
            way: _relevance(truth, *sides[way], path) for way, (path, truth) in ways.items()
        }
    return CocoTest(images, captions, caption_image, truths)


def rank_coco(
    images: np.ndarray, texts: np.ndarray, test: CocoTest
) -> dict[str, dict[str, Rankings]]:
    """Rankings by protocol and direction: ``coco_5k``, ``coco_1k`` (its five folds one after the other), the truths.

    Args:
        images: float ``[n_images, d]``: a split's image embeddings.
        texts: float ``[n_captions, d]``: its caption embeddings.
        test: The test's items among them.
    """
    images, texts = images[test.images], texts[test.captions]
    image_of = test.caption_image
    protocols = {
        "coco_5k": _ranked(
            two_way_rank_bounds(images, texts, image_of), len(images), len(texts), image_of
        )
    }
    size = len(images) // FOLDS
    folds, captions = [], []
    for start in range(0, len(images), size):
        mine = np.flatnonzero((image_of >= start) & (image_of < start + size))
        folds.append(
            two_way_rank_bounds(images[start : start + size], texts[mine], image_of[mine] - start)
        )
        captions.append(mine)
    i2t, t2i = (join_bounds([fold[way] for fold in folds]) for way in (0, 1))
    protocols["coco_1k"] = _ranked(
        (i2t, t2i), size, len(texts) // FOLDS, image_of[np.concatenate(captions)]
    )
    for name, truth in test.truths.items():
        protocols[name] = {}
        for way, of in truth.items():
            queries, candidates = (images, texts) if way == "i2t" else (texts, images)
            parts = queries[of.queries], candidates, of.indptr, of.indices
            if name == "cxc":
                ranked = Rankings(rank_bounds(*parts), len(candidates))
            else:
                ranked = rank_all(*parts, n_relevant=of.n_relevant)
            protocols[name][way] = (
                ranked if way == "i2t" else replace(ranked, clusters=image_of[of.queries])
            )
    return protocols


def _ranked(
    bounds: tuple[RankBounds, RankBounds], n_images: int, n_texts: int, image_of: np.ndarray
) -> dict[str, Rankings]:
    return {
        "i2t": Rankings(bounds[0], n_texts),
        "t2i": Rankings(bounds[1], n_images, clusters=image_of),
    }


def _by_ids(
    captions: Sequence[int], embeddings: SplitEmbeddings
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    positions = np.asarray(captions, np.int64)
    if (positions < 0).any():
        return None
    of = embeddings.caption_image[positions]
    if (of < 0).any():
        return None
    images, first, index = np.unique(of, return_index=True, return_inverse=True)
    order = np.argsort(first)  # images by first appearance
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return images[order], positions, place[index]


def _by_order(
    embeddings: SplitEmbeddings, split: SplitView, dataset: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    of = embeddings.caption_image
    n = len(embeddings.image_rows)
    if (dataset, split.name, n) != ("coco", "test", IMAGES):
        return None
    order = np.argsort(of, kind="stable")
    starts = np.searchsorted(of[order], np.arange(n))
    within = np.arange(len(order)) - starts[of[order]]
    captions = order[(of[order] >= 0) & (within < CAPTIONS_PER_IMAGE)]
    return (
        (np.arange(n), captions, of[captions]) if len(captions) == n * CAPTIONS_PER_IMAGE else None
    )


def _package_data() -> Path | None:
    """The ``eccv`` extra's files. The package itself is not imported: it warns, and its code is not needed."""
    spec = importlib.util.find_spec("eccv_caption")
    return (
        Path(spec.submodule_search_locations[0]) / "data"
        if spec and spec.submodule_search_locations
        else None
    )


def read_judgements(path: Path) -> dict[str, list[str]]:
    """Read a file of judgements: of each query, the ids of its relevant candidates.

    Raises:
        FileFormatError: If it is missing, or no JSON object of lists of ids.
    """
    if not path.is_file():
        raise FileFormatError(
            f"{path} does not exist; --pmrp takes the folder of {' and '.join(PLAUSIBLE)} (eccv_caption's README says "
            "where they are)",
            path=path,
        )
    content = read_json(path)
    wrong = "" if isinstance(content, dict) and content else "all of it"
    if not wrong:
        wrong = next((query for query, ids in content.items() if not _are_ids(ids)), "")
    if wrong:
        raise FileFormatError(
            f"{path}: expected an object of lists of ids, one per query (wrong: {wrong}); download it again",
            path=path,
            location=wrong,
        )
    return {query: [str(i) for i in ids] for query, ids in content.items()}


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(i, (str, int)) and not isinstance(i, bool) for i in value
    )


def _relevance(
    truth: Mapping[str, Sequence[str]],
    queries: Mapping[str, int],
    candidates: Mapping[str, int],
    path: Path,
) -> Relevance:
    unknown = [q for q in truth if q not in queries]
    if unknown:
        raise FileFormatError(
            f"{path}: {len(unknown)} queries are not among COCO's test ids, {unknown[0]} the first",
            path=path,
            location=unknown[0],
        )
    wanted = [dict.fromkeys(ids) for ids in truth.values()]
    rows = [np.array([candidates[i] for i in ids if i in candidates], np.int64) for ids in wanted]
    return Relevance(
        np.array([queries[q] for q in truth], np.int64),
        *csr(rows),
        np.array([len(ids) for ids in wanted], np.int64),
    )
