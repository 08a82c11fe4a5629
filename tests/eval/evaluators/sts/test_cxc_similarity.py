import numpy as np
import pytest
from scipy.stats import spearmanr

from cusa.data.errors import CusaError, DataError, EmbeddingsError, FileFormatError
from cusa.eval.evaluators.sts.cxc import cxc_correlation, find_cxc
from tests.helpers import Fault, fault_of

STS = """caption1,caption2,agg_score,sampling_method
COCO_val2014:sentid:411553,COCO_val2014:sentid:5142,1.56,c2c_isim
COCO_val2014:sentid:411553,COCO_val2014:sentid:601619,3.1,c2c_cocaption
"""
SIS = """image1,image2,agg_score,sampling_method
COCO_val2014_000000205866.jpg,COCO_val2014_000000039081.jpg,3.6,i2i_csim
"""
SITS = """caption,image,agg_score,sampling_method
COCO_val2014:sentid:732091,COCO_val2014_000000365325.jpg,2.2,c2i_intrasim
COCO_val2014:sentid:5611,COCO_val2014_000000415770.jpg,5.0,c2i_original
"""


def test_the_files_of_the_repository(tmp_path):
    assert find_cxc(tmp_path) == {}
    folder = tmp_path / "Crisscrossed-Captions/data"
    folder.mkdir(parents=True)
    for kind, text in (("sts", STS), ("sis", SIS), ("sits", SITS)):
        (folder / f"{kind}_test.csv").write_text(text)
        (folder / f"{kind}_val.csv").write_text("not read")
    tasks = find_cxc(tmp_path)
    assert list(tasks) == ["sts", "sis", "sits"]
    found = {kind: (t.kind, t.first, t.second, t.gold.tolist()) for kind, t in tasks.items()}
    assert found == {
        "sts": ("sts", (411553, 411553), (5142, 601619), [1.56, 3.1]),
        "sis": ("sis", ("205866",), ("39081",), [3.6]),
        "sits": ("sits", (732091, 5611), ("365325", "415770"), [2.2, 5.0]),
    }
    (tmp_path / "sis_test.csv").write_text(SIS)
    with pytest.raises(CusaError) as refused:
        find_cxc(tmp_path)
    assert fault_of(refused.value) == Fault(DataError, path=tmp_path / "sis_test.csv", name="sis")


@pytest.mark.parametrize(
    ("kind", "text", "location"),
    [
        ("sts", SIS, "line 1"),
        ("sts", STS.replace("sentid:5142", "5142"), "line 2"),
        (
            "sis",
            SIS.replace("000000039081.jpg", "39081.png"),
            "line 2",
        ),
        ("sits", SITS.replace("5.0", "9"), "line 3"),
        ("sits", SITS.replace(",c2i_original", ""), "line 3"),
        ("sits", SITS.replace("c2i_original", "a,b"), "line 3"),
        ("sis", SIS.splitlines()[0], ""),
        ("sis", "", "line 1"),
        ("sis", '"image1,image2\n', "line 1"),
        (
            "sis",
            "image1,image2,agg_score," + "x" * 200_000,
            "line 1",
        ),
        ("sis", SIS.replace("image2,", "image2,image1,", 1), "line 1"),
        ("sis", SIS.replace("agg_score", "agg_score\0"), "line 1"),
        ("sits", SITS.replace("5.0", "0_5"), "line 3"),
        ("sits", SITS.replace("5.0", "\u0665"), "line 3"),
        ("sts", STS.replace("sentid:5142", "sentid:" + "9" * 5000), "line 2"),
    ],
)
def test_malformed_files(tmp_path, kind, text, location):
    path = tmp_path / f"{kind}_test.csv"
    path.write_text(text)
    with pytest.raises(CusaError) as error:
        find_cxc(tmp_path)
    assert fault_of(error.value) == Fault(FileFormatError, path=path, location=location)


def test_a_sample_is_of_half_the_queries_with_one_pair_each():
    """Between queries the model is right, within a query it is as wrong as can be.

    One pair of each query leaves the order between queries, so that every sample has correlation 1.
    Two pairs of one query would break it: those of query q have gold 10 q and 10 q + 5.
    """
    queries = [*range(7), *range(6, -1, -1)]  # not grouped
    gold = np.array([10.0 * q for q in range(7)] + [10.0 * q + 5 for q in range(6, -1, -1)])
    similarity = np.array([10.0 * q + 5 for q in range(7)] + [10.0 * q for q in range(6, -1, -1)])
    found = cxc_correlation(similarity, gold, queries, seed=0, samples=50)
    assert found["spearman_bootstrap"] == pytest.approx(100)
    assert found["std"] == pytest.approx(0, abs=1e-10)
    assert found["spearman"] == pytest.approx(100 * spearmanr(similarity, gold).statistic)
    assert found["spearman"] < 99
    assert found["pairs"] == 14


def test_the_mean_over_samples_is_that_of_all_samples():
    """Five queries, two of them with two pairs: all samples of two queries can be counted."""
    queries = ["a", "b", "b", "c", "d", "d", "e"]
    gold = np.array([1.0, 2, 3, 4, 5, 6, 7])
    similarity = np.array([1.0, 2, 9, 4, 5, 0, 7])  # wrong for the second pair of b and of d
    rows = {q: [i for i, other in enumerate(queries) if other == q] for q in "abcde"}
    values, weights = [], []
    for x in "abcde":
        for y in "abcde":
            if x < y:
                for i in rows[x]:
                    for j in rows[y]:
                        values.append(
                            100 * np.sign((gold[i] - gold[j]) * (similarity[i] - similarity[j]))
                        )
                        weights.append(1 / (len(rows[x]) * len(rows[y])))
    want = np.average(values, weights=weights)
    spread = np.average((np.array(values) - want) ** 2, weights=weights) ** 0.5
    found = cxc_correlation(similarity, gold, queries, seed=1, samples=2000)
    error = spread / 2000**0.5
    assert abs(found["spearman_bootstrap"] - want) < 4 * error
    assert found["std"] == pytest.approx(spread, rel=0.1)
    assert found == cxc_correlation(similarity, gold, queries, seed=1, samples=2000)
    assert found != cxc_correlation(similarity, gold, queries, seed=2, samples=2000)


def test_undefined_correlations():
    gold = np.arange(4.0)
    with pytest.raises(CusaError) as refused:
        cxc_correlation(gold, gold, [1, 1, 2, 2], seed=0)
    assert fault_of(refused.value) == Fault(EmbeddingsError, name="gold scores")
    with pytest.raises(CusaError) as refused:
        cxc_correlation(gold, gold, [1, 2, 3], seed=0)
    assert fault_of(refused.value) == Fault(EmbeddingsError, name="query_ids")
    with pytest.raises(CusaError) as refused:
        cxc_correlation(np.ones(4), gold, [1, 2, 3, 4], seed=0)
    assert fault_of(refused.value) == Fault(EmbeddingsError, name="similarities")
