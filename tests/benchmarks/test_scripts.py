"""Every script under benchmarks/ still runs: in its smoke form, on tiny inputs; nothing is asserted
of the times.
"""

import importlib
import json
import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import cusa
from cusa.data.store.reader import EmbeddingStore
from tests.data.tars.tar_files import write_set, write_tars
from tests.eval.tiny import make_sts
from tests.fork_server import run_script
from tests.helpers import make_pairs, make_store, make_tiny_clip, make_tiny_sentence, make_tiny_vit

# webdataset leaves the tars open that set_reading reads with it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

BENCHMARKS = Path(cusa.__file__).parent.parent / "benchmarks"
# Imported by scripts, no scripts.
SHARED = {
    "no_work",
    "study_experiments",
    "study_options",
    "study_pairs",
    "study_runs",
    "study_tables",
    "study_teachers",
    "study_variants",
    "timing",
}
FORKING = {
    "crash",
    "damage",
    "object_store",
    "resume",
}  # not safe in a process with threads, as this one: in one of their own
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in SHARED)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What smoke forms name in braces."""
    folder = tmp_path_factory.mktemp("inputs")
    make_sts(folder / "sts")
    write_set(folder / "set", write_tars(folder / "tars", n_tars=4, n_pairs=5))
    return {
        "pairs": make_pairs(folder / "images"),
        "images": folder / "images",
        "store": _store_with_pictures(folder / "store"),
        "truth_store": make_store(folder / "truth", truth=True),
        "vit": make_tiny_vit(folder / "vit"),
        "words": make_tiny_sentence(folder / "words"),
        "clip": make_tiny_clip(folder / "clip"),
        "sts": folder / "sts",
        "set": folder / "set",
        "judgements": _judgements(folder / "store" / "store.h5", folder / "judgements.txt"),
    }


def _store_with_pictures(folder):
    """A store whose image files exist, too."""
    index = make_store(folder)
    store = EmbeddingStore(index)
    for split in store.splits:
        for image_path in store.split(split).image_paths:
            path = folder / image_path
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (len(image_path), 90, 40)).save(path)
    return index


def _judgements(store, path):
    """A share of Yes for each image with its own first caption, and with another image's."""
    names = [
        Path(image_path).name for image_path in EmbeddingStore(store).split("test").image_paths
    ]
    lines = []
    for number, name in enumerate(names):
        lines.append(f"{name}\t{name}#0\t1\t3\t0\n")
        lines.append(
            f"{name}\t{names[number - 1]}#1\t{number % 3 / 3:.3f}\t{number % 3}\t{3 - number % 3}\n"
        )
    path.write_text("".join(lines))
    return path


@pytest.fixture
def load(monkeypatch):
    """Loads a script as Python does that runs it: its neighbours can be imported."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield lambda name: importlib.import_module(name)
    for name in set(sys.modules) - before:
        if (BENCHMARKS / f"{name}.py").exists():
            del sys.modules[name]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_in_its_smoke_form(name, load, inputs, tmp_path):
    script = load(name)
    assert script.SMOKE, (
        f"benchmarks/{name}.py needs SMOKE, the arguments of a run of seconds "
        "(see benchmarks/timing.py)"
    )
    for number, line in enumerate(script.SMOKE):
        out = tmp_path / f"{number}.json"
        arguments = [*shlex.split(line.format(**inputs)), "--out", str(out)]
        if name in FORKING:
            done = run_script(BENCHMARKS / f"{name}.py", *arguments, cwd=BENCHMARKS.parent)
            assert done.returncode == 0, done.stdout + done.stderr
        else:
            done = CliRunner().invoke(script.main, arguments, catch_exceptions=False)
            assert done.exit_code == 0, done.output
        results = json.loads(out.read_text())
        assert "machine" in results
        assert len(results) > 1


def test_the_grid_of_the_readme_has_every_loss_and_seed(load, inputs, tmp_path):
    script, out = load("coco_sample"), tmp_path / "results.json"
    arguments = [*shlex.split(script.SMOKE[0].format(**inputs)), "--out", str(out)]
    done = CliRunner().invoke(script.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    runs = json.loads(out.read_text())["results"]["words"]
    assert {loss: len(by_seed) for loss, by_seed in runs.items()} == {
        "contrastive": 2,
        "csa": 2,
        "usa": 2,
        "cusa": 2,
    }
    for loss, by_seed in runs.items():
        assert loss in done.output
        assert all(0 < run["rsum"] <= 600 for run in by_seed)
        assert by_seed[0] != by_seed[1]
