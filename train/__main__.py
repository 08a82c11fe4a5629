"""``python -m cusa.train``, for torchrun."""

import os
import sys

from cusa.cli.train import main

try:
    main(prog_name="cusa-train")
except SystemExit as stopped:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise
    # A thread of gloo's can outlive its process group. While the interpreter goes down it asks for
    # Python's lock and aborts the process, and torchrun then calls the whole run failed.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(stopped.code if isinstance(stopped.code, int) else 0)
