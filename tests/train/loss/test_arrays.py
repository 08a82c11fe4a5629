"""Losses on numpy rows equal those on tensors, without a warning.

The rows are of any dtype, order and byte order, and from read-only memory.
"""

import numpy as np
import pytest
import torch

from cusa.data.errors import EmbeddingsError
from cusa.data.store.reader import EmbeddingStore
from cusa.train.loss.cusa_loss import CUSALoss
from cusa.train.loss.functions import (
    contrastive_loss,
    fuse_similarities,
    soft_label_loss,
    soft_labels,
)
from cusa.train.loss.matching import hard_negatives
from tests.helpers import make_store

N = 6


def _features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(N, 5, generator=generator, requires_grad=True) for _ in range(4)]


def _teachers(dtype=np.float32):
    rng = np.random.default_rng(1)
    return [rng.normal(size=(N, dim)).astype(dtype) for dim in (4, 7)]


IDS = np.array([3, 3, 8, 1, 1, 0])


def _readonly_map(tmp_path, rows):
    path = tmp_path / f"rows{len(list(tmp_path.iterdir()))}.bin"
    rows.tofile(path)
    return np.memmap(path, rows.dtype, "r", shape=rows.shape)


FORMS = {
    "plain": lambda rows, _: rows,
    "read-only": lambda rows, _: np.frombuffer(rows.tobytes(), rows.dtype).reshape(rows.shape),
    "read-only map": lambda rows, path: _readonly_map(path, rows),
    "of columns": lambda rows, _: np.asfortranarray(rows),
    "reversed": lambda rows, _: np.ascontiguousarray(rows[::-1])[::-1],
    "of the other byte order": lambda rows, _: rows.astype(rows.dtype.newbyteorder()),
    "every second": lambda rows, _: np.repeat(rows, 2, axis=0)[::2],
}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("method", ["dense", "tiled"])
def test_the_loss_on_arrays_is_that_on_tensors(tmp_path, dtype, form, method):
    """Values and gradients; warnings are errors here."""
    results = []
    for as_arrays in (False, True):
        features, teachers = _features(), _teachers(dtype)
        ids = torch.from_numpy(IDS)
        if as_arrays:
            teachers = [form(rows, tmp_path) for rows in teachers]
            before = [rows.copy() for rows in teachers]
            ids = form(IDS, tmp_path)
        else:
            teachers = [torch.from_numpy(rows) for rows in teachers]
        terms = CUSALoss(method=method)(*features, *teachers, ids)
        terms.total.backward()
        results.append([*terms, *(x.grad for x in features)])
        if as_arrays:
            assert all(
                np.array_equal(rows, old) for rows, old in zip(teachers, before, strict=True)
            )
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64, np.uint64, ">i8"])
def test_ids_of_every_integer_type(dtype):
    expected = CUSALoss()(*_features(), *_teachers(), torch.from_numpy(IDS)).total
    assert CUSALoss()(*_features(), *_teachers(), IDS.astype(dtype)).total == expected


def test_rows_come_straight_from_a_store(tmp_path):
    store = EmbeddingStore(make_store(tmp_path, dim=8))
    captions = np.array([5, 0, 7, 9, 2, 1])
    images = store.split("train").caption_image[captions]
    rows = [
        store.embeddings("vision", "train").gather(images),
        store.embeddings("words", "train").gather(captions),
    ]
    expected = CUSALoss()(
        *_features(), *(torch.from_numpy(r) for r in rows), torch.from_numpy(np.array(images))
    )
    assert CUSALoss()(*_features(), *rows, images).total == expected.total


def test_the_form_on_similarities_takes_arrays_too():
    similarity = torch.randn(N, N, generator=torch.Generator().manual_seed(2))
    uni, teachers = _features()[2:], _teachers(np.float16)
    expected = CUSALoss().on_similarities(
        similarity, *uni, *map(torch.from_numpy, teachers), torch.from_numpy(IDS)
    )
    assert CUSALoss().on_similarities(similarity, *uni, *teachers, IDS).total == expected.total


def test_the_functions_take_arrays(tmp_path):
    """Against plain numpy in float64."""
    rng = np.random.default_rng(0)
    student, image, text = (rng.normal(size=(N, N)) for _ in range(3))
    image = _readonly_map(tmp_path, image)

    def softmax(values):
        exponents = np.exp(values - values.max(axis=1, keepdims=True))
        return exponents / exponents.sum(axis=1, keepdims=True)

    p, q = softmax(image / 0.5), softmax(student / 0.2)
    assert soft_labels(image, 0.5).numpy() == pytest.approx(p)
    expected = (p * (np.log(p) - np.log(q))).sum(axis=1).mean()
    assert soft_label_loss(torch.from_numpy(student), image, 0.2, 0.5).item() == pytest.approx(
        expected
    )
    one, two = fuse_similarities(image, text, "add")
    assert one.numpy() == pytest.approx((np.asarray(image) + text) / 2)
    assert two is one
    assert fuse_similarities(image, text, "dot")[0].numpy() == pytest.approx(
        np.sqrt(np.maximum(image, 0) * np.maximum(text, 0))
    )
    same = IDS[:, None] == IDS
    expected = -(same / same.sum(axis=1, keepdims=True) * np.log(q)).sum(axis=1).mean()
    assert contrastive_loss(torch.from_numpy(student), 0.2, IDS).item() == pytest.approx(expected)
    chosen = hard_negatives(
        torch.from_numpy(student), IDS, generator=torch.Generator().manual_seed(0)
    ).numpy()
    assert (IDS[chosen] != IDS).all()


def test_half_precision_similarities_are_computed_in_single():
    similarity = np.linspace(-1, 1, N * N).reshape(N, N).astype(np.float16)
    labels = soft_labels(similarity, 0.1)
    assert labels.dtype == torch.float32
    assert torch.equal(labels, soft_labels(torch.from_numpy(similarity).float(), 0.1))


REFUSED = {
    "teacher_image of integers": ("teacher_image", np.ones((N, 4), int)),
    "teacher_image of texts": ("teacher_image", np.full((N, 4), "x")),
    "teacher_text of objects": ("teacher_text", np.full((N, 4), None)),
    "teacher_text a list": ("teacher_text", [[1.0]] * N),
    "teacher_text of another length": ("teacher_text", np.ones((N + 1, 4))),
    "teacher_text a vector": ("teacher_text", np.ones(N)),
    "ids of floats": ("image_ids", np.ones(N)),
    "ids as a tensor of floats": ("image_ids", torch.ones(N, dtype=torch.float16)),
    "ids as a tensor of bool": ("image_ids", torch.ones(N, dtype=torch.bool)),
    "ids of texts": ("image_ids", np.full(N, "a")),
    "too many ids": ("image_ids", np.arange(N + 1)),
    "NaN": ("teacher_image", np.full((N, 4), np.nan)),
}


@pytest.mark.parametrize(("name", "array"), REFUSED.values(), ids=REFUSED)
def test_other_arrays_are_refused(name, array):
    image, text = _teachers()
    arguments = {"teacher_image": image, "teacher_text": text, "image_ids": IDS}
    arguments[name] = array
    with pytest.raises(EmbeddingsError) as error:
        CUSALoss()(*_features(), **arguments)
    assert error.value.name.partition("[")[0] == name


def test_a_students_features_are_tensors_and_teachers_rows_are_floats():
    features, teachers = _features(), _teachers()
    wrong_features = [tensor.detach().numpy() for tensor in features]
    wrong_features += [tensor.detach().long() for tensor in features]
    names = ("image_features", "text_features", "uni_image_features", "uni_text_features")
    for number, wrong in enumerate(wrong_features):
        position = number % len(names)
        given = [*features[:position], wrong, *features[position + 1 :]]
        with pytest.raises(EmbeddingsError) as error:
            CUSALoss()(*given, *teachers)
        assert error.value.name == names[position]
    with pytest.raises(EmbeddingsError) as error:
        CUSALoss().on_similarities(np.eye(N), *features[2:], *teachers)
    assert error.value.name == "similarity"
    with pytest.raises(EmbeddingsError) as error:
        CUSALoss()(*features, teachers[0], torch.ones(N, 3, dtype=torch.int64))
    assert error.value.name == "teacher_text"


def test_matrices_of_other_sizes_are_refused_and_not_broadcast():
    similarity, row = torch.eye(N), np.ones((1, N))
    for name, call in (
        ("teacher_similarity", lambda: soft_label_loss(similarity, row, tau=0.1)),
        ("teacher_similarity", lambda: soft_label_loss(similarity, torch.ones(N), tau=0.1)),
        ("similarity", lambda: soft_label_loss(torch.ones(N), torch.ones(N), tau=0.1)),
        ("text_similarity", lambda: fuse_similarities(similarity, row, "add")),
        ("similarity", lambda: contrastive_loss(torch.ones(N, N + 1), tau=0.1)),
        ("similarity", lambda: contrastive_loss(torch.ones(N), tau=0.1)),
    ):
        with pytest.raises(EmbeddingsError) as error:
            call()
        assert error.value.name == name


@pytest.mark.parametrize("size", [1e-60, 1e60])
@pytest.mark.parametrize("method", ["dense", "tiled"])
def test_the_size_of_teacher_rows_changes_nothing(size, method):
    """float32, in which the student's features are, holds neither of them."""
    expected = CUSALoss(method=method)(*_features(), *_teachers(np.float64)).total
    teachers = [rows * size for rows in _teachers(np.float64)]
    torch.testing.assert_close(CUSALoss(method=method)(*_features(), *teachers).total, expected)
