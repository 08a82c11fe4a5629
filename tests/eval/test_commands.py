"""``cusa-eval`` end to end: retrieval and image retrieval by any model, and comparisons."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cusa.data.errors import (
    DataError,
    EmbeddingsError,
    ImageError,
    RunError,
    SettingError,
    StoreError,
    StudentError,
)
from cusa.eval.evaluators.images.data import load_image_set
from cusa.eval.models.any_model import load_encoder
from cusa.eval.queries import load_queries
from tests.eval.tiny import (
    caption_id,
    image_id,
    make_classes,
    make_inshop,
    strict,
)
from tests.helpers import Fault, run_fault, run_ok


def _dataset(home, name="tiny"):
    return ("--dataset", home / "images" / f"{name}.json")


def _vectors(home):
    """Embeddings of the test's images and captions by the CLIP model, by id; computed
    one by one.
    """
    clip = load_encoder(str(home / "clip"), "cpu")
    images = {
        str(image_id(n)): clip.image_rows([home / "images" / f"{n:03d}.jpg"])["cross"][0]
        for n in range(20, 26)
    }
    texts = {}
    for image in json.loads((home / "images" / "tiny.json").read_text())["images"][20:]:
        for sentence in image["sentences"]:
            texts[str(sentence["sentid"])] = clip.text_rows([sentence["raw"]])["cross"][0]
    return images, texts


# --- retrieval


def test_a_hugging_face_model_on_an_annotation_file(home, here):
    out = run_ok("eval", "--model", home / "clip", *_dataset(home), "--bootstrap", 30)
    assert "tiny, split test: 6 images, 12 captions" in out
    metrics = strict(here / "runs/eval/clip/metrics.json")
    assert (metrics["format"], metrics["format_version"], metrics["name"]) == (
        "cusa-metrics",
        [1, 4],
        "clip",
    )
    assert (metrics["model"]["kind"], metrics["model"]["source"]) == ("hf", str(home / "clip"))
    assert [metrics[k] for k in ("run", "epoch", "step", "checkpoint", "loss_terms")] == [
        None
    ] * 4 + [[]]
    assert (metrics["ties"], metrics["bootstrap"]) == (
        "pessimistic",
        {"samples": 30, "seed": 0, "level": 0.95},
    )
    images, texts = _vectors(home)
    scores = np.stack(list(images.values())) @ np.stack(list(texts.values())).T
    found = metrics["heads"]["cross"]["retrieval"]
    for k in (1, 5, 10):
        ranks = [np.count_nonzero(scores[n] > scores[n, 2 * n : 2 * n + 2].max()) for n in range(6)]
        assert found["i2t"][f"r{k}"] == pytest.approx(100 * np.mean(np.array(ranks) < k))
        ranks = [np.count_nonzero(scores[:, c] > scores[c // 2, c]) for c in range(12)]
        assert found["t2i"][f"r{k}"] == pytest.approx(100 * np.mean(np.array(ranks) < k))
    assert found["ci"]["rsum"][0] <= found["rsum"] <= found["ci"]["rsum"][1]
    html = (here / "runs/eval/clip/report.html").read_text()
    assert "picture number 2" in html
    queries = load_queries(here / "runs/eval/clip", "retrieval")
    assert queries.per_query["tiny test/cross/retrieval/t2i"].best.pessimistic.tolist() == ranks
    again = run_ok(
        "eval",
        "retrieval",
        "--model",
        home / "clip",
        *_dataset(home),
        "--bootstrap",
        0,
        "--ties",
        "mean",
    )
    assert "tiny, split test" in again
    second = strict(here / "runs/eval/clip/metrics.json")
    assert (second["ties"], second["bootstrap"]) == ("mean", None)
    assert "ci" not in second["heads"]["cross"]["retrieval"]["i2t"]


def test_a_run_and_another_model_on_the_runs_store(home, adapter, here):
    out = run_ok(
        "eval",
        "--run",
        adapter,
        "--model",
        home / "clip",
        "--bootstrap",
        20,
        "--latex",
        "--out",
        here / "x",
    )
    assert "adapter" in out
    assert "clip" in out
    ours, theirs = (
        strict(adapter / "eval/metrics.json"),
        strict(here / "runs/eval/clip/metrics.json"),
    )
    assert set(ours["heads"]) == {"cross", "uni"}
    assert set(theirs["heads"]) == {"cross"}
    assert ours["unimodal_head"] == "uni"
    assert ours["split_fingerprint"] == theirs["split_fingerprint"]
    assert ours["model"]["kind"] == "run"
    assert ours["loss_terms"] == ["contrastive", "csa", "usa"]
    run_ok("eval", "--model", home / "clip", *_dataset(home), "--bootstrap", 20)
    assert (
        strict(here / "runs/eval/clip/metrics.json")["heads"] == theirs["heads"]
    )  # files or store, it is one split
    assert {p.name for p in (here / "x").iterdir()} == {"report.html", "tables.tex"}
    assert "clip" in (here / "x/tables.tex").read_text()


def test_embeddings_in_files_are_joined_by_id(home, here):
    images, texts = _vectors(home)
    rng = np.random.default_rng(0)
    wanted = None
    for number in range(2):
        i, t = (rng.permutation(list(of)) for of in (images, texts))
        np.save("image.npy", np.stack([int(k) ** 9 * images[k] for k in i]))  # not normalised
        (here / "ids.txt").write_text("\n".join([*i, ""]))
        with h5py.File("text.h5", "w") as file:
            rows = [1e-25 * int(k) ** 9 * texts[k] for k in (*t, t[0])]
            file["embeddings"] = np.stack(rows).astype(np.float32)
            file["ids"] = np.array([int(k) for k in t] + [7])  # one more than is asked for
        files = (
            "--image-embeddings",
            "image.npy",
            "--image-ids",
            "ids.txt",
            "--text-embeddings",
            "text.h5",
        )
        run_ok("eval", *files, *_dataset(home), "--bootstrap", 0)
        metrics = strict(here / "runs/eval/image-text/metrics.json")
        assert metrics["model"]["kind"] == "files"
        assert wanted in (None, metrics["heads"])
        wanted = metrics["heads"]
        assert number or metrics["name"] == "image, text"
    run_ok("eval", "--model", home / "clip", *files, *_dataset(home), "--bootstrap", 0)
    model = strict(here / "runs/eval/clip/metrics.json")["heads"]["cross"]["retrieval"]
    assert model["rsum"] == wanted["cross"]["retrieval"]["rsum"]
    assert run_fault("eval", *files, *_dataset(home), "--split", "val") == Fault(
        EmbeddingsError, name="1012"
    )
    (here / "ids.txt").write_text("\n".join(i[:-1]))
    assert run_fault("eval", *files, *_dataset(home)) == Fault(
        EmbeddingsError, path=Path("ids.txt")
    )
    images_alone = ("--image-embeddings", "image.npy", "--image-ids", "ids.json")
    (here / "ids.json").write_text(json.dumps(list(i)))
    assert run_fault("eval", *images_alone, *_dataset(home)) == Fault(StudentError, name="image")
    np.save("wide.npy", np.ones((len(i), 3)))
    assert run_fault(
        "eval",
        "--image-embeddings",
        "wide.npy",
        "--image-ids",
        "ids.json",
        *files[4:],
        *_dataset(home),
    ) == Fault(EmbeddingsError, name="dimensions")
    assert run_fault(
        "eval", "--model", home / "clip", "--image-ids", "ids.txt", *_dataset(home)
    ) == Fault(SettingError, path=Path("ids.txt"), name="image_ids")


def test_results_of_another_model_of_the_same_name_are_kept(here):
    """Two people's rows.npy are two models."""
    ids = load_image_set("folder", make_classes(here / "birds")).queries.ids
    (here / "ids.json").write_text(json.dumps(ids))
    for person in ("one", "two"):
        (here / person).mkdir()
        np.save(
            here / person / "rows.npy",
            np.random.default_rng(ord(person[0])).normal(size=(len(ids), 4)),
        )
    args = (
        "eval",
        "images",
        "--data",
        "birds",
        "--image-ids",
        "ids.json",
        "--bootstrap",
        0,
        "--image-embeddings",
    )
    run_ok(*args, "one/rows.npy")
    before = strict(here / "runs/eval/rows/images.json")
    assert run_fault(*args, "two/rows.npy") == Fault(
        RunError, path=Path("runs/eval/rows"), name="name"
    )
    assert strict(here / "runs/eval/rows/images.json") == before
    run_ok(*args, "two/rows.npy", "--name", "second")
    assert strict(here / "runs/eval/second/images.json")["name"] == "second"
    run_ok(*args, here / "one" / "rows.npy")  # the same file, named otherwise


@pytest.mark.parametrize(("value", "what"), [(np.nan, "not finite"), (0.0, "all zeros")])
def test_embeddings_that_cannot_rank_stop_it(home, here, value, what):
    rows = np.random.default_rng(0).normal(size=(12, 4))
    rows[3, : 2 if np.isnan(value) else 4] = (
        value  # NaN throughout would be an item without an embedding
    )
    np.save("t.npy", rows)
    ids = [str(caption_id(n, c)) for n in range(20, 26) for c in range(2)]
    (here / "ids.json").write_text(json.dumps(ids))
    files = ("--text-embeddings", "t.npy", "--text-ids", "ids.json")
    assert run_fault("eval", *files, *_dataset(home)) == Fault(EmbeddingsError, name="40211")


def test_a_model_that_returns_nan_names_the_item(home, here):
    shutil.copytree(home / "clip", here / "broken")
    weights = load_file(here / "broken/model.safetensors")
    weights["text_projection.weight"][:] = np.finfo(np.float32).max
    save_file(weights, here / "broken/model.safetensors", {"format": "pt"})
    assert run_fault("eval", "--model", "broken", *_dataset(home)) == Fault(
        DataError, name="picture number 20 version 18"
    )
    assert not (here / "runs").exists()


def test_a_known_data_set_of_another_size_is_refused_before_it_is_embedded(home, here):
    args = ("eval", "--model", home / "clip", *_dataset(home, "coco"), "--bootstrap", 0)
    assert run_fault(*args) == Fault(DataError, name="coco")
    out = run_ok(*args, "--allow-partial")
    assert "coco, split test: 6 images" in out
    assert "note: coco test has 6 images instead of 5,000, so figures are not comparable" in out
    assert "note: coco val has 4 images instead of 5,000" in run_ok(
        *args, "--split", "val"
    )  # no one publishes those
    assert "protocols" not in strict(here / "runs/eval/clip/metrics.json")["heads"]["cross"]
    assert run_fault(*args, "--allow-partial", "--pmrp", here) == Fault(SettingError, name="pmrp")


def test_an_image_that_is_skipped_in_a_store(home, here):
    """A caption whose image could not be read is a miss and a candidate; the same for a run and
    another model.
    """
    (here / "d").mkdir()
    for name in [*(f"{n:03d}.jpg" for n in range(26)), "tiny.json"]:
        shutil.copy(home / "images" / name, here / "d" / name)
    (here / "d/021.jpg").write_bytes(b"no image")
    teachers = ("--teacher", f"see={home / 'vit'}", "--teacher", f"read={home / 'bert'}")
    run_ok(
        "precompute",
        "--dataset",
        here / "d/tiny.json",
        *teachers,
        "--out",
        here / "s/s.h5",
        "--on-error",
        "skip",
    )
    args = ("--embeddings", here / "s/s.h5", "--student", "adapter", "--run-dir", here / "runs/a")
    run_ok("train", *args, "--batch-size", 8, "--epochs", 1, "--set", "student.embed_dim=8")
    out = run_ok("eval", "--run", "runs/a", "--model", home / "clip", "--bootstrap", 10)
    assert "5 images, 12 captions (1 and 0 were skipped)" in out
    images, texts = _vectors(home)
    del images[str(image_id(21))]
    i, t = np.stack(list(images.values())), np.stack(list(texts.values()))
    own = np.array([-1 if n == 1 else n - (n > 1) for n in np.repeat(np.arange(6), 2)])
    hits = [own[c] >= 0 and (i @ t[c]).argmax() == own[c] for c in range(12)]
    for path in (here / "runs/a/eval", here / "runs/eval/clip"):
        metrics = strict(path / "metrics.json")
        assert (metrics["n_images"], metrics["n_images_skipped"]) == (5, 1)
        t2i = metrics["heads"]["cross"]["retrieval"]["t2i"]
        assert (t2i["queries"], t2i["candidates"]) == (12, 5)
        assert metrics["heads"]["cross"]["unimodal"]["t2t"]["queries"] == 10
        assert metrics["heads"]["cross"]["retrieval"]["i2t"]["candidates"] == 12
    assert t2i["r1"] == pytest.approx(100 * np.mean(hits))
    assert t2i["r5"] == pytest.approx(100 * 10 / 12)


def test_what_cannot_be_measured_is_one_line(home, here):
    clip, data = ("eval", "--model", home / "clip"), _dataset(home)
    assert run_fault("eval", "--model", home / "vit", *data) == Fault(StudentError, name="vit")
    assert run_fault("eval", "--model", home / "bert", *data) == Fault(StudentError, name="bert")
    assert run_fault(*clip) == Fault(DataError, name="dataset")
    assert run_fault(*clip, *data, "--split", "dev") == Fault(DataError, name="dev")
    assert run_fault(*clip, "--dataset", "nowhere.json") == Fault(
        DataError, path=Path("nowhere.json")
    )
    assert run_fault("eval") == Fault(RunError, path=Path("runs"))
    assert run_fault("eval", "--model", "nothing", *data) == Fault(RunError, name="nothing")
    assert run_fault(*clip, "--embeddings", "nowhere.h5") == Fault(
        StoreError, path=Path("nowhere.h5")
    )
    assert run_fault(*clip, *data, "--image-root", here) == Fault(ImageError, path=here / "020.jpg")
    shutil.copytree(home / "clip", here / "other/clip")
    assert run_fault(*clip, "--model", here / "other/clip", *data) == Fault(
        RunError, path=Path("runs/eval/clip"), name="clip"
    )
    assert run_fault(*clip, "--model", home / "clip", *data) == Fault(
        RunError, path=Path("runs/eval/clip"), name="clip"
    )
    assert not (here / "runs").exists()


# --- images


def test_a_folder_of_classes_by_several_models(home, here):
    classes = make_classes(here / "my animals")
    models = ("--model", home / "clip", "--model", home / "vit")
    out = run_ok(
        "eval",
        "images",
        *models,
        "--data",
        classes,
        "--bootstrap",
        20,
        "--latex",
    )
    assert "my animals" in out
    assert "10 queries, 9 candidates, 4 classes, 1 queries without a right answer" in out
    labels = np.repeat(np.arange(4), (1, 3, 3, 3))
    paths = sorted(classes.rglob("*.jpg"))
    for name in ("clip", "vit"):
        content = strict(here / f"runs/eval/{name}/images.json")
        assert (content["format"], content["format_version"], content["name"]) == (
            "cusa-images",
            [1, 1],
            name,
        )
        assert (content["head"], content["average"]) == ("cross", {"cross": None})
        rows = load_encoder(str(home / name), "cpu").image_rows(paths)["cross"]
        scores = rows @ rows.T - 10 * np.eye(10)
        found = content["sets"]["my animals"]["heads"]["cross"]
        hits = labels[scores.argmax(axis=1)] == labels
        assert found["r1"] == pytest.approx(100 * hits.mean())
        assert found["precision_at_1"] == pytest.approx(100 * hits[1:].mean())
        assert (found["queries"], found["queries_with_positive"], found["candidates"]) == (10, 9, 9)
        assert set(found["ci"]) == {"r1", "r5", "r10", "precision_at_1", "r_precision", "map_at_r"}
    assert (here / "runs/eval/report.html").is_file()
    assert (here / "runs/eval/tables.tex").is_file()


def test_a_published_set_with_query_and_gallery(home, adapter, here):
    make_inshop(here / "data/inshop")
    assert run_fault("eval", "images", "--model", home / "vit") == Fault(
        DataError, path=here / "data/inshop", name="inshop"
    )
    for asked in ((), ("--data", "inshop"), ("--data", "inshop=data/inshop")):
        out = run_ok(
            "eval", "images", "--model", home / "vit", *asked, "--allow-partial", "--bootstrap", 0
        )
        assert "5 queries, 10 candidates, 5 classes" in out
    found = strict(here / "runs/eval/vit/images.json")["sets"]["inshop"]
    assert (found["heads"]["cross"]["queries"], found["heads"]["cross"]["candidates"]) == (5, 10)
    assert any("published" in note for note in found["notes"])
    (here / "data/inshop").rename(here / "data/Inshop_Clothes")  # its usual name
    run_ok(
        "eval", "images", "--run", adapter, "--data", "inshop", "--allow-partial", "--bootstrap", 0
    )
    content = strict(adapter / "eval/images.json")
    assert content["head"] == "uni"
    assert set(content["sets"]["inshop"]["heads"]) == {"cross", "uni"}


def test_image_sets_that_are_not_there_or_ambiguous(home, here):
    make_classes(here / "one/birds")
    make_classes(here / "two/birds", classes=2)
    make_classes(here / "cub")
    args = ("eval", "images", "--model", home / "vit")
    assert run_fault(*args) == Fault(DataError, path=Path("data"))
    assert run_fault(*args, "--data", "birds=one/birds") == Fault(SettingError, name="data")
    assert run_fault(*args, "--data", "cubs") == Fault(DataError, path=here / "cubs")
    assert run_fault(*args, "--data", "one/birds", "--data", "two/birds") == Fault(
        SettingError, name="data"
    )
    assert run_fault(*args, "--data", "cub") == Fault(DataError, path=here / "data/cub")
    assert run_fault(*args, "--data", "cub=one/birds") == Fault(
        DataError, path=here / "one/birds", name="cub"
    )
    assert run_fault(*args, "--data", "./cub") == Fault(SettingError, path=Path("cub"), name="data")
    assert run_fault("eval", "images", "--model", home / "bert", "--data", "one/birds") == Fault(
        StudentError, name="bert"
    )
    (here / "one").rename(here / "a=b")
    assert "birds" in run_ok(*args, "--data", "a=b/birds", "--bootstrap", 0)
    (here / "two/birds/class 1/000.jpg").write_bytes(b"")
    assert run_fault(*args, "--data", "two/birds") == Fault(
        ImageError, path=here / "two/birds/class 1/000.jpg"
    )


def test_one_image_and_no_positive_is_strict_json(home, here):
    make_classes(here / "single", classes=1)
    make_classes(here / "lonely/many", classes=1)
    (here / "lonely/other").mkdir()
    shutil.copy(here / "single/class 0/000.jpg", here / "lonely/other/a.jpg")
    shutil.move(here / "lonely/many/class 0/000.jpg", here / "lonely/many/b.jpg")
    (here / "lonely/many/class 0").rmdir()
    out = run_ok(
        "eval",
        "images",
        "--model",
        home / "vit",
        "--data",
        "lonely",
        "--bootstrap",
        5,
    )
    found = strict(here / "runs/eval/vit/images.json")["sets"]["lonely"]["heads"]["cross"]
    assert (found["r1"], found["precision_at_1"], found["map_at_r"]) == (0, None, None)
    assert run_fault("eval", "compare", "runs/eval/vit") == Fault(SettingError, name="models")
    out = run_ok("eval", "compare", "runs/eval/vit", "runs/eval/vit", "--bootstrap", 5)
    assert "differences from vit" in out


# --- reports of several suites, and comparisons


def test_a_report_keeps_what_was_measured_of_the_same_weights(home, here):
    classes = make_classes(here / "animals")
    shutil.copytree(home / "clip", here / "dual")
    args = ("--model", "dual", "--bootstrap", 0)
    run_ok("eval", "images", *args, "--data", classes)
    report = here / "runs/eval/dual/report.html"
    assert "tiny, split test" not in report.read_text()
    run_ok("eval", *args, *_dataset(home))
    assert "animals" in report.read_text()
    run_ok("eval", "images", *args, "--data", classes)
    assert "tiny, split test" in report.read_text()
    weights = load_file(here / "dual/model.safetensors")
    weights["text_projection.weight"] *= -1
    save_file(weights, here / "dual/model.safetensors", {"format": "pt"})
    run_ok("eval", *args, *_dataset(home))
    assert "animals" not in report.read_text()
    (here / "runs/eval/dual/images.json").write_text("[]")
    assert run_fault("eval", *args, *_dataset(home)) == Fault(
        RunError, path=Path("runs/eval/dual/images.json")
    )


def test_an_earlier_split_does_not_stand_beside_another(home, here):
    """One model was measured on the validation split, one on the test; their image retrieval is
    shown alone.
    """
    classes = make_classes(here / "animals")
    shutil.copytree(home / "clip", here / "other")
    run_ok("eval", "--model", home / "clip", *_dataset(home), "--bootstrap", 0, "--split", "val")
    run_ok("eval", "--model", "other", *_dataset(home), "--bootstrap", 0)
    both = ("--model", home / "clip", "--model", "other")
    run_ok("eval", "images", *both, "--data", classes, "--bootstrap", 0)
    assert "split val" not in (here / "runs/eval/report.html").read_text()
    assert run_fault("eval", "compare", "runs/eval/clip", "runs/eval/other") == Fault(
        RunError, name="retrieval"
    )


def test_where_nothing_can_be_written_nothing_is_measured(home, here):
    (here / "file").write_text("")
    assert run_fault(
        "eval", "--model", home / "clip", *_dataset(home), "--out", here / "file" / "x"
    ) == Fault(SettingError, path=here / "file", name="out")
    assert not (here / "runs").exists()


def test_a_file_that_is_no_result(here):
    for folder, content in (("a", "{}"), ("b", '{"format": "cusa-sts", "name": "b"}')):
        (here / folder).mkdir()
        (here / folder / "sts.json").write_text(content)
    assert run_fault("eval", "compare", "a", "b") == Fault(RunError, path=Path("a/sts.json"))


def test_compare(home, adapter, here):
    classes = make_classes(here / "animals")
    models = ("--run", adapter, "--model", home / "clip")
    run_ok("eval", *models, "--bootstrap", 0)
    run_ok("eval", "images", *models, "--data", classes, "--bootstrap", 0)
    args = ("eval", "compare", adapter, "runs/eval/clip", "--bootstrap", 50)
    out = run_ok(*args, "--out", "made", "--latex")
    assert "differences from adapter" in out
    content = strict(here / "made/comparison.json")
    assert (content["models"], content["base"]) == (["adapter", "clip"], "adapter")
    rows = {(r["set"], r["metric"]): r for r in content["rows"]}
    metrics = [strict(p / "metrics.json") for p in (adapter / "eval", here / "runs/eval/clip")]
    images = [strict(p / "images.json") for p in (adapter / "eval", here / "runs/eval/clip")]
    sums = [m["retrieval"]["rsum"] for m in metrics]
    assert rows["tiny test", "rsum"]["values"] == pytest.approx(sums)
    assert rows["tiny test", "rsum"]["differences"][1]["difference"] == pytest.approx(
        sums[1] - sums[0]
    )
    assert rows["tiny test", "t2t r5"]["values"] == pytest.approx(
        [m["unimodal"]["t2t"]["r5"] for m in metrics]
    )
    of_sets = [i["sets"]["animals"]["heads"][i["head"]] for i in images]
    for name in ("r1", "r10", "map_at_r", "r_precision"):
        assert rows["animals", f"i2i {name}"]["values"] == pytest.approx([s[name] for s in of_sets])
    assert {p.name for p in (here / "made").iterdir()} == {
        "comparison.json",
        "comparison.html",
        "comparison.tex",
    }
    run_ok(*args)
    assert (adapter.parent / "eval/comparison.json").is_file()
    assert run_fault("eval", "compare", adapter) == Fault(SettingError, name="models")
    assert run_fault("eval", "compare", adapter, "other") == Fault(RunError, path=Path("other"))
    (here / "other").mkdir()
    assert run_fault("eval", "compare", adapter, "other") == Fault(RunError, path=Path("other"))
    (here / "other" / "config.yaml").touch()
    assert run_fault("eval", "compare", adapter, "other") == Fault(RunError, path=Path("other"))
    run_ok(
        "eval", "--model", home / "clip", *_dataset(home), "--bootstrap", 0, "--ties", "optimistic"
    )
    assert run_fault(*args) == Fault(RunError, name="ties")
    for name in ("retrieval", "images"):
        (here / f"runs/eval/clip/{name}-queries.npz").write_bytes(b"PK")
    assert run_fault(*args) == Fault(RunError, path=Path("runs/eval/clip/retrieval-queries.npz"))
