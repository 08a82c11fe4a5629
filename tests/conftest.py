"""Tests run on the CPU and off the hub, also where a GPU or a network is there: the figures are the
CPU's. Nothing depends on the time that it takes.
"""

import gc
import multiprocessing
import os
import sys

import hypothesis
import pytest

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models: more threads only wait for each other

hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")


def pytest_sessionfinish():
    """Kill what a failed test has left running, which this process would wait for."""
    for process in multiprocessing.active_children():
        process.kill()


_MANY_MODULES = 50
_n_exempted_modules = 0


@pytest.fixture(autouse=True, scope="module")
def _exempt_imported_modules():
    """Exempt what has been imported so far from garbage collection.

    That is half a million objects, which ``cusa-eval`` would walk whenever it releases a model.
    """
    global _n_exempted_modules
    if len(sys.modules) > _n_exempted_modules + _MANY_MODULES:
        gc.collect()
        gc.freeze()
        _n_exempted_modules = len(sys.modules)
