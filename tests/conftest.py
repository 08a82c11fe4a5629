"""Tests run on the CPU and off the hub, also where a GPU or a network is there: the figures are the
CPU's. Nothing depends on the time that it takes.
"""

import os

import hypothesis

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models: more threads only wait for each other

hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")
