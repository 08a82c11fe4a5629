from pathlib import Path
from types import SimpleNamespace

import numpy as np

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.records import Truth
from cusa.data.store.reader import EmbeddingStore
from cusa.eval.report.gallery import HITS_SHOWN, make_gallery
from tests.helpers import make_store, unit_rows

HEAD_OF = {"i2t": "cross", "t2i": "cross", "t2t": "uni", "i2i": "uni"}


def _split(tmp_path, truth):
    return EmbeddingStore(make_store(tmp_path, truth=truth)).split("test")  # 8 images, 16 captions


def test_hits_are_the_most_similar_candidates_and_never_the_query_itself(tmp_path):
    split = _split(tmp_path, truth=True)
    image, text = unit_rows(8, 4, 0), unit_rows(16, 4, 1)
    heads = {"cross": image, "uni": image}, {"cross": text, "uni": text}
    embeddings = SplitEmbeddings(*heads, np.arange(8), np.arange(16), np.arange(16) // 2)
    gallery = make_gallery(embeddings, split, Path("images"), HEAD_OF, per_task=3, seed=0)
    assert [g.task for g in gallery] == ["i2t"] * 3 + ["t2i"] * 3 + ["t2t"] * 3 + ["i2i"] * 3
    assert gallery == make_gallery(embeddings, split, Path("images"), HEAD_OF, per_task=3, seed=0)
    captions, ids = split.captions[:], split.image_ids[:]
    for g in gallery:
        rows = {"i": (image, ids), "t": (text, captions)}
        (queries, query_names), (candidates, names) = rows[g.task[0]], rows[g.task[2]]
        query = query_names.index(g.query.text)
        similarities = candidates @ queries[query]
        order = [
            c for c in np.argsort(-similarities).tolist() if g.task[0] != g.task[2] or c != query
        ]
        assert [h.item.text for h in g.hits] == [names[c] for c in order[:HITS_SHOWN]]
        group = {"i2t": lambda c, q: c // 2 == q, "t2i": lambda c, q: c == q // 2}.get(
            g.task, lambda c, q: c // 2 == q // 2
        )
        good = [group(c, query) for c in order]
        assert [h.correct for h in g.hits] == good[:HITS_SHOWN]
        assert g.rank == good.index(True)
        np.testing.assert_allclose(
            [h.similarity for h in g.hits], similarities[order[:HITS_SHOWN]], rtol=1e-5
        )
        assert g.answer.item.text == names[order[g.rank]]
        np.testing.assert_allclose(g.answer.similarity, similarities[order[g.rank]], rtol=1e-5)
    assert (
        gallery[3].hits[0].item.image_path
        == Path("images/test") / f"{gallery[3].hits[0].item.text[4:]}.jpg"
    )


def test_images_without_labels_have_neighbours_and_nothing_is_right_or_wrong(tmp_path):
    split = _split(tmp_path, truth=False)
    image = unit_rows(8, 4, 0)
    embeddings = SplitEmbeddings(
        {"cross": image},
        {"cross": unit_rows(16, 4, 1)},
        *(np.arange(8), np.arange(16)),
        np.arange(16) // 2,
    )
    gallery = make_gallery(
        embeddings, split, Path("images"), {"i2t": "cross", "i2i": "cross"}, per_task=4, seed=0
    )
    assert [g.task for g in gallery] == ["i2t"] * 4 + ["i2i"] * 4
    for g in gallery[4:]:
        query = split.image_ids[:].index(g.query.text)
        order = [c for c in np.argsort(-(image @ image[query])).tolist() if c != query]
        assert [h.item.text for h in g.hits] == [split.image_ids[c] for c in order[:HITS_SHOWN]]
        assert {h.correct for h in g.hits} == {None}
        assert (g.rank, g.answer) == (None, None)
    assert {h.correct for g in gallery[:4] for h in g.hits} == {True, False}


def test_only_what_has_an_embedding_is_shown(tmp_path):
    """Image 0 and caption 15 could not be read."""
    split = _split(tmp_path, truth=True)
    image, text = unit_rows(7, 4, 0), unit_rows(15, 4, 1)
    of = np.arange(15) // 2 - 1
    embeddings = SplitEmbeddings(
        {"cross": image}, {"cross": text}, np.arange(1, 8), np.arange(15), of
    )
    head_of = dict.fromkeys(HEAD_OF, "cross")
    gallery = make_gallery(embeddings, split, Path("images"), head_of, per_task=100, seed=0)
    assert [sum(g.task == task for g in gallery) for task in HEAD_OF] == [7, 13, 12, 6]
    shown = {h.item.text for g in gallery for h in g.hits} | {g.query.text for g in gallery}
    assert not shown & {split.image_ids[0], split.captions[15]}
    assert {g.query.text for g in gallery if g.task == "t2i"} == set(split.captions[2:15])


def test_a_hit_that_the_truth_knows_is_not_called_wrong(tmp_path):
    """Caption c of image c // 2 is true of the next image, too; image 0 could not be read."""
    plain = _split(tmp_path, truth=False)
    own = np.arange(16) // 2
    true_of = [sorted({int(image), (int(image) + 1) % 8}) for image in own]
    truth = Truth(np.arange(8), np.arange(0, 34, 2), np.array(true_of).ravel())
    parts = {
        name: getattr(plain, name) for name in ("n_images", "image_ids", "image_paths", "captions")
    }
    split = SimpleNamespace(**parts, truth=truth)
    image, text = unit_rows(7, 4, 0), unit_rows(14, 4, 1)  # image 0 and its captions are not there
    rows = np.arange(1, 8), np.arange(2, 16), np.arange(14) // 2
    embeddings = SplitEmbeddings({"cross": image}, {"cross": text}, *rows)
    head_of = {"i2t": "cross", "t2i": "cross", "t2t": "cross"}
    captions, ids = plain.captions[:], plain.image_ids[:]
    seen = set()
    for query in make_gallery(embeddings, split, Path(), head_of, per_task=20, seed=0):
        for hit in query.hits:
            if query.task == "t2t":
                assert (hit.is_true, hit.mark) == (None, "right" if hit.correct else "wrong")
                continue
            texts = (query.query.text, hit.item.text)
            caption = captions.index(texts[0] if query.task == "t2i" else texts[1])
            shown = ids.index(texts[1] if query.task == "t2i" else texts[0])
            expected = "right" if shown == own[caption] else "wrong"
            if expected == "wrong" and shown in true_of[caption]:
                expected = "true, but not labelled"
            assert hit.mark == expected
            seen.add(expected)
    assert seen == {"right", "wrong", "true, but not labelled"}
