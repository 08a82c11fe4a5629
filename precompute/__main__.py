"""``python -m cusa.precompute``, which torchrun can start."""

from cusa.cli.precompute import main

main()
