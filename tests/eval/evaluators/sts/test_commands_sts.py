"""``cusa-eval sts`` and ``cusa-eval all`` end to end, and what all commands share."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from cusa.data.errors import DataError, EmbeddingsError, FileFormatError, StudentError
from cusa.eval.evaluators.sts.data import find_sts_tasks
from cusa.eval.evaluators.sts.tasks import NoStsDataError
from cusa.eval.models.any_model import load_encoder
from tests.eval.tiny import cxc_score, make_classes, make_cxc, make_sts, strict
from tests.helpers import Fault, run_fault, run_ok


def _dataset(home):
    return ("--dataset", home / "images" / "tiny.json")


def _rho(encoder, pairs):
    first, second = (
        encoder.text_rows(list(side))["cross"].astype(float) for side in (pairs.first, pairs.second)
    )
    cosines = (
        (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    )
    return cosines, 100 * spearmanr(cosines, pairs.gold).statistic


def test_sentence_similarity_by_the_papers_rule(home, here):
    folder = make_sts(here / "data/sts")
    assert run_fault("eval", "sts", "--model", home / "bert") == Fault(
        DataError, path=Path("data/sts/STS/STS12-en-test"), name="STS12"
    )
    models = ("--model", home / "bert", "--model", home / "clip")
    out = run_ok("eval", "sts", *models, "--allow-partial", "--bootstrap", 20, "--latex")
    assert "STS12" in out
    for name in ("bert", "clip"):
        content = strict(here / f"runs/eval/{name}/sts.json")
        assert (content["format"], content["format_version"], content["name"]) == (
            "cusa-sts",
            [1, 1],
            name,
        )
        assert (content["head"], content["average"]) == (
            "cross",
            {"cross": None},
        )  # four of the seven are missing
        assert content["bootstrap"] == {"samples": 20, "seed": 0, "level": 0.95}
        encoder = load_encoder(str(home / name), "cpu")
        tasks = {t.name: t for t in find_sts_tasks(folder, allow_partial=True)}
        assert list(content["tasks"]) == list(tasks) == ["STS12", "STSBenchmark", "SICKRelatedness"]
        for task in tasks.values():
            found = content["tasks"][task.name]["heads"]["cross"]
            each = [_rho(encoder, pairs) for pairs in task.subsets]
            joined = np.concatenate([cosines for cosines, _ in each])
            gold = np.concatenate([pairs.gold for pairs in task.subsets])
            assert found["headline"] == pytest.approx(
                100 * spearmanr(joined, gold).statistic, abs=1e-6
            )
            assert found["spearman"]["mean"] == pytest.approx(
                np.mean([rho for _, rho in each]), abs=1e-6
            )
            assert found["ci"]["headline"][0] < found["ci"]["headline"][1]
        assert content["tasks"]["STS12"]["heads"]["cross"]["pairs"] == 24
        assert any("12 pairs instead of 750" in note for note in content["tasks"]["STS12"]["notes"])
    assert (here / "runs/eval/tables.tex").is_file()
    out = run_ok("eval", "compare", "runs/eval/bert", "runs/eval/clip", "--bootstrap", 20)
    rows = {r["set"]: r for r in strict(here / "runs/eval/comparison.json")["rows"]}
    headlines = [
        strict(here / f"runs/eval/{name}/sts.json")["tasks"]["STS12"]["heads"]["cross"]["headline"]
        for name in ("bert", "clip")
    ]
    assert rows["STS12"]["values"] == pytest.approx(headlines)
    assert "spearman" in out


def test_a_benchmark_without_its_test_subset_has_no_headline(home, here):
    make_sts(here / "sts")
    for unwanted in ("sts/STS/STSBenchmark", "sts/SICK/"):
        for path in (here / unwanted).iterdir():
            path.unlink()
    lines = "".join(f"g\tf\ty\t{i}\t{i}\tpicture {i}\tnumber {i}\n" for i in range(4))
    (here / "sts/STS/STSBenchmark/sts-dev.csv").write_text(lines)
    args = (
        "eval",
        "sts",
        "--model",
        home / "bert",
        "--data",
        "sts",
        "--allow-partial",
        "--bootstrap",
        5,
    )
    run_ok(*args)
    found = strict(here / "runs/eval/bert/sts.json")["tasks"]["STSBenchmark"]["heads"]["cross"]
    assert found["headline"] is None
    assert "ci" not in found
    (here / "sts/STS/STSBenchmark/sts-dev.csv").write_text(lines.replace("picture", "number"))
    assert run_fault(*args) == Fault(EmbeddingsError, name="STSBenchmark dev")


def test_cxc_on_a_runs_store_and_on_an_annotation_file(home, adapter, here):
    make_cxc(here / "cxc")
    args = ("eval", "sts", "--data", "cxc", "--bootstrap", 0)
    out = run_ok(*args, "--run", adapter)
    assert "note: no STS tasks: cxc holds no STS data" in out
    content = strict(adapter / "eval/sts.json")
    assert (content["tasks"], content["head"]) == ({}, "uni")
    assert set(content["cxc"]) == {"sts", "sis", "sits"}
    assert all(set(of["heads"]) == {"cross", "uni"} for of in content["cxc"].values())
    assert content["cxc"]["sits"]["heads"]["cross"]["pairs"] == 30
    run_ok(*args, "--model", home / "clip", *_dataset(home))
    found = strict(here / "runs/eval/clip/sts.json")["cxc"]
    clip = load_encoder(str(home / "clip"), "cpu")
    images = clip.image_rows([home / "images" / f"{n:03d}.jpg" for n in range(20, 26)])["cross"]
    texts = clip.text_rows(
        [f"picture number {n} version {1 + 3 * (n % 7)}" for n in range(20, 26)]
    )["cross"]
    pairs = [(a, b) for a in range(6) for b in range(6) if a != b]
    gold = [cxc_score(20 + a, 20 + b) for a, b in pairs]
    for kind, (first, second) in {
        "sts": (texts, texts),
        "sis": (images, images),
        "sits": (texts, images),
    }.items():
        cosines = [first[a] @ second[b] for a, b in pairs]
        if kind == "sits":  # of the others, a pair and its mirror tie, up to rounding
            want = 100 * spearmanr(cosines, gold).statistic
            assert found[kind]["heads"]["cross"]["spearman"] == pytest.approx(want, abs=0.5)
        assert -100 < found[kind]["heads"]["cross"]["spearman_bootstrap"] < 100
    assert run_fault(*args, "--model", home / "clip") == Fault(DataError, path=Path("cxc"))
    assert run_fault(*args, "--run", adapter, "--split", "val") == Fault(
        DataError, path=Path("cxc")
    )
    out = run_ok(*args, "--model", home / "bert", *_dataset(home))
    assert "note: no sis and no sits of CxC for bert: it embeds no images" in out
    assert set(strict(here / "runs/eval/bert/sts.json")["cxc"]) == {"sts"}


def test_embeddings_of_captions_by_id_answer_cxc_but_no_sentences(home, here):
    make_cxc(here / "cxc")
    ids = [40_000 + 10 * n + c for n in range(20, 26) for c in range(2)]
    np.save("t.npy", np.random.default_rng(0).normal(size=(12, 5)))
    np.save("ids.npy", np.array(ids))
    files = ("--text-embeddings", "t.npy", "--text-ids", "ids.npy")
    run_ok("eval", "sts", *files, "--data", "cxc", *_dataset(home), "--bootstrap", 0)
    assert set(strict(here / "runs/eval/t/sts.json")["cxc"]) == {"sts"}
    make_sts(here / "sts")
    assert run_fault("eval", "sts", *files, "--data", "sts", "--allow-partial") == Fault(
        EmbeddingsError, name="picture number 42 31 25"
    )


def test_sts_data_that_is_not_there_or_damaged(home, here):
    args = ("eval", "sts", "--model", home / "bert")
    assert run_fault(*args) == Fault(NoStsDataError, path=Path("data/sts"))
    (here / "empty").mkdir()
    assert run_fault(*args, "--data", "empty") == Fault(NoStsDataError, path=Path("empty"))
    make_sts(here / "sts")
    assert run_fault(
        "eval", "sts", "--model", home / "vit", "--data", "sts", "--allow-partial"
    ) == Fault(StudentError, name="vit")
    make_cxc(here / "sts/cxc")
    gold = here / "sts/STS/STS12-en-test/STS.gs.MSRpar.txt"
    gold.write_text(gold.read_text().replace("\n", "x\n", 1))
    assert run_fault(*args, "--data", "sts", "--allow-partial", *_dataset(home)) == Fault(
        FileFormatError, path=Path("sts/STS/STS12-en-test/STS.gs.MSRpar.txt"), location="line 1"
    )  # and not: CxC alone
    (here / "sts/cxc/sis_test.csv").write_text("nonsense\n")
    gold.unlink()
    assert run_fault(*args, "--data", "sts", "--allow-partial", *_dataset(home)) == Fault(
        FileFormatError, path=Path("sts/cxc/sis_test.csv"), location="line 1"
    )


def test_all_measures_what_there_is_and_notes_what_is_absent(home, adapter, here):
    args = ("eval", "all", "--bootstrap", 5, "--allow-partial")
    models = ("--run", adapter, "--model", home / "bert", "--model", home / "vit")
    out = " ".join(run_ok(*args, *models).split())
    for note in (
        "note: no image sets below data/",
        "note: no STS tasks: data/sts does not exist",
        "note: no retrieval for bert: it embeds no images",
        "note: no retrieval for vit: it embeds no texts",
    ):
        assert note in out
    assert not (here / "runs/eval/bert").exists()
    assert run_fault(*args, "--model", home / "vit") == Fault(DataError)
    make_sts(here / "data/sts")
    make_cxc(here / "data/sts/cxc")
    make_classes(here / "data/other")
    out = " ".join(run_ok(*args, "--model", home / "clip", *models[2:]).split())
    assert "note: no retrieval for clip: no data to measure on" in out
    assert "note: no CxC for clip: no data to measure on" in out
    assert "note: no sentence similarity for vit: it embeds no texts" in out
    assert strict(here / "runs/eval/bert/sts.json")["tasks"].keys() == {
        "STS12",
        "STSBenchmark",
        "SICKRelatedness",
    }
    run_ok(*args, "--run", adapter, "--model", home / "clip")
    for folder in (adapter / "eval", here / "runs/eval/clip"):
        assert strict(folder / "metrics.json")["n_images"] == 6
        assert set(strict(folder / "sts.json")["cxc"]) == {"sts", "sis", "sits"}
    out = " ".join(run_ok(*args, "--run", adapter, "--split", "val").split())
    assert "note: no CxC for adapter: CxC judges 6 captions that tiny val lacks" in out
    assert strict(adapter / "eval/metrics.json")["n_images"] == 4


@pytest.mark.parametrize(
    "command", ["retrieval", "images", "sts", "all", "compare", "index", "search"]
)
def test_help_of_each_command_loads_nothing_heavy(command):
    code = (
        "import sys, cusa.cli.evaluate as c\n"
        f"c.main([{command!r}, '--help'], standalone_mode=False); print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *text, loaded = done.stdout.splitlines()
    assert text[0].startswith("Usage:")
    assert f" {command} " in text[0]
    heavy = {"torch", "transformers", "numpy", "h5py", "scipy", "faiss", "matplotlib"}
    assert not heavy & {m.strip("'[] ").partition(".")[0] for m in loaded.split(",")}
