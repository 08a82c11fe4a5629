from pathlib import Path

import numpy as np

from cusa.data.store import EmbeddingStore
from cusa.eval.gallery import TOP, make_gallery
from cusa.train.encode import SplitEmbeddings
from tests.helpers import make_store, unit_rows


def test_hits_are_the_most_similar_candidates_and_never_the_query_itself(tmp_path):
    split = EmbeddingStore(make_store(tmp_path, truth=True)).split("test")  # 8 images, 16 captions
    image, text = unit_rows(8, 4, 0), unit_rows(16, 4, 1)
    heads = {"cross": image, "uni": image}, {"cross": text, "uni": text}
    embeddings = SplitEmbeddings(*heads, np.arange(8), np.arange(16), np.arange(16) // 2)
    head_of = {"i2t": "cross", "t2i": "cross", "t2t": "uni", "i2i": "uni"}
    gallery = make_gallery(embeddings, split, Path("images"), head_of, per_task=3, seed=0)
    assert [g.task for g in gallery] == ["i2t"] * 3 + ["t2i"] * 3 + ["t2t"] * 3 + ["i2i"] * 3
    assert gallery == make_gallery(embeddings, split, Path("images"), head_of, per_task=3, seed=0)
    captions, ids = split.captions[:], split.image_ids[:]
    for g in gallery:
        rows = {"i": (image, ids), "t": (text, captions)}
        (queries, query_names), (candidates, names) = rows[g.task[0]], rows[g.task[2]]
        query = query_names.index(g.query.text)
        similarities = candidates @ queries[query]
        order = [c for c in np.argsort(-similarities).tolist() if g.task[0] != g.task[2] or c != query]
        assert [h.item.text for h in g.hits] == [names[c] for c in order[:TOP]]
        group = {"i2t": lambda c, q: c // 2 == q, "t2i": lambda c, q: c == q // 2}.get(
            g.task, lambda c, q: c // 2 == q // 2
        )
        good = [group(c, query) for c in order]
        assert [h.correct for h in g.hits] == good[:TOP]
        assert g.rank == good.index(True)
        np.testing.assert_allclose([h.similarity for h in g.hits], similarities[order[:TOP]], rtol=1e-5)
    assert gallery[3].hits[0].item.image_path == Path("images/test") / f"{gallery[3].hits[0].item.text[4:]}.jpg"
