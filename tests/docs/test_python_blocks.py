"""The Python in README and docs runs as it is printed, on small data of the names that it has."""

import shutil
from pathlib import Path

import pandas
import pytest
import torch
from torch import nn

import cusa
from tests.helpers import (
    add_teacher,
    make_images,
    make_pairs,
    make_tiny_clip,
    run_ok,
    settings,
    unit_rows,
)

ROOT = Path(cusa.__file__).parent.parent
DIM = 8


class FourHeads(nn.Module):
    """A model as README's loop has it: features of image and text, and of the uni-modal heads."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(4, DIM) for _ in range(4)])

    def forward(self, images, texts):
        inputs = (images, texts, images, texts)
        return [head(features) for head, features in zip(self.heads, inputs, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stores, a trained student and files, where the blocks expect them."""
    folder = tmp_path_factory.mktemp("blocks")
    dataset = cusa.load_dataset(make_pairs(folder / "pairs", n=110, n_val=4, captions=1))
    store = folder / "data" / "coco_teachers.h5"
    store.parent.mkdir()
    rows = {split: unit_rows(len(images), DIM, seed=0) for split, images in dataset.splits.items()}
    for teacher, modality in (("unicom", "image"), ("mpnet", "text")):
        add_teacher(store, dataset, teacher, settings(modality, DIM), rows, shard_rows=64)
    clip = make_tiny_clip(folder / "clip")
    run = ("--embeddings", store, "--student", clip, "--run-dir", folder / "runs" / "coco")
    run_ok("train", *run, "--epochs", 1, "--batch-size", 64, "--set", f"student.embed_dim={DIM}")
    pictures = make_images(folder / "photos", 12)
    for name in pictures:
        (folder / "photos" / name).with_suffix(".txt").write_text("A dog.\nA cat.\n")
    shutil.copy(folder / "photos" / "000.jpg", folder / "photos" / "a.jpg")
    (folder / "photos" / "a.txt").write_text("A dog.\n")
    shutil.copy(folder / "photos" / "000.jpg", folder / "beach.jpg")
    pairs = [f"photos/{name},A dog.\n" for name in pictures]
    (folder / "mine.csv").write_text("photo,words\n" + "".join(pairs))
    return folder


@pytest.fixture
def names(folder, monkeypatch):
    """The names that a block takes from the reader's own code."""
    monkeypatch.chdir(folder)
    batch = (torch.randn(4, 4), torch.randn(4, 4), [0, 1, 2, 3])
    frame = pandas.DataFrame({"image": ["photos/a.jpg"], "caption": ["A dog."]})
    return {"model": FourHeads(), "loader": [batch, batch], "frame": frame, "cusa": cusa}


def _blocks(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    return [block.split("```")[0] for block in text.split("```python\n")[1:]]


def _block_with(word):
    """The block of the README that has a word."""
    (block,) = [block for block in _blocks("README.md") if word in block]
    return block


@pytest.mark.parametrize("page", ["docs/data.md", "docs/FORMAT.md"])
def test_blocks_run(page, names):
    blocks = _blocks(page)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def test_the_stages_of_the_readme_end_in_a_report(names, capsys):
    exec(_block_with("cusa.precompute"), names)
    assert Path(capsys.readouterr().out.strip()).name == "report.html"


def test_the_loop_of_the_readme_trains_the_model_and_the_temperatures(names):
    before = [parameter.clone() for parameter in names["model"].parameters()]
    exec(_block_with("CUSALoss"), names)
    for old, new in zip(before, names["model"].parameters(), strict=True):
        assert not torch.equal(old, new)
    learnable = [
        parameter for parameter in names["loss_fn"].parameters() if parameter.requires_grad
    ]
    assert learnable
    assert all(parameter.grad is not None for parameter in learnable)
    assert names["terms"].total.isfinite()


def test_the_student_of_the_readme_embeds_pictures_and_texts(names):
    exec(_block_with("load_student"), names)
    assert names["image_embeddings"].shape == names["text_embeddings"].shape == (1, DIM)
    assert names["similarities"].shape == (1, 1)
