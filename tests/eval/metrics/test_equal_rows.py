"""Equal rows are found, and tie in every ranking whatever the BLAS does."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cusa
from cusa.eval.evaluators.retrieval.measure import cross_modal_recalls
from cusa.eval.metrics.by_class import image_retrieval
from cusa.eval.metrics.equal_rows import first_equal_row

ROOT = Path(cusa.__file__).parent.parent


@settings(max_examples=100)
@given(st.data())
def test_the_first_equal_row_is_found_by_comparing_all(data):
    n, dim = data.draw(st.integers(0, 12)), data.draw(st.integers(0, 3))
    values = data.draw(
        st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.5]), min_size=n * dim, max_size=n * dim)
    )
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    rows = np.array(values, dtype).reshape(n, dim)
    expected = [next(j for j in range(n) if (rows[i] == rows[j]).all()) for i in range(n)]
    assert first_equal_row(rows).tolist() == expected


def test_rows_that_differ_in_the_last_column_alone_differ():
    rows = np.ones((5, 300), np.float32)
    rows[[1, 3], -1] = np.nextafter(np.float32(1), np.float32(2))
    assert first_equal_row(rows).tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("kernels", ["", "COMPATIBLE"])
def test_equal_embeddings_tie_under_any_kernels(kernels):
    """MKL takes its kernels from the environment, when torch is loaded: a process of its own."""
    environment = {**os.environ, **({"MKL_CBWR": kernels} if kernels else {})}
    code = "from tests.eval.metrics.ties import check_shapes; check_shapes(120)"
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("normalize", [True, False])
def test_a_model_that_maps_all_images_to_one_point_finds_nothing(normalize):
    rows = np.tile(np.random.default_rng(0).normal(size=384), (20, 1))
    assert image_retrieval(rows, np.arange(20) // 10, normalize=normalize)["r1"] == 0.0


def test_captions_that_are_all_alike_find_nothing():
    row = np.random.default_rng(0).normal(size=1024)
    figures = cross_modal_recalls(np.tile(row, (5, 1)), np.tile(row, (25, 1)), np.arange(25) // 5)
    # Twenty captions of other images are ahead.
    assert [figures["i2t"][f"r{k}"] for k in (1, 5, 10)] == [0, 0, 0]
    # Four other images are ahead.
    assert [figures["t2i"][f"r{k}"] for k in (1, 5, 10)] == [0, 100, 100]
    assert (figures["i2t"]["tied"], figures["t2i"]["tied"]) == (5, 25)
