"""``python -m cusa.train``, for torchrun."""

from cusa.train.cli import main

main(prog_name="cusa-train")
