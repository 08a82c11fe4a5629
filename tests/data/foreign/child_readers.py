"""Readers for test_child.py, by name in a process of their own."""

import os
import signal
import sys

import numpy as np

from cusa.data.errors import FileFormatError


def give(path, text):
    """Content and an array."""
    return {"path": path, "text": text}, np.arange(6, dtype=">i2").reshape(2, 3)


def give_no_array(path):
    """Content alone."""
    return ["ü", 1], None


def give_nothing_in_it(path):
    """An array without an entry."""
    return None, np.zeros((0, 4), np.float32)


def refuse(path):
    """An error of ours."""
    raise FileFormatError(f"{path} is odd", location="line 3")


def crash(path):
    """A fault of the library."""
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(path):
    """A loop without end."""
    while True:
        pass


def leave(path):
    """An end without an answer, and something on standard output."""
    print("half an ans", end="")
    sys.stdout.flush()
    os._exit(0)


def take_memory(path):
    return len(bytes(2 << 30)), None
