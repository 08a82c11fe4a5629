"""The study: what controls and orders do to a batch, intervals, and going on after a kill."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import cusa
from cusa.cli.console import INTERRUPTED_STATUS
from cusa.data.store.reader import EmbeddingStore
from cusa.train.loader import Batch
from tests.helpers import make_store

BENCHMARKS = Path(cusa.__file__).parent.parent / "benchmarks"
# Five captions of each of four images, and of a fifth one three.
IMAGE_ROWS = np.repeat(np.arange(5), [5, 5, 5, 5, 3])


@pytest.fixture
def load(monkeypatch):
    """Loads a script as Python does that runs it: its neighbours can be imported."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (BENCHMARKS / f"{name}.py").exists():
            del sys.modules[name]


class FivePairs:
    """Pairs whose teacher rows are their numbers."""

    def __len__(self):
        return len(IMAGE_ROWS)

    def rows(self, numbers):
        return IMAGE_ROWS[numbers], np.arange(len(IMAGE_ROWS))[numbers]

    def __getitem__(self, numbers):
        images, captions = map(torch.from_numpy, self.rows(numbers))
        return Batch(images, captions, images[:, None].float(), captions[:, None].float(), images)


def test_permuted_labels_are_those_of_another_image_always_the_same(load):
    pairs = load("study_pairs").ControlledPairs(FivePairs(), "permuted", "both")
    numbers = np.random.default_rng(0).permutation(len(pairs))
    batch = pairs[numbers]
    label_images = batch.teacher_image[:, 0].long().numpy()
    assert (label_images != IMAGE_ROWS[numbers]).all()
    assert np.array_equal(batch.image_ids.numpy(), IMAGE_ROWS[numbers])
    label_captions = batch.teacher_text[:, 0].long().numpy()
    assert np.array_equal(IMAGE_ROWS[label_captions], label_images)
    label_of_image = dict(zip(IMAGE_ROWS[numbers].tolist(), label_images.tolist(), strict=True))
    assert [label_of_image[image] for image in IMAGE_ROWS[numbers]] == label_images.tolist()
    assert sorted(label_of_image.values()) == list(range(5))


def test_controls_know_nothing_but_the_pair_itself(load):
    controlled_pairs = load("study_pairs").ControlledPairs
    numbers = np.array([0, 1, 7])
    constant = controlled_pairs(FivePairs(), "constant", "both")[numbers]
    assert len(constant.teacher_image.unique()) == len(constant.teacher_text.unique()) == 1
    random = controlled_pairs(FivePairs(), "random", "both")
    image, text = random[numbers].teacher_image, random[numbers].teacher_text
    assert torch.equal(image[0], image[1])
    assert not torch.equal(image[0], image[2])
    assert not torch.equal(text[0], text[1])
    assert torch.equal(random[numbers[::-1].copy()].teacher_text, text.flip(0))
    alone = controlled_pairs(FivePairs(), "teachers", "text")[numbers]
    assert alone.teacher_image is None
    assert alone.teacher_text.flatten().tolist() == numbers.tolist()
    twice = controlled_pairs(FivePairs(), "teachers", "image twice")[numbers]
    assert torch.equal(twice.teacher_text, twice.teacher_image)


@pytest.mark.parametrize(
    ("kind", "k", "images_of_a_batch"), [("together", 5, 1), ("in turn", 5, 5), ("in turn", 4, 4)]
)
def test_orders_bring_captions_of_an_image_together_or_in_turn(load, kind, k, images_of_a_batch):
    image_rows = np.repeat(np.arange(20), 5)
    order = load("study_pairs").ImageOrder(
        len(image_rows), images_of_a_batch, 0, image_rows=image_rows, kind=kind, k=k
    )
    if kind == "together":
        order.batch_size = 5
    batches = np.stack(list(order))
    assert np.array_equal(np.sort(batches.ravel()), np.arange(len(image_rows)))
    assert {len(set(image_rows[batch])) for batch in batches} == {images_of_a_batch}
    order.first = 2
    assert np.array_equal(np.stack(list(order)), batches[2:])


def test_paired_differences_have_the_spread_of_queries_and_seeds(load):
    paired_difference = load("study_tables").paired_difference

    def row(seed, value, samples):
        return {"seed": seed, "figures": {"rsum": value}, "samples": {"rsum": samples}}

    noise = np.random.default_rng(0).normal(size=300)
    base = [row(seed, 10.0, (10 + noise).tolist()) for seed in range(3)]
    # The same queries: their noise drops out, and one seed leaves nothing to vary.
    assert paired_difference(base, [row(1, 12.0, (12 + noise).tolist())], "rsum") == (
        2.0,
        pytest.approx([2.0, 2.0]),
    )
    other = [row(seed, 12.0 + seed, (12 + seed + noise).tolist()) for seed in range(2)]
    mean, bounds = paired_difference(base, other, "rsum")
    assert (mean, bounds) == (2.5, pytest.approx([2.0, 3.0]))
    assert paired_difference(base, [row(9, 12.0, noise.tolist())], "rsum") is None


def test_a_study_goes_on_after_a_kill_and_repeats_no_run(load, tmp_path, monkeypatch):
    script, runs = load("flickr8k"), load("study_runs")
    taken = []

    def run(self, variant, seed):
        if len(taken) == 2:
            raise KeyboardInterrupt
        taken.append((variant, seed))
        return {"best_epoch": 1, "val_rsum": [1.0], "figures": {"rsum": 1.0}, "samples": {}}

    monkeypatch.setattr(runs.Study, "run", run)
    out = tmp_path / "out.json"
    store = make_store(tmp_path / "store")
    arguments = [str(store), "--experiments", "losses", "--out", str(out)]
    assert CliRunner().invoke(script.main, arguments).exit_code == INTERRUPTED_STATUS
    assert len(json.loads(out.read_text())["runs"]) == 2
    taken.clear()
    for _ in range(2):
        assert CliRunner().invoke(script.main, arguments, catch_exceptions=False).exit_code == 0
    assert len(taken) == 2
    settings = [run["settings"] for run in json.loads(out.read_text())["runs"]]
    assert settings == [list(v.settings) for v in script.EXPERIMENTS["losses"].values()]


def test_students_become_a_teacher_once(load, tmp_path, monkeypatch):
    script, runs = load("flickr8k"), load("study_runs")
    teacher = load("study_teachers").StudentTeacher(runs.Variant(), seeds=(7, 9))
    monkeypatch.setitem(script.TEACHERS, "two", teacher)
    variants = {
        "two": runs.Variant(measured="two"),
        "dr": load("study_variants").taught_alone("dr", "two"),
    }
    monkeypatch.setitem(script.EXPERIMENTS, "cross-modal rules", variants)
    students, train = [], runs.Study.train

    def counted(self, variant, seed):
        students.append(train(self, variant, seed))
        return students[-1]

    monkeypatch.setattr(runs.Study, "train", counted)
    path = make_store(tmp_path / "store")
    settings = ["--epochs", "1", "--set", "train.batch_size=8"]
    encoders = ["--image-encoder", "vision", "--text-encoder", "words"]
    arguments = [str(path), "--experiments", "cross-modal rules", *settings, *encoders]
    assert CliRunner().invoke(script.main, arguments, catch_exceptions=False).exit_code == 0
    assert [student.config.train.seed for student in students] == [7, 9, 0]

    store = EmbeddingStore(path)
    rows = runs.teacher_embeddings(store, "two", "val")
    towers = {"student": {"image_encoder": "vision", "text_encoder": "words"}}
    study = runs.Study(path, towers, "val", None)
    cosines = []
    for student in students[:2]:
        embeddings = study.encode(student, "val")
        cosines.append(embeddings.text["cross"] @ embeddings.image["cross"].T)
    # float16 rows.
    assert (
        np.abs(rows.text["cross"] @ rows.image["cross"].T - np.mean(cosines, axis=0)).max() < 2e-3
    )
    scale = store.teachers["two-text"].transform["logit_scale"]
    assert scale == pytest.approx(np.mean([1 / student.tau for student in students[:2]]))


def test_a_row_without_judgements_is_measured_again_with_them(load, tmp_path):
    script = load("flickr8k")
    results, facts = script.Results(tmp_path / "new" / "out.json"), {"seed": 0}
    results.add(facts, {"figures": {"rsum": 1.0}})
    assert results.has(facts, by_people=False)
    assert not results.has(facts, by_people=True)
    results.add(facts, {"figures": {"rsum": 1.0, "spearman": 2.0}})
    rows = script.Results(tmp_path / "new" / "out.json").rows
    assert rows == [facts | {"figures": {"rsum": 1.0, "spearman": 2.0}}]


def test_runs_with_other_common_settings_have_folders_of_their_own(load, tmp_path, monkeypatch):
    script, folders = load("flickr8k_towers"), []

    def train(self, config, run_dir):
        folders.append(run_dir)
        raise KeyboardInterrupt

    monkeypatch.setattr(script.TowerStudy, "_train", train)
    command = [str(make_store(tmp_path / "store")), "--run-dirs", str(tmp_path / "runs")]
    command += [
        "--image-teacher",
        "vision",
        "--text-teacher",
        "words",
        "--student",
        "stored towers",
    ]
    for steps in (2, 3, 2):
        CliRunner().invoke(script.main, [*command, "--set", f"train.steps={steps}"])
    assert folders[0] == folders[2] != folders[1]


def test_two_processes_keep_each_others_rows(load, tmp_path):
    script, path = load("flickr8k"), tmp_path / "out.json"
    for seed, results in enumerate([script.Results(path), script.Results(path)]):
        results.add({"seed": seed}, {"figures": {}})
    assert [row["seed"] for row in script.Results(path).rows] == [0, 1]


def test_rows_of_another_machine_say_so(load, tmp_path):
    script, path = load("flickr8k"), tmp_path / "out.json"
    path.write_text('{"machine": {"threads": 96}, "runs": []}')
    script.Results(path).add({"seed": 0}, {"figures": {}})
    content = json.loads(path.read_text())
    assert content["machine"] == {"threads": 96}
    assert content["runs"][0]["machine"] == script.machine()


def test_only_chooses_what_differences_are_from(load):
    script = load("flickr8k")
    only = ("contrastive, 2 epochs", "CUSA as published")
    assert list(script.chosen_variants(["finals"], only)["finals"]) == list(only)
    assert script.chosen_variants(["finals"], ())["finals"] == script.EXPERIMENTS["finals"]


@pytest.mark.parametrize("content", ["{}", "3", '{"runs": ['])
def test_files_that_are_no_results_are_refused(load, tmp_path, content):
    other, store = tmp_path / "other.json", make_store(tmp_path / "store")
    other.write_text(content)
    assert CliRunner().invoke(load("flickr8k").main, [str(store), "--out", str(other)]).exit_code
    assert other.read_text() == content


@pytest.mark.parametrize(
    "arguments", [["--only", "no such variant"], ["--split", "nosuch"], ["--seeds", "0"]]
)
def test_wrong_arguments_are_refused_before_anything_is_trained(
    load, tmp_path, monkeypatch, arguments
):
    taken = []
    monkeypatch.setattr(load("study_runs").Study, "train", taken.append)
    command = [str(make_store(tmp_path / "store")), "--experiments", "losses", *arguments]
    done = CliRunner().invoke(load("flickr8k").main, command)
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code
    assert not taken
