"""The published rows: found for the setting that they are of, and for no other."""

import pytest

from cusa.eval.report.paper import paper_retrieval, paper_row, paper_tables

COCO = {"dataset": "coco", "split": "test", "n_images": 5000, "n_captions": 25000}
FLICKR = {"dataset": "flickr30k", "split": "test", "n_images": 1000, "n_captions": 5000}
CUSA = ("contrastive", "csa", "usa")


@pytest.mark.parametrize(
    ("student", "terms", "split", "method", "rsum"),
    [
        ("openai/clip-vit-base-patch32", ("contrastive",), COCO, "baseline", 422.6),
        ("openai/clip-vit-base-patch32", CUSA, COCO, "CUSA", 429.7),
        ("models/clip-vit-large-patch14-336/", ("csa", "contrastive"), FLICKR, "CSA", 559.4),
    ],
)
def test_the_row_of_a_setting(student, terms, split, method, rsum):
    row = paper_retrieval(student, terms, split)
    assert (row["method"], row["rsum"]) == (method, rsum)


@pytest.mark.parametrize(
    ("student", "terms", "metrics"),
    [
        ("openai/clip-vit-base-patch16", CUSA, COCO),
        ("openai/clip-vit-base-patch32", ("csa",), COCO),
        ("openai/clip-vit-base-patch32", CUSA, {**COCO, "split": "val"}),
        ("openai/clip-vit-base-patch32", CUSA, {**COCO, "n_images": 4999}),
        ("openai/clip-vit-base-patch32", CUSA, {**COCO, "dataset": "mine"}),
    ],
)
def test_no_row_for_another_setting(student, terms, metrics):
    assert paper_retrieval(student, terms, metrics) is None


def test_rows_of_the_other_tables():
    images = paper_row("openai/clip-vit-base-patch32", CUSA, "image_retrieval_r1").to_dict()
    assert set(images) == {"host", "method", "cub", "sop", "inshop", "inaturalist", "average"}
    sts = paper_row("openai/clip-vit-base-patch32", ("contrastive",), "sts_spearman")
    assert (sts.method, len(sts.scores)) == ("baseline", 8)
    assert paper_row("adapter", CUSA, "sts_spearman") is None


def test_the_sums_of_the_published_rows_are_the_sums_of_their_recalls():
    """To the rounding of six figures."""
    for row in paper_tables()["cross_modal"]:
        for split in ("coco5k", "flickr1k"):
            if split in row:
                recalls = [v for k, v in row[split].items() if k != "rsum"]
                assert sum(recalls) == pytest.approx(row[split]["rsum"], abs=0.31), row["host"]
