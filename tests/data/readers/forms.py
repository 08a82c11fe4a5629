"""The same forty messy pairs in every form that ``--dataset`` takes: five captions an image."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers import make_images

N_IMAGES = 8
N_CAPTIONS = 5
MESSY_CAPTIONS = (
    "A dog, two cats; and a | pipe",
    'She said "hello" , twice',
    "Ein Hund läuft über die Straße — schön",
    "犬が走る 🐕 #1",
    "it's 5 o'clock: {braces} [brackets] \\ backslash  two  spaces",
)

Pairs = list[tuple[str, str]]
Write = Callable[[Path], Any]


def make_pairs(folder: Path) -> Pairs:
    """Write the images; image name and caption of each pair, in order."""
    names = make_images(folder, N_IMAGES)
    # Names of every kind, in their sorted order.
    kinds = ["000 a.jpg", "001#b.jpg", "002-ü.jpg", "003.x.jpg"]
    for kind, name in zip(kinds, names, strict=False):
        (folder / name).rename(folder / kind)
    names[: len(kinds)] = kinds
    pairs = []
    for row, name in enumerate(names):
        for number, words in enumerate(MESSY_CAPTIONS):
            # Words that the tests' tokeniser knows.
            pairs.append((name, f"{words} picture number {row}, version {number}"))
    return pairs


def captions_by_name(pairs: Pairs) -> dict[str, list[str]]:
    """The captions of each image."""
    captions: dict[str, list[str]] = {}
    for name, caption in pairs:
        captions.setdefault(name, []).append(caption)
    return captions


def _write_csv(path: Path, header: list[str], rows: list[list[Any]], separator: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerows([header, *rows])
    return path


def _separated(name: str, header: list[str], separator: str = ",") -> Write:
    def write(folder: Path) -> Path:
        rows = [list(pair) for pair in make_pairs(folder)]
        return _write_csv(folder / name, header, rows, separator)

    return write


def _numbered_columns(folder: Path) -> Path:
    header = ["image", *(f"caption_{number}" for number in range(N_CAPTIONS))]
    rows = [[name, *captions] for name, captions in captions_by_name(make_pairs(folder)).items()]
    return _write_csv(folder / "wide.csv", header, rows)


def _json_lines(folder: Path, name: str, entries: list[dict[str, Any]]) -> Path:
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def _pairs_jsonl(folder: Path) -> Path:
    entries = [{"image": name, "caption": caption} for name, caption in make_pairs(folder)]
    return _json_lines(folder, "pairs.jsonl", entries)


def _entries(pairs: Pairs) -> list[dict[str, Any]]:
    return [
        {"image": name, "caption": captions} for name, captions in captions_by_name(pairs).items()
    ]


def _lists_jsonl(folder: Path) -> Path:
    return _json_lines(folder, "pairs.jsonl", _entries(make_pairs(folder)))


def _write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _albef(folder: Path) -> Path:
    return _write_json(folder / "mine_train.json", _entries(make_pairs(folder)))


def _coco(folder: Path) -> Path:
    pairs = make_pairs(folder)
    names = list(captions_by_name(pairs))
    images = [{"id": 1000 + row, "file_name": name} for row, name in enumerate(names)]
    annotations = []
    for number, (name, caption) in enumerate(pairs):
        image_id = 1000 + names.index(name)
        annotations.append({"id": number, "image_id": image_id, "caption": caption})
    content = {"info": {}, "images": images, "annotations": annotations}
    return _write_json(folder / "captions_train2017.json", content)


def _karpathy(folder: Path) -> Path:
    images = []
    for name, captions in captions_by_name(make_pairs(folder)).items():
        sentences = [{"raw": caption} for caption in captions]
        images.append({"filename": name, "split": "train", "sentences": sentences})
    return _write_json(folder / "dataset_mine.json", {"images": images, "dataset": "mine"})


def _flickr_tokens(folder: Path) -> Path:
    pairs = make_pairs(folder)
    lines = []
    for number, (name, caption) in enumerate(pairs):
        lines.append(f"{name}#{number % N_CAPTIONS}\t{caption}")
    path = folder / "results_20130124.token"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = list(captions_by_name(pairs))
    (folder / "flickr30k_train.txt").write_text("\n".join(names), encoding="utf-8")
    return path


def _imagefolder(name: str) -> Write:
    def write(folder: Path) -> Path:
        pairs = make_pairs(folder / "train")
        entries = [{"file_name": image, "text": caption} for image, caption in pairs]
        if name.endswith(".jsonl"):
            _json_lines(folder / "train", name, entries)
        elif name.endswith(".csv"):
            _write_csv(folder / "train" / name, ["file_name", "text"], [list(p) for p in pairs])
        else:
            _frame(entries).to_parquet(folder / "train" / name)
        return folder

    return write


def _sidecars(suffix: str) -> Write:
    def write(folder: Path) -> Path:
        for name, captions in captions_by_name(make_pairs(folder)).items():
            content = "\n".join(captions)
            if suffix == ".json":
                content = json.dumps({"caption": captions, "width": 3})
            (folder / name).with_suffix(suffix).write_text(content, encoding="utf-8")
        return folder

    return write


def _frame(entries: list[dict[str, Any]]) -> Any:
    import pandas

    return pandas.DataFrame(entries)


def _path_parquet(folder: Path) -> Path:
    _frame(_entries(make_pairs(folder))).to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def _entries_with_bytes(folder: Path, with_path: bool) -> list[dict[str, Any]]:
    entries = _entries(make_pairs(folder / "pictures"))
    for entry in entries:
        content = (folder / "pictures" / entry["image"]).read_bytes()
        if with_path:
            entry["image"] = {"bytes": content, "path": entry["image"]}
        else:
            entry["image"] = content
    return entries


def _bytes_parquet(with_path: bool) -> Write:
    def write(folder: Path) -> Path:
        path = folder / "train-00000-of-00001.parquet"
        _frame(_entries_with_bytes(folder, with_path)).to_parquet(path)
        return path

    return write


def _hub_dataset(folder: Path) -> Any:
    import datasets

    entries = _entries_with_bytes(folder, with_path=True)
    features = datasets.Features(
        {"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))}
    )
    return datasets.Dataset.from_list(entries, features=features)


def _saved(folder: Path) -> Path:
    _hub_dataset(folder).save_to_disk(folder / "saved")
    return folder / "saved"


def _dataset_dict(folder: Path) -> Any:
    import datasets

    return datasets.DatasetDict({"train": _hub_dataset(folder)})


def _saved_dict(folder: Path) -> Path:
    _dataset_dict(folder).save_to_disk(folder / "saved")
    return folder / "saved"


def _parquet_folder(folder: Path) -> Path:
    (folder / "repository" / "data").mkdir(parents=True)
    _hub_dataset(folder).to_parquet(folder / "repository/data/train-00000-of-00001.parquet")
    return folder / "repository"


def _rows(folder: Path) -> list[dict[str, Any]]:
    pairs = make_pairs(folder)
    return [{"image": str(folder / name), "caption": caption} for name, caption in pairs]


FILE_FORMS: dict[str, Write] = {
    "csv": _separated("pairs.csv", ["image", "caption"]),
    "csv-header-in-any-case": _separated("pairs.csv", ["Image Path", "Caption"]),
    "csv-semicolons": _separated("pairs.csv", ["file_name", "text"], ";"),
    "open_clip-tsv": _separated("train.tsv", ["filepath", "title"], "\t"),
    "kaggle-captions.txt": _separated("captions.txt", ["image", "caption"]),
    "pipes": _separated("results.csv", ["image_name", "comment"], "|"),
    "numbered-captions": _numbered_columns,
    "jsonl": _pairs_jsonl,
    "jsonl-lists": _lists_jsonl,
    "albef": _albef,
    "coco-captions": _coco,
    "karpathy": _karpathy,
    "flickr-tokens": _flickr_tokens,
    "imagefolder-csv": _imagefolder("metadata.csv"),
    "imagefolder-jsonl": _imagefolder("metadata.jsonl"),
    "imagefolder-parquet": _imagefolder("metadata.parquet"),
    "sidecars-txt": _sidecars(".txt"),
    "sidecars-caption": _sidecars(".caption"),
    "sidecars-json": _sidecars(".json"),
    "parquet-paths": _path_parquet,
    "parquet-structs": _bytes_parquet(with_path=True),
    "parquet-bytes": _bytes_parquet(with_path=False),
    "parquet-folder": _parquet_folder,
    "datasets-saved": _saved,
    "datasets-saved-splits": _saved_dict,
}
MEMORY_FORMS: dict[str, Write] = {
    "rows": _rows,
    "rows-pictures": lambda folder: _entries_with_bytes(folder, with_path=True),
    "pandas": lambda folder: _frame(_rows(folder)),
    "pandas-pictures": lambda folder: _frame(_entries_with_bytes(folder, with_path=False)),
    "datasets": _hub_dataset,
    "datasets-splits": _dataset_dict,
}
