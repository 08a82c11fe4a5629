"""Grids of runs: the combinations, the table over seeds, and a sweep that goes on."""

import json
import statistics

import pytest

from cusa.data.errors import SettingError
from cusa.train.command_settings import default_sweep_dir
from cusa.train.config import Config, DataConfig
from cusa.train.saving.run_dir import read_metrics
from cusa.train.sweep import parse_grid, summarize
from cusa.train.trainer import Trainer
from tests.helpers import Fault, make_store, run, run_fault, run_ok


def test_a_grid_is_every_combination_the_last_axis_fastest():
    cells = parse_grid(["loss=contrastive,cusa", "seed=0,1", "loss.alpha=0.2"])
    assert [c.name for c in cells] == [
        f"loss-{loss}_seed-{seed}_loss.alpha-0.2"
        for loss in ("contrastive", "cusa")
        for seed in (0, 1)
    ]
    assert cells[2].settings == {
        "loss": {"terms": ("contrastive", "csa", "usa"), "alpha": 0.2},
        "train": {"seed": 0},
    }


def test_values_of_a_list():
    axis = "loss.soft_label_modalities"
    cells = parse_grid([f"{axis}=[image],[image,text]", "loss.terms=[usa],[csa, usa]"])
    names = ("image", "image-text")
    assert [c.name for c in cells[::2]] == [f"{axis}-{name}_loss.terms-usa" for name in names]
    loss = {"soft_label_modalities": ["image", "text"], "terms": ["csa", "usa"]}
    assert cells[3].settings == {"loss": loss}


def test_settings_that_came_later_do_not_rename_the_folder_of_a_sweep(tmp_path):
    """The digest is that of the commit before 51a553d; only an old setting's default changes it."""
    config = Config(data=DataConfig(embeddings=str(make_store(tmp_path))))
    assert default_sweep_dir([config]).name == "made-up-sweep-91c57479"


@pytest.mark.parametrize(
    "axes",
    [
        ["loss"],
        ["seed=0,,1"],
        ["sed=0"],
        ["loss=cosine"],
        ["seed=0", "seed=1"],
        ["seed=1,1"],
        ["seed=0,00"],
        ["seed=0", "train.seed=1"],
        ["train.device=cpu,cuda"],
        ["student=a/b,a-b"],
    ],
)
def test_faulty_grids(axes):
    with pytest.raises(SettingError) as refused:
        parse_grid(axes)
    assert refused.value.name == "sweep"


def test_the_table_over_seeds_by_hand(tmp_path):
    """RSUM by run and epoch: the best one, and the last one."""
    given = {
        "loss-csa_seed-0": [10, 30, 20],
        "loss-csa_seed-1": [40, 10, 22],
        "loss-usa_seed-0": [1, 2, 3],
    }
    given["loss-usa_seed-1"] = [6, 5, 4]
    names = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")
    for name, values in given.items():
        (tmp_path / name).mkdir()
        lines, best = [], 0
        for epoch, value in enumerate(values, 1):
            recalls = dict.fromkeys(names, value / 6)
            lines.append(
                {
                    "kind": "val",
                    "step": epoch,
                    "epoch": epoch,
                    "best": value > best,
                    "rsum": value,
                    **recalls,
                }
            )
            best = max(best, value)
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = summarize(tmp_path, parse_grid(["loss=csa,usa", "seed=0,1"]))
    assert [(r.values, r.n) for r in rows] == [({"loss": "csa"}, 2), ({"loss": "usa"}, 2)]
    assert (rows[0].mean["best"]["rsum"], rows[0].mean["last"]["rsum"]) == (35, 21)
    assert rows[0].std["best"]["rsum"] == pytest.approx(50**0.5)  # of 30 and 40, n - 1
    assert (rows[1].mean["best"]["rsum"], rows[1].std["last"]["rsum"]) == (
        4.5,
        pytest.approx(0.5**0.5),
    )
    table = (tmp_path / "sweep.md").read_text().splitlines()
    assert table[2].startswith("| csa | 2 | 5.8 ± 1.2 |")
    assert table[2].endswith("| 35.0 ± 7.1 | 21.0 ± 1.4 |")
    assert len(json.loads((tmp_path / "sweep.json").read_text())["runs"]) == 4


def _sweep(index, folder):
    small = (
        "--student",
        "adapter",
        "--set",
        "student.hidden_dim=16",
        "--batch-size",
        16,
        "--epochs",
        2,
    )
    return (
        "--embeddings",
        index,
        *small,
        "--run-dir",
        folder,
        "--sweep",
        "loss=contrastive,cusa",
        "seed=0,1",
    )


def test_a_sweep_that_was_stopped_goes_on_and_repeats_nothing(tmp_path):
    index, folder = make_store(tmp_path / "store"), tmp_path / "sweep"
    plain, steps = Trainer._train_on, []

    def step(self, batch):
        steps.append(
            (self.setup.config.loss.terms, self.setup.config.train.seed, self.progress.step)
        )
        if len(steps) == 13:  # in the second of four runs of ten steps
            raise KeyboardInterrupt
        return plain(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_on", step)
        assert run("train", *_sweep(index, folder)).exit_code == 130
        out = run_ok("train", *_sweep(index, folder))
    assert len(steps) == 12 + 1 + 10 + 20  # the second run begins again: no checkpoint was due
    assert "run 4 of 4: loss-cusa_seed-1" in out
    assert "cusa-eval --run" in out.splitlines()[-1]
    rows = json.loads((folder / "sweep.json").read_text())["table"]
    assert [(r["values"]["loss"], r["n"]) for r in rows] == [("contrastive", 2), ("cusa", 2)]
    last = [
        [m for m in read_metrics(folder / f"loss-cusa_seed-{s}") if m["kind"] == "val"][-1]["rsum"]
        for s in (0, 1)
    ]
    assert rows[1]["mean"]["last"]["rsum"] == pytest.approx(statistics.fmean(last))
    assert rows[1]["std"]["last"]["rsum"] == pytest.approx(statistics.stdev(last))


def test_without_a_folder_the_same_command_finds_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = [
        a for a in _sweep(make_store(tmp_path / "store"), "DIR") if a not in ("--run-dir", "DIR")
    ]
    run_ok("train", *args[:-1], "seed=0")
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("made-up-sweep-")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("best/student.safetensors")}
    run_ok("train", *args[:-1], "seed=0")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("best/student.safetensors")} == before
    run_ok("train", *args[:-1], "seed=1")
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_bad_sweeps(tmp_path):
    index = make_store(tmp_path / "store")
    args = _sweep(index, tmp_path / "s")
    assert run_fault("train", *args, "--resume") == Fault(SettingError, name="resume")
    assert run_fault("train", *args[:-1], "train.sed=1") == Fault(SettingError, name="train.sed")
    assert not (tmp_path / "s").exists()
