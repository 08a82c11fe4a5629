import shlex
import subprocess
import sys
from pathlib import Path

from cusa.data.console import shell_command


def test_a_printed_command_runs_where_the_environment_is_not_active(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    printed = shell_command("cusa-store", "info", "my store.h5")
    assert shlex.split(printed) == [str(Path(sys.executable).parent / "cusa-store"), "info", "my store.h5"]
    assert subprocess.run([shlex.split(printed)[0], "--help"], capture_output=True).returncode == 0


def test_a_printed_command_is_short_where_the_environment_is_active(monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert shell_command("cusa-eval", "--run", Path("runs/a")) == "cusa-eval --run runs/a"
