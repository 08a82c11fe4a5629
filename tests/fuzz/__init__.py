"""The fuzzer: damaged files of every kind that we read, each read right or refused in one line.

``python -m tests.fuzz --help`` runs it by hand; tests/fuzz/test_fuzz.py runs a few cases of every
target. A new kind of file is a :class:`tests.fuzz.harness.Target` in a module of
tests/fuzz/targets.
"""
