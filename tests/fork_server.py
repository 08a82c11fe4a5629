"""Scripts in processes of their own, forked from a server that has the libraries loaded already.

A new interpreter would import them first, for six seconds of a core; and a copy of the tests' own
process would have its threads, which a script that forks cannot have.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing.context import ForkServerContext
from pathlib import Path

from tests.child_processes import status_at_end

_LIBRARIES = [
    "tests.helpers",
    "cusa.precompute.tars.run",
    "cusa.train.trainer",
    "obstore",
    "sentence_transformers",
]


def fork_server() -> ForkServerContext:
    """Return the context of processes that this process's one server forks.

    Whoever is first starts it, and it keeps the environment of then.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_LIBRARIES)
    return context


def run_script(
    script: Path | str, *arguments: object, cwd: Path, timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run a script, or a module by its name, as ``python`` does; its status and what it printed.

    One that does not end is killed, and the test fails: with what it printed, as that is before the
    limit of a test (setup.cfg).
    """
    command = [str(script), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as name:
        streams = [Path(name) / "stdout", Path(name) / "stderr"]
        for stream in streams:
            stream.touch()
        arguments_of_run = (command, dict(os.environ), cwd, streams)
        process = fork_server().Process(target=_run, args=arguments_of_run)
        process.start()
        status = status_at_end(process, timeout_s)
        texts = [stream.read_text() for stream in streams]
    assert status is not None, f"{script} does not end: {texts}"
    return subprocess.CompletedProcess(command, status, *texts)


def _run(command: list[str], environment: dict[str, str], cwd: Path, streams: list[Path]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    for number, stream in enumerate(streams, start=1):
        with stream.open("w") as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.chdir(cwd)
    sys.argv = command
    script = Path(command[0])
    if script.suffix == ".py":
        sys.path.insert(0, str(script.parent))
        runpy.run_path(command[0], run_name="__main__")
    else:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
