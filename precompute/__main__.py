"""``python -m cusa.precompute``, which torchrun can start."""

from cusa.precompute.cli import main

main()
