"""COCO's protocols: against figures of the eccv_caption package, the package itself, and explicit
loops.
"""

import importlib.util
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.errors import CusaError, FileFormatError, SettingError
from cusa.data.record_split import RecordSplit
from cusa.eval.evaluators.retrieval.coco import PLAUSIBLE, CocoTruths, coco_test, rank_coco
from cusa.eval.evaluators.retrieval.measure import measure_split
from cusa.eval.metrics.similarities import DotProducts
from tests.helpers import GOLDEN, Fault, fault_of

ECCV = json.loads((GOLDEN / "eccv.json").read_text())
NAMES = {"rprecision": "r_precision"}
PROTOCOLS = {"coco_5k", "coco_1k", "eccv", "cxc", "pmrp"}


def _files():
    return Path(importlib.util.find_spec("eccv_caption").submodule_search_locations[0]) / "data"


def _unit(rows):
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def golden():
    """Ids and float64 embeddings, as stored and normalised; row of each caption's image."""
    data = dict(np.load(GOLDEN / ECCV["file"], allow_pickle=False))
    of = json.loads((_files() / "original_caption_to_image.json").read_text())
    row = {i: n for n, i in enumerate(data["image_ids"].tolist())}
    data["caption_image"] = np.array([row[of[str(c)][0]] for c in data["caption_ids"].tolist()])
    for kind in ("image_emb", "caption_emb"):
        data[f"{kind}_dot"], data[f"{kind}_cosine"] = (
            data[kind].astype(np.float64),
            _unit(data[kind]),
        )
    return data


def _split(image_ids, caption_ids, caption_image, name="test"):
    texts = tuple(f"text of {c}" for c in caption_ids)
    paths = tuple(f"{i}.jpg" for i in image_ids)
    ids = tuple(str(i) for i in image_ids), paths, tuple(str(c) for c in caption_ids)
    return RecordSplit(name, "f" * 64, *ids, texts, np.asarray(caption_image), None)


def _embeddings(images, texts, caption_image):
    rows = np.arange(len(images)), np.arange(len(texts))
    return SplitEmbeddings({"cross": images}, {"cross": texts}, *rows, np.asarray(caption_image))


def _plain(golden, kind="cosine"):
    split = _split(golden["image_ids"], golden["caption_ids"], golden["caption_image"])
    embeddings = _embeddings(
        golden[f"image_emb_{kind}"], golden[f"caption_emb_{kind}"], golden["caption_image"]
    )
    return embeddings, split


def _scores(embeddings, split, dataset="coco", pmrp=None):
    """As the package gives them: fractions by name and direction."""
    test = coco_test(embeddings, split, dataset, CocoTruths(pmrp))
    found = {}
    products = DotProducts(embeddings.image["cross"], embeddings.text["cross"])
    for protocol, ways in rank_coco(products, test).items():
        for way, rankings in ways.items():
            for metric, values in rankings.values("pessimistic").items():
                found.setdefault(f"{protocol}_{metric}", {})[way] = float(values.mean()) / 100
    return found


def _check(found, wanted, tolerance=1e-12):
    for name, ways in wanted.items():
        protocol, _, metric = name.rpartition("_")
        if name.endswith("map_at_r"):
            protocol, metric = "eccv", "map_at_r"
        assert found[f"{protocol}_{NAMES.get(metric, metric)}"] == pytest.approx(
            ways, abs=tolerance
        ), name


@pytest.mark.parametrize("kind", ["cosine", "dot"])
def test_golden(golden, kind):
    wanted = ECCV["results"][kind]["scores"] | ECCV["results"][kind]["extra_eccv_recalls"]
    assert len(wanted) == 14
    _check(_scores(*_plain(golden, kind)), wanted)


def test_order_and_more_captions_change_nothing(golden, tmp_path):
    """Karpathy's split has ten captions more, and an order of its own; float32, as encoders give
    them.
    """
    rng = np.random.default_rng(0)
    images, captions = rng.permutation(5_000), rng.permutation(25_010)
    more = rng.choice(5_000, 10, replace=False)
    ids = np.concatenate([golden["caption_ids"], 9_000_000 + np.arange(10)])[captions]
    rows = np.concatenate([golden["caption_emb_cosine"], golden["image_emb_cosine"][more]])[
        captions
    ]  # best hits
    place = np.argsort(images)  # of an image of the golden order
    of = place[np.concatenate([golden["caption_image"], more])[captions]]
    split = _split(golden["image_ids"][images], ids, of)
    embeddings = _embeddings(
        golden["image_emb_cosine"][images].astype(np.float32), rows.astype(np.float32), of
    )
    scores = ECCV["results"]["cosine"]["scores"]
    assert ECCV["results"]["cosine"]["float32_scores_max_abs_diff"] == 0
    _check(_scores(embeddings, split, dataset="whatever it is called"), scores)
    _plausible(tmp_path / "pm", golden)
    found, ranked = measure_split(
        embeddings, split, "cross", coco_test(embeddings, split, "x", CocoTruths(tmp_path / "pm"))
    )
    protocols = found["heads"]["cross"]["protocols"]
    assert set(protocols) == PROTOCOLS
    assert {way: part["queries"] for way, part in protocols["pmrp"].items()} == {
        "i2t": 40,
        "t2i": 60,
    }
    assert (found["retrieval"]["i2t"]["candidates"], protocols["coco_5k"]["i2t"]["candidates"]) == (
        25_010,
        25_000,
    )
    for way in ("i2t", "t2i"):
        for metric in ("map_at_r", "r_precision", "r1"):
            value = scores[f"eccv_{metric.replace('r_p', 'rp')}"][way]
            assert protocols["eccv"][way][metric] == pytest.approx(100 * value, abs=1e-10)
        assert protocols["eccv"][way]["queries"] == ECCV["n_queries"]["eccv"][way]
        assert protocols["cxc"][way]["queries"] == ECCV["n_queries"]["cxc"][way]
    assert (
        protocols["coco_1k"]["t2i"]["candidates"],
        protocols["coco_1k"]["i2t"]["candidates"],
    ) == (1_000, 5_000)
    assert protocols["coco_1k"]["folds"] == 5
    assert protocols["coco_1k"]["rsum"] == pytest.approx(
        sum(100 * scores[f"coco_1k_r{k}"][way] for k in (1, 5, 10) for way in ("i2t", "t2i"))
    )
    assert {f"cross/{p}/{way}" for p in PROTOCOLS for way in ("i2t", "t2i")} <= set(ranked)


@pytest.fixture(scope="module")
def other(golden):
    """Embeddings of 16 dimensions, all similarities, and files of plausible matches for some of the
    queries.
    """
    rng = np.random.default_rng(1)
    images = _unit(rng.normal(size=(5_000, 16)))
    texts = _unit(images[golden["caption_image"]] + 0.2 * rng.normal(size=(25_000, 16)))
    return images, texts, images @ texts.T


def _first(scores, ids, depth):
    """The first items of each row, by similarity."""
    return ids[torch.from_numpy(np.ascontiguousarray(scores)).topk(depth).indices.numpy()].tolist()


def test_the_package_itself(golden, other):
    """Rankings as deep as its metrics look: 200 items of all, and for COCO 1K ten of the query's
    fold.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would rather have ujson
        from eccv_caption import Metrics
    images, texts, scores = other
    image_ids, caption_ids = golden["image_ids"], golden["caption_ids"]
    package = Metrics()
    assert max(len(v) for way in package.eccv_gts.values() for v in way.values()) < 200
    found = package.compute_all_metrics(
        dict(zip(image_ids.tolist(), _first(scores, caption_ids, 200), strict=True)),
        dict(zip(caption_ids.tolist(), _first(scores.T, image_ids, 200), strict=True)),
        target_metrics=(
            "coco_5k_recalls",
            "cxc_recalls",
            "eccv_r1",
            "eccv_rprecision",
            "eccv_map_at_r",
        ),
    )
    i2t, t2i = {}, {}
    for fold in range(5):
        i, c = slice(1_000 * fold, 1_000 * fold + 1_000), slice(5_000 * fold, 5_000 * fold + 5_000)
        i2t |= zip(image_ids[i].tolist(), _first(scores[i, c], caption_ids[c], 10), strict=True)
        t2i |= zip(caption_ids[c].tolist(), _first(scores[i, c].T, image_ids[i], 10), strict=True)
    found |= package.compute_all_metrics(i2t, t2i, target_metrics=("coco_1k_recalls",))
    assert len(found) == 12
    assert 0.1 < found["coco_5k_r1"]["t2i"] < found["coco_1k_r1"]["t2i"] < 0.9
    split = _split(image_ids, caption_ids, golden["caption_image"])
    _check(_scores(_embeddings(images, texts, golden["caption_image"]), split), found)


def test_a_fold_is_a_fifth_of_the_images_in_the_order_of_the_id_list(golden, other):
    images, texts, scores = other
    embeddings = _embeddings(images, texts, golden["caption_image"])
    test = coco_test(embeddings, _plain(golden)[1], "coco", CocoTruths())
    ranks = rank_coco(DotProducts(images, texts), test)["coco_1k"]
    for caption in (0, 4_999, 5_000, 24_999):
        own = golden["caption_image"][caption]
        fold = own // 1_000
        of_fold = scores[1_000 * fold : 1_000 * fold + 1_000, caption]
        assert ranks["t2i"].best.pessimistic[caption] == np.count_nonzero(
            of_fold > scores[own, caption]
        )
    for image in (999, 1_000):
        fold = image // 1_000
        of_fold = scores[image, 5_000 * fold : 5_000 * fold + 5_000]
        best = scores[image, golden["caption_image"] == image].max()
        assert ranks["i2t"].best.pessimistic[image] == np.count_nonzero(of_fold > best)


def _plausible(folder, golden, seed=2):
    """Files of plausible matches for 40 images and 60 captions; one match is no candidate, one
    query has none.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir()
    ids = golden["image_ids"], golden["caption_ids"]
    truths = []
    for name, (queries, candidates), n in zip(PLAUSIBLE, (ids, ids[::-1]), (40, 60), strict=True):
        truth = {
            str(q): rng.choice(candidates, rng.integers(1, 300), replace=False).tolist()
            for q in rng.choice(queries, n, replace=False)
        }
        without, strange = list(truth)[:2]
        truth[without] = []
        truth[strange].append(999_999_999)
        (folder / name).write_text(json.dumps(truth))
        truths.append(truth)
    return truths


def test_plausible_matches(golden, other, tmp_path):
    images, texts, scores = other
    truths = _plausible(tmp_path / "pm", golden)
    embeddings, split = _embeddings(images, texts, golden["caption_image"]), _plain(golden)[1]
    found = _scores(embeddings, split, pmrp=tmp_path / "pm")["pmrp_r_precision"]
    sides = (
        (golden["image_ids"], golden["caption_ids"], scores),
        (golden["caption_ids"], golden["image_ids"], scores.T),
    )
    for way, truth, (queries, candidates, similarities) in zip(
        ("i2t", "t2i"), truths, sides, strict=True
    ):
        shares = []
        for query, relevant in truth.items():
            row = similarities[np.flatnonzero(queries == int(query))[0]]
            first = candidates[np.argsort(-row)[: len(relevant)]].tolist()
            shares.append(len(set(first) & set(relevant)) / max(1, len(relevant)))
        assert found[way] == pytest.approx(np.mean(shares), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "content", "location"),
    [
        (
            PLAUSIBLE[0],
            None,
            "",
        ),
        (PLAUSIBLE[1], None, ""),
        (PLAUSIBLE[1], b"{", "line 1"),
        (PLAUSIBLE[0], b"\xff\xfe", "byte 0"),
        (PLAUSIBLE[0], b"[]", "the whole file"),
        (PLAUSIBLE[0], b'{"391895": 3}', "391895"),
        (PLAUSIBLE[0], b"{}", "the whole file"),
        (
            PLAUSIBLE[0],
            b'{"391895": [], "7": [1]}',
            "7",
        ),
    ],
)
def test_bad_files_of_plausible_matches(golden, tmp_path, name, content, location):
    _plausible(tmp_path / "pm", golden)
    path = tmp_path / "pm" / name
    path.write_bytes(content) if content is not None else path.unlink()
    with pytest.raises(CusaError) as error:
        coco_test(*_plain(golden), "coco", CocoTruths(tmp_path / "pm"))
    assert fault_of(error.value) == Fault(FileFormatError, path=path, location=location)


def test_not_all_items_are_no_test(golden, tmp_path):
    embeddings, split = _plain(golden)
    cut = _embeddings(
        embeddings.image["cross"], embeddings.text["cross"][:-1], embeddings.caption_image[:-1]
    )
    assert coco_test(cut, split, "coco", CocoTruths()) is None
    lost = _embeddings(
        *(embeddings.image["cross"], embeddings.text["cross"]), golden["caption_image"].copy()
    )
    lost.caption_image[7] = -1  # its image could not be read
    assert coco_test(lost, split, "coco", CocoTruths()) is None
    with pytest.raises(CusaError) as refused:
        coco_test(lost, split, "coco", CocoTruths(tmp_path))
    assert fault_of(refused.value) == Fault(SettingError, name="pmrp")


def test_without_the_package_it_is_the_first_five_captions_by_order(golden, monkeypatch, tmp_path):
    """Images of 5 to 7 captions, in mixed order."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    rng = np.random.default_rng(3)
    of = rng.permutation(np.concatenate([np.repeat(np.arange(5_000), 5), [2, 2, 4_000]]))
    images, texts = _unit(rng.normal(size=(5_000, 4))), _unit(rng.normal(size=(25_003, 4)))
    embeddings, split = _embeddings(images, texts, of), _split(range(5_000), range(25_003), of)
    test = coco_test(embeddings, split, "coco", CocoTruths())
    assert test.truths == {}
    for image in (0, 2, 4_000, 4_999):
        mine = np.flatnonzero(of == image)[:5]
        np.testing.assert_array_equal(np.sort(test.captions[test.caption_image == image]), mine)
    assert len(test.captions) == 25_000
    found = rank_coco(DotProducts(images, texts), test)
    assert set(found) == {"coco_5k", "coco_1k"}
    own = [np.flatnonzero(of == image)[:5] for image in range(1_000)]
    fold = np.concatenate(own)
    scores = images[1] @ texts[fold].T
    assert found["coco_1k"]["i2t"].best.pessimistic[1] == np.count_nonzero(
        scores > scores[5:10].max()
    )
    assert coco_test(embeddings, split, "other", CocoTruths()) is None
    assert (
        coco_test(embeddings, _split(range(5_000), range(25_003), of, "val"), "coco", CocoTruths())
        is None
    )
    fewer = np.where(of == 9, 10, of)  # an image without captions
    assert coco_test(_embeddings(images, texts, fewer), split, "coco", CocoTruths()) is None
    with pytest.raises(CusaError) as refused:
        coco_test(embeddings, split, "coco", CocoTruths(tmp_path))
    assert fault_of(refused.value) == Fault(SettingError, name="pmrp")
