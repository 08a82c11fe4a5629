"""Tests run on the CPU and off the hub, also where a GPU or a network is there: the figures are the CPU's."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
