"""``python -m cusa.train``, for torchrun."""

import os
import sys

from cusa.cli.train import main

try:
    main(prog_name="cusa-train")
except SystemExit as stopped:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise
    # A gloo thread can outlive its process group. If it asks for the GIL while the interpreter
    # shuts down, the process is aborted, and torchrun reports the whole run as failed.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(stopped.code if isinstance(stopped.code, int) else 0)
