"""Published sets that an evaluation reads: sentence similarity, CxC, judgements, images."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cusa.eval.evaluators.images.data import LabelledImages, load_image_set
from cusa.eval.evaluators.images.lists import read_annotations
from cusa.eval.evaluators.retrieval.coco import CocoTruths, read_relevant_ids
from cusa.eval.evaluators.sts.cxc import find_cxc
from cusa.eval.evaluators.sts.data import find_sts_tasks
from cusa.eval.search.sources import read_texts
from tests.eval.evaluators.images.test_image_sets import (
    annotations,
    make_cars_csv,
    make_cub,
    make_inaturalist,
    make_inshop,
    make_sop,
)
from tests.eval.tiny import make_cxc, make_sts
from tests.fuzz.harness import Target
from tests.fuzz.mutations import BYTE_MUTATORS, Mutator, mutate_json, mutate_npy, mutate_table
from tests.fuzz.readings import is_same, json_of

# --- lines and tables


def lines_of(path: Path) -> list[str]:
    """Lines of a text file as the published sets have them: ended by LF or CRLF."""
    lines = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def csv_rows(path: Path) -> list[list[str]]:
    """Rows of a comma-separated file that are not empty."""
    text = "".join(f"{line}\n" for line in lines_of(path))
    return [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]


def mutate_lines(content: bytes, rng: random.Random) -> bytes:
    """Remove, repeat, join, or swap lines, or change the blanks and the numbers of one."""
    lines = content.split(b"\n")
    number, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    change = rng.randrange(7)
    if change == 0:
        del lines[number]
    elif change == 1:
        lines.insert(other, lines[number])
    elif change == 2:
        lines[number], lines[other] = lines[other], lines[number]
    elif change == 3:
        lines[number] = lines[number].replace(
            rng.choice((b" ", b"\t", b",", b"/")), rng.choice((b"", b"  ", b"\t", b"|"))
        )
    elif change == 4:
        odd_numbers = (
            b"-1",
            b"0",
            b"1_0",
            b"1e3",
            b"9" * 30,
            b"nan",
            b"inf",
            b"\xd9\xa1",
            b"5.01",
            b" 2",
            b"",
        )
        lines[number] = re.sub(
            rb"\d+", rng.choice(odd_numbers), lines[number], count=rng.choice((0, 1))
        )
    elif change == 5:
        odd_lines = (
            b"",
            b" ",
            b"\t",
            b"\r",
            b"\xc2\x85",
            b"\xe2\x80\xa8",
            b"\0",
            b"a\tb",
            b"1 x",
            b'"',
        )
        lines.insert(number, rng.choice(odd_lines))
    else:
        lines[number] = (
            rng.choice((b"../", b"/", b"./", b"a/../../", b"\0", b'"', b"\xef\xbb\xbf"))
            + lines[number]
        )
    return b"\n".join(lines)


# --- sentence similarity


def make_sts_file(name: str) -> Callable[[Path], Path]:
    """A maker of three tasks, that names one of their files."""
    return lambda folder: make_sts(folder, pairs=6) / name


def read_tasks(path: Path) -> dict[str, Any]:
    """Pairs by task and subset, of the folder that the makers filled."""
    root = next(parent for parent in path.parents if (parent / "SICK").is_dir())
    pairs = {}
    for task in find_sts_tasks(root, allow_partial=True):
        for subset in task.subsets:
            columns = subset.first, subset.second, subset.gold.tolist()
            pairs[f"{task.name} {subset.name}"] = list(zip(*columns, strict=True))
    return pairs


class Columns(NamedTuple):
    """Where a table has both sentences and the score, and whether it has a header."""

    first: int
    second: int
    score: int
    header: int


def with_subset(
    name: str, pairs_of: Callable[[Path], list[Any]]
) -> Callable[[Any, Any, Path], bool]:
    """An oracle: one subset is as an independent reading has it, and all others are unchanged."""

    def agrees(valid: dict[str, Any], read: dict[str, Any], path: Path) -> bool:
        return is_same(read, {**valid, name: pairs_of(path)})

    return agrees


def pairs_of_year(path: Path) -> list[Any]:
    """Pairs of ``STS.input.*.txt`` with the scores of ``STS.gs.*.txt``; those without a score are
    left out.
    """
    inputs = path.with_name(path.name.replace(".gs.", ".input."))
    scores = lines_of(inputs.with_name(inputs.name.replace(".input.", ".gs.")))
    pairs = []
    for line, score in zip(lines_of(inputs), scores, strict=True):
        if score.strip():
            first, second = line.rstrip().split("\t")[:2]
            pairs.append((first.strip(), second.strip(), float(score)))
    return pairs


def pairs_of_table(columns: Columns) -> Callable[[Path], list[Any]]:
    """A reading of a tab-separated table."""

    def pairs_of(path: Path) -> list[Any]:
        rows = [line.split("\t") for line in lines_of(path) if line.strip()][columns.header :]
        pairs = []
        for row in rows:
            first, second = row[columns.first].strip(), row[columns.second].strip()
            pairs.append((first, second, float(row[columns.score])))
        return pairs

    return pairs_of


def pairs_by_header(*names: str) -> Callable[[Path], list[Any]]:
    """A reading of a table whose header names both sentences and the score."""

    def pairs_of(path: Path) -> list[Any]:
        header = [name.strip().strip('"').lower() for name in lines_of(path)[0].split("\t")]
        first, second, score = (header.index(name) for name in names)
        return pairs_of_table(Columns(first, second, score, 1))(path)

    return pairs_of


# --- CxC and judgements


def make_cxc_file(kind: str) -> Callable[[Path], Path]:
    """A maker of CxC's files, that names one."""
    return lambda folder: make_cxc(folder) / f"{kind}_test.csv"


def read_cxc(path: Path) -> dict[str, Any]:
    """Ids and scores by kind."""
    tasks = find_cxc(path.parent)
    return {
        kind: [list(task.first), list(task.second), task.gold.tolist()]
        for kind, task in tasks.items()
    }


def is_cxc_as_written(valid: dict[str, Any], read: dict[str, Any], path: Path) -> bool:
    """Whether one kind is as the csv module reads it, ids without leading zeros, and the others are
    unchanged.
    """
    header, *rows = csv_rows(path)
    names = [name.strip().strip('"').lower() for name in header]
    sides = [
        name
        for name in ("caption", "caption1", "image", "image1", "caption2", "image2")
        if name in names
    ]
    kind = path.name.removesuffix("_test.csv")
    first, second = (sides if kind != "sits" else ("caption", "image"))[:2]
    columns = [[_cxc_id(row[names.index(side)]) for row in rows] for side in (first, second)]
    scores = [float(row[names.index("agg_score")]) for row in rows]
    return is_same(read, {**valid, kind: [*columns, scores]})


def _cxc_id(text: str) -> int | str:
    if ":" in text:
        return int(text.rpartition(":")[2])
    digits = text.rpartition("_")[2].removesuffix(".jpg")
    return digits.lstrip("0") or "0"


_JUDGED = {"12": ["1", 2, "x"], "13": [], "14": [5, 5], "x": ["y"]}


def make_judgements(folder: Path) -> Path:
    """Plausible matches."""
    path = folder / "pm_image_to_caption.json"
    path.write_text(json.dumps(_JUDGED))
    return path


def are_judgements_as_written(valid: Any, read: dict[str, list[str]], path: Path) -> bool:
    """Whether ids are as JSON's own parser reads them, as texts."""
    return read == {query: [str(i) for i in ids] for query, ids in json_of(path).items()}


def make_eccv(folder: Path) -> Path:
    """A package of the name of ECCV Caption's, with its list of ids and judgements."""
    data = folder / "eccv_caption" / "data"
    data.mkdir(parents=True)
    (folder / "eccv_caption" / "__init__.py").touch()
    for name in ("eccv", "cxc"):
        for way in ("image_to_caption", "caption_to_image"):
            (data / f"{name}_{way}.json").write_text(json.dumps(_JUDGED))
    np.save(data / "coco_test_ids.npy", np.arange(100, 130))
    return data / "coco_test_ids.npy"


def read_eccv(path: Path) -> dict[str, Any]:
    """Ids and judgements of the package in whose folder the file lies."""
    sys.path.insert(0, str(path.parents[2]))
    importlib.invalidate_caches()
    try:
        ground_truths = CocoTruths()
        truths = {}
        for name, files in ground_truths.files.items():
            truths[name] = [file.relevant_ids for file in files]
        return {"ids": ground_truths.test_ids, "truths": truths}
    finally:
        sys.path.pop(0)


def are_ids_as_written(valid: dict[str, Any], read: dict[str, Any], path: Path) -> bool:
    """Whether the list is what numpy reads, as texts."""
    ids = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    return read["truths"] == valid["truths"] and read["ids"] == ids.astype(str).ravel().tolist()


# --- lists of images


class Listed(NamedTuple):
    """An image of a test set by the independent reading."""

    path: str
    label: int


def make_in(make: Callable[[Path], Path], name: str) -> Callable[[Path], Path]:
    """A maker of a data set in a folder of its own, that names one of its lists."""

    def make_list(folder: Path) -> Path:
        root = folder / "set"
        root.mkdir()
        make(root)
        return root / name

    return make_list


def root_of(path: Path) -> Path:
    """The data set's folder."""
    return next(parent for parent in path.parents if parent.name == "set")


def read_set(name: str) -> Callable[[Path], Any]:
    """A reader of a test set: path below the folder and class of queries and gallery."""

    def read(path: Path) -> Any:
        root = root_of(path)
        image_set = load_image_set(name, root, allow_partial=True)
        gallery = None if image_set.gallery is None else _plain(image_set.gallery, root)
        return [_plain(image_set.queries, root), gallery]

    return read


def _plain(images: LabelledImages, root: Path) -> list[Listed]:
    paths = [str(path.relative_to(root)) for path in images.paths]
    return [Listed(path, label) for path, label in zip(paths, images.labels.tolist(), strict=True)]


def as_listed(
    listed: Callable[[Path], tuple[Iterator[Listed], Iterator[Listed] | None]],
) -> Callable[[Any, Any, Path], bool]:
    """An oracle: the images that an independent reading lists, of those that are there."""

    def agrees(valid: Any, read: Any, path: Path) -> bool:
        root = root_of(path)

        def there(images: Iterator[Listed] | None) -> list[Listed] | None:
            if images is None:
                return None
            normal = [Listed(str(Path(image.path)), image.label) for image in images]
            # os.path's function takes any name; that of Path raises on a long one.
            return [image for image in normal if os.path.isfile(root / image.path)]

        return read == [there(images) for images in listed(root)]

    return agrees


def fields_of(path: Path, count: int) -> list[list[str]]:
    """Columns, separated by white space, of lines that are not blank; the last one
    takes the rest.
    """
    return [line.split(None, count - 1) for line in lines_of(path) if line.strip()]


def cub(root: Path) -> tuple[Iterator[Listed], None]:
    """The second half of the birds' classes."""
    labels = {
        int(number): int(label) for number, label in fields_of(root / "image_class_labels.txt", 2)
    }
    images = [(int(number), path.strip()) for number, path in fields_of(root / "images.txt", 2)]
    listed = [Listed(f"images/{path}", labels[number]) for number, path in images]
    return (image for image in listed if 101 <= image.label <= 200), None


def cars(root: Path) -> tuple[Iterator[Listed], None]:
    """The second half of the cars' classes; an image lies in a folder of its class."""
    listed = []
    for half in ("train", "test"):
        folder = root / "car_data" / "car_data"
        files = [path for path in (folder / half).rglob("*") if path.is_file()]
        places = {path.name: str(path.relative_to(root)) for path in files}
        lines = [line for line in lines_of(root / f"anno_{half}.csv") if line.strip()]
        for number, line in enumerate(lines):
            row = [cell.strip() for cell in line.split(",")]
            if number or row[-1] != "class":
                listed.append(
                    Listed(places.get(row[0], f"car_data/car_data/{half}/{row[0]}"), int(row[5]))
                )
    return (image for image in listed if 99 <= image.label <= 196), None


def sop(root: Path) -> tuple[Iterator[Listed], None]:
    """All of the test list."""
    rows = fields_of(root / "Ebay_test.txt", 4)[1:]
    return (Listed(row[3].strip(), int(row[1])) for row in rows), None


def inshop(root: Path) -> tuple[Iterator[Listed], Iterator[Listed]]:
    """Queries and gallery."""
    by_status: dict[str, list[Listed]] = {"train": [], "query": [], "gallery": []}
    for name, item, status in fields_of(root / "Eval" / "list_eval_partition.txt", 3)[2:]:
        image = Listed(f"Img/{name}", int(item.rpartition("_")[2]))
        by_status[status.strip()].append(image)
    return iter(by_status["query"]), iter(by_status["gallery"])


def inaturalist(root: Path) -> tuple[Iterator[Listed], None]:
    """A path per line; the last folder is the species."""
    split_list = root / "Inat_dataset_splits" / "Inaturalist_test_set1.txt"
    paths = [line.strip() for line in lines_of(split_list)]
    return (Listed(path, int(Path(path).parent.name)) for path in paths if path), None


# --- MATLAB files

_NAMES = ("00001.jpg", "00002.jpg", "a b.jpg")


def make_mat(folder: Path) -> Path:
    """Annotations of three cars."""
    rows = [(30, 52, 246, 147, 99 + number, name) for number, name in enumerate(_NAMES)]
    annotations(
        folder, "annos.mat", ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"), rows
    )
    return folder / "annos.mat"


def read_mat(path: Path) -> list[tuple[str, str]]:
    """Names and classes."""
    return read_annotations(path, "fname")


def are_annotations_in_file(valid: list[Any], read: list[Any], path: Path) -> bool:
    """Whether every name is written in the file; its classes are numbers in binary and
    may be any.
    """
    content = path.read_bytes()
    return all(_is_written(name, content) for name, _ in read)


def _is_written(name: str, content: bytes) -> bool:
    encodings = ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "latin-1")
    return (
        any(name.encode(encoding, "replace") in content for encoding in encodings)
        or not name.isascii()
    )


# --- texts of an index


def make_texts(folder: Path) -> Path:
    """A list of texts."""
    path = folder / "texts.txt"
    path.write_text("a dog\n\n  a red cat \nzwei Löwen\n\na dog\n")
    return path


def are_texts_as_written(valid: Any, read: tuple[list[str], int], path: Path) -> bool:
    """Whether texts are the lines of the file without white space around them."""
    text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    lines = [line.strip() for line in text.split("\n")]
    if not lines[-1]:
        lines.pop()
    texts = [line for line in lines if line]
    return read[0] == texts and read[1] in (len(lines) - len(texts), len(lines) - len(texts) + 1)


_LINES: tuple[Mutator, ...] = (*BYTE_MUTATORS, *(mutate_lines,) * 6)
_TABS: tuple[Mutator, ...] = (*_LINES, *(mutate_table("\t"),) * 4)
_COMMAS: tuple[Mutator, ...] = (*_LINES, *(mutate_table(","),) * 4)
_JSON: tuple[Mutator, ...] = (*BYTE_MUTATORS, *(mutate_json,) * 6)
_NPY: tuple[Mutator, ...] = (*BYTE_MUTATORS, *(mutate_npy,) * 6)

_YEAR = with_subset("STS12 MSRvid", pairs_of_year)
_BENCHMARK = with_subset("STSBenchmark test", pairs_of_table(Columns(5, 6, 4, 0)))
_SICK = with_subset(
    "SICKRelatedness test", pairs_by_header("sentence_a", "sentence_b", "relatedness_score")
)
_STS_FILES = (
    ("input", "STS/STS12-en-test/STS.input.MSRvid.txt", _TABS, _YEAR),
    ("scores", "STS/STS12-en-test/STS.gs.MSRvid.txt", _LINES, _YEAR),
    ("benchmark", "STS/STSBenchmark/sts-test.csv", _TABS, _BENCHMARK),
    ("sick", "SICK/SICK_test_annotated.txt", _TABS, _SICK),
)
_LISTS = (
    ("cub-images", make_cub, "images.txt", _LINES, "cub", cub),
    ("cub-labels", make_cub, "image_class_labels.txt", _LINES, "cub", cub),
    ("cub-classes", make_cub, "classes.txt", _LINES, "cub", cub),
    ("cars-csv", make_cars_csv, "anno_test.csv", _COMMAS, "cars", cars),
    ("sop", make_sop, "Ebay_test.txt", _LINES, "sop", sop),
    ("inshop", make_inshop, "Eval/list_eval_partition.txt", _LINES, "inshop", inshop),
    (
        "inaturalist",
        make_inaturalist,
        "Inat_dataset_splits/Inaturalist_test_set1.txt",
        _LINES,
        "inaturalist",
        inaturalist,
    ),
)

TARGETS = (
    *(
        Target(f"sts/{name}", make_sts_file(file), mutators, read_tasks, agrees, weight=3)
        for name, file, mutators, agrees in _STS_FILES
    ),
    *(
        Target(f"cxc/{kind}", make_cxc_file(kind), _COMMAS, read_cxc, is_cxc_as_written, weight=3)
        for kind in ("sts", "sis", "sits")
    ),
    Target(
        "judgements/pmrp",
        make_judgements,
        _JSON,
        read_relevant_ids,
        are_judgements_as_written,
        weight=3,
    ),
    Target("judgements/eccv-ids", make_eccv, _NPY, read_eccv, are_ids_as_written, weight=3),
    *(
        Target(
            f"images/{name}",
            make_in(make, file),
            mutators,
            read_set(set_name),
            as_listed(listed),
            weight=3,
        )
        for name, make, file, mutators, set_name, listed in _LISTS
    ),
    Target("images/mat", make_mat, BYTE_MUTATORS, read_mat, are_annotations_in_file),
    Target("index/texts", make_texts, _LINES, read_texts, are_texts_as_written, weight=3),
)
