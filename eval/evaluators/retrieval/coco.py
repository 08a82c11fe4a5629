"""COCO's test protocols: 5K, 1K, and the ground truths of ECCV Caption, CxC and PMRP.

ECCV Caption: Chun et al., ECCV 2022. CxC: Parekh et al., EACL 2021. PMRP (plausible matches): Chun
et al., CVPR 2021. All use full rankings; the published CUSA script passes 50 items per query, which
are too few for 1K.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cusa.data.embeddings import SplitItems
from cusa.data.errors import FileFormatError, SettingError
from cusa.data.foreign.npy import open_npy
from cusa.data.parsing import read_json
from cusa.data.records import SplitView, csr
from cusa.eval.metrics.per_query import Rankings
from cusa.eval.metrics.ranks import RankBounds, join_bounds
from cusa.eval.metrics.relevance import group_members
from cusa.eval.metrics.similarities import Direction, Similarities

# Metrics of the protocols that have their own; the other protocols report recalls.
PROTOCOL_METRICS = {"eccv": ("map_at_r", "r_precision", "r1"), "pmrp": ("r_precision",)}
PLAUSIBLE = ("pm_image_to_caption.json", "pm_caption_to_image.json")
IMAGES, CAPTIONS_PER_IMAGE, FOLDS = 5_000, 5, 5


@dataclass(frozen=True)
class CocoRelevance:
    """A ground truth of one direction; positions are among the test's images and captions.

    Attributes:
        queries: int64 ``[q]``: position of each query.
        indptr: int64 ``[q + 1]``.
        indices: int64; the relevant candidates of the i-th of these queries are
            ``indices[indptr[i]:indptr[i + 1]]``.
        n_relevant: int64 ``[q]``: number of relevant items of each query, including those that are
            not among the candidates.
    """

    queries: np.ndarray
    indptr: np.ndarray
    indices: np.ndarray
    n_relevant: np.ndarray


@dataclass(frozen=True)
class CocoTest:
    """The images and captions of COCO's test among a model's embeddings, in the test's order.

    Attributes:
        images: int64 ``[5000]``: position of each image among the image embeddings.
        captions: int64 ``[25000]``: position of each caption among the text embeddings.
        caption_image: int64 ``[25000]``: index into ``images`` of each caption's image.
        truths: The available ground truths by name (``"eccv"``, ``"cxc"``, ``"pmrp"``) and
            direction.
    """

    images: np.ndarray
    captions: np.ndarray
    caption_image: np.ndarray
    truths: Mapping[str, Mapping[Direction, CocoRelevance]] = field(default_factory=dict)


class TruthFile(NamedTuple):
    """The path of a ground truth's file, and its content: relevant ids by the id of the query."""

    path: Path
    relevant_ids: Mapping[str, Sequence[str]]


class CocoTruths:
    """Ground truths of COCO's test, each file of which is read once.

    The ``eccv`` extra provides ECCV Caption's list of ids, its ground truth and that of CxC.

    Args:
        pmrp: Folder of the two files of plausible matches, or ``None``.
    """

    def __init__(self, pmrp: Path | None = None) -> None:
        self.pmrp = pmrp

    @cached_property
    def test_ids(self) -> list[str] | None:
        """ECCV Caption's 25,000 caption ids, in its order; ``None`` without the ``eccv`` extra.

        Raises:
            FileFormatError: If the file is damaged.
        """
        folder = _package_data()
        if folder is None:
            return None
        return open_npy(folder / "coco_test_ids.npy").astype(str).ravel().tolist()

    @cached_property
    def files(self) -> Mapping[str, tuple[TruthFile, TruthFile]]:
        """The files of each ground truth: image to caption, and caption to image.

        Raises:
            CusaError: If a file is missing or malformed, or plausible matches are given without the
                ``eccv`` extra.
        """
        folder = _package_data()
        if folder is None:
            if self.pmrp is not None:
                message = "--pmrp needs the list of COCO's test ids: pip install 'cusa[eccv]'"
                raise SettingError(message, name="pmrp")
            return {}
        files: dict[str, tuple[TruthFile, TruthFile]] = {}
        for name in ("eccv", "cxc"):
            image_to_caption = _truth_file(folder / f"{name}_image_to_caption.json")
            files[name] = image_to_caption, _truth_file(folder / f"{name}_caption_to_image.json")
        if self.pmrp is not None:
            image_to_caption = _truth_file(self.pmrp / PLAUSIBLE[0])
            files["pmrp"] = image_to_caption, _truth_file(self.pmrp / PLAUSIBLE[1])
        return files


def _truth_file(path: Path) -> TruthFile:
    return TruthFile(path, read_relevant_ids(path))


def coco_test(
    items: SplitItems,
    split: SplitView,
    dataset: str,
    ground_truths: CocoTruths,
) -> CocoTest | None:
    """Find the items of COCO's test among items.

    With the ``eccv`` extra, they are the items of its id list, whatever the split's order. Without
    it, they are the 5,000 images of ``coco``'s split ``test`` with the first five captions of each.

    Args:
        items: The images and captions of the split that a model has embedded or scored.
        split: The split, with COCO's ids of images and captions, as Karpathy's json has them.
        dataset: Name of the data set.
        ground_truths: The ground truths to translate.

    Returns:
        The items; ``None`` if the split is of another data set, or some of them are missing.

    Raises:
        CusaError: If a file of a ground truth is missing or malformed or has unknown ids, or
            plausible matches are given for a split that is not COCO's test.
    """
    if ground_truths.test_ids is None:
        test = _items_by_order(items, split, dataset)
    else:
        test = _items_by_id(items, split, ground_truths.test_ids)
    if test is None:
        if ground_truths.pmrp is not None:
            message = "--pmrp goes with COCO's 5,000 test images under COCO's ids (Karpathy's json)"
            raise SettingError(message, name="pmrp")
        return None

    images = _index_of_id(split.image_ids, items.image_rows[test.images])
    captions = _index_of_id(split.caption_ids, items.text_rows[test.captions])
    truths: dict[str, dict[Direction, CocoRelevance]] = {}
    for name, (i2t, t2i) in ground_truths.files.items():
        truths[name] = {
            "i2t": _relevance(i2t, images, captions),
            "t2i": _relevance(t2i, captions, images),
        }
    return replace(test, truths=truths)


def _index_of_id(
    ids: Sequence[str],
    rows: np.ndarray,
) -> dict[str, int]:
    """Map the ids of some of a split's rows to their index among these rows."""
    return {ids[row]: index for index, row in enumerate(rows.tolist())}


def rank_coco(
    similarities: Similarities,
    test: CocoTest,
) -> dict[str, dict[str, Rankings]]:
    """Rank COCO's test by every protocol, in both directions.

    Args:
        similarities: Those of a split's images and captions.
        test: The items of the test among them.

    Returns:
        Rankings by protocol and direction: ``coco_5k``, ``coco_1k`` (its five folds concatenated),
        and each ground truth of the test.
    """
    of_test = similarities.select(test.images, test.captions)
    caption_image = test.caption_image
    whole_test = of_test.rank_both_ways(caption_image)
    n_images, n_captions = of_test.n_images, of_test.n_captions
    rankings = {
        "coco_5k": _both_directions(whole_test, n_images, n_captions, caption_image),
        "coco_1k": _rank_folds(of_test, caption_image),
    }
    for name, truth in test.truths.items():
        by_caption = _rank_truth(of_test, "t2i", truth["t2i"], name)
        clusters = caption_image[truth["t2i"].queries]
        rankings[name] = {
            "i2t": _rank_truth(of_test, "i2t", truth["i2t"], name),
            "t2i": replace(by_caption, clusters=clusters),
        }
    return rankings


def _rank_folds(
    of_test: Similarities,
    caption_image: np.ndarray,
) -> dict[str, Rankings]:
    """Rank within each fold of 1,000 images, and concatenate the folds."""
    size = of_test.n_images // FOLDS
    folds, clusters = [], []
    for start in range(0, of_test.n_images, size):
        images = np.arange(start, start + size)
        captions = np.flatnonzero((caption_image >= start) & (caption_image < start + size))
        fold_clusters = caption_image[captions]
        fold = of_test.select(images, captions)
        folds.append(fold.rank_both_ways(fold_clusters - start))
        clusters.append(fold_clusters)
    i2t, t2i = zip(*folds, strict=True)
    bounds = join_bounds(i2t), join_bounds(t2i)
    return _both_directions(bounds, size, of_test.n_captions // FOLDS, np.concatenate(clusters))


def _rank_truth(
    of_test: Similarities,
    direction: Direction,
    truth: CocoRelevance,
    name: str,
) -> Rankings:
    """Rank by a ground truth; CxC needs ranks alone, since it reports recalls."""
    n_candidates = of_test.n_captions
    if direction == "i2t":
        of_queries = of_test.select(images=truth.queries)
    else:
        n_candidates = of_test.n_images
        of_queries = of_test.select(captions=truth.queries)
    if name == "cxc":
        bounds = of_queries.rank_best(direction, truth.indptr, truth.indices)
        return Rankings(bounds, n_candidates)
    return of_queries.rank_all(direction, truth.indptr, truth.indices, truth.n_relevant)


def _both_directions(
    bounds: tuple[RankBounds, RankBounds],
    n_images: int,
    n_texts: int,
    caption_image: np.ndarray,
) -> dict[str, Rankings]:
    return {
        "i2t": Rankings(bounds[0], n_texts),
        "t2i": Rankings(bounds[1], n_images, clusters=caption_image),
    }


def _items_by_id(
    items: SplitItems,
    split: SplitView,
    test_ids: Sequence[str],
) -> CocoTest | None:
    """Find the test's items by ECCV Caption's list, with images in order of first appearance."""
    position_of_id = _index_of_id(split.caption_ids, items.text_rows)
    if not position_of_id.keys() >= set(test_ids):
        return None
    captions = np.array([position_of_id[caption_id] for caption_id in test_ids], np.int64)
    image_of_caption = items.caption_image[captions].tolist()
    index_of_image: dict[int, int] = {}
    for image in image_of_caption:
        index_of_image.setdefault(image, len(index_of_image))
    if -1 in index_of_image:
        return None
    caption_image = [index_of_image[image] for image in image_of_caption]
    return CocoTest(np.array(list(index_of_image)), captions, np.array(caption_image))


def _items_by_order(items: SplitItems, split: SplitView, dataset: str) -> CocoTest | None:
    """Take the first five captions of each image of COCO's test split."""
    caption_image = items.caption_image
    n_images = len(items.image_rows)
    if (dataset, split.name, n_images) != ("coco", "test", IMAGES):
        return None
    images = np.arange(n_images)
    members = group_members(caption_image, images)
    captions = np.concatenate([positions[:CAPTIONS_PER_IMAGE] for positions in members])
    if len(captions) != n_images * CAPTIONS_PER_IMAGE:
        return None
    return CocoTest(images, captions, caption_image[captions])


def _package_data() -> Path | None:
    """Return the folder of the ``eccv`` extra's files; ``None`` if it is not installed.

    The package is not imported, since its code is not needed, and it emits warnings.
    """
    spec = importlib.util.find_spec("eccv_caption")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "data"


def read_relevant_ids(path: Path) -> dict[str, list[str]]:
    """Read a file of a ground truth.

    Args:
        path: The file.

    Returns:
        The ids of the relevant candidates by the id of the query.

    Raises:
        FileFormatError: If it is missing, or not a JSON object of lists of ids.
    """
    if not path.is_file():
        raise FileFormatError(
            f"{path} does not exist; --pmrp takes the folder of {' and '.join(PLAUSIBLE)} "
            "(eccv_caption's README says where to get them)",
            path=path,
        )
    content = read_json(path)
    malformed = ["the whole file"]
    if isinstance(content, dict) and content:
        malformed = [query for query, ids in content.items() if not _are_ids(ids)]
    if malformed:
        raise FileFormatError(
            f"{path}: expected a JSON object with a list of ids for each query (malformed: "
            f"{malformed[0]}); download the file again",
            path=path,
            location=malformed[0],
        )
    return {query: list(map(str, ids)) for query, ids in content.items()}


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(item) in (str, int) for item in value)


def _relevance(
    file: TruthFile,
    query_index: Mapping[str, int],
    candidate_index: Mapping[str, int],
) -> CocoRelevance:
    """Convert a file's ids to positions among the test's items."""
    unknown = [query for query in file.relevant_ids if query not in query_index]
    if unknown:
        raise FileFormatError(
            f"{file.path}: {len(unknown)} queries are not among COCO's test ids, first "
            f"{unknown[0]}; get the file that belongs to COCO's test",
            path=file.path,
            location=unknown[0],
        )
    queries, rows, n_relevant = [], [], []
    for query, relevant_ids in file.relevant_ids.items():
        different_ids = dict.fromkeys(relevant_ids)
        positions = [candidate_index[item] for item in different_ids if item in candidate_index]
        queries.append(query_index[query])
        rows.append(np.array(positions, np.int64))
        n_relevant.append(len(different_ids))
    return CocoRelevance(np.array(queries), *csr(rows), np.array(n_relevant))
