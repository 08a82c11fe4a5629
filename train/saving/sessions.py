"""The sessions of a run: when, for how long and on which machine it was trained.

They are no part of the log and the checkpoints, which do not depend on where a run was killed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field, RootModel
from pydantic.dataclasses import dataclass

from cusa.data.environment import machine_name, versions
from cusa.data.errors import CusaError, first_line
from cusa.data.files import atomic_file
from cusa.data.parsing import read_json
from cusa.train.saving.plain_values import checked

SESSIONS_FILE = "sessions.json"


@dataclass(frozen=True)
class Session:
    """One process, or group of processes, that trained a run.

    Attributes:
        began: When training began, in UTC, as ISO 8601.
        seconds: From then to the last checkpoint.
        machine: The processor that computed, of the leading process.
        processes: Processes that trained together.
        versions: Versions of Python and of packages by name.
    """

    began: str
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    machine: str
    processes: Annotated[int, Field(ge=1)]
    versions: Mapping[str, str]


class SessionHistory(NamedTuple):
    """The sessions of a run.

    Attributes:
        sessions: The sessions, in order; none for a run that did not record them.
        note: Why they cannot be read; empty if they can.
    """

    sessions: list[Session]
    note: str


def read_sessions(run_dir: Path) -> SessionHistory:
    """Read a run's sessions; a damaged file is described in the note."""
    path = run_dir / SESSIONS_FILE
    if not path.is_file():
        return SessionHistory([], "")
    try:
        content = read_json(path)
        sessions = checked(RootModel[list[Session]], content, SESSIONS_FILE).root
    except (CusaError, OSError) as error:
        problem = f"{path} cannot be read, and the machine and time of training are left out"
        return SessionHistory([], f"{problem} ({first_line(error)})")
    return SessionHistory(sessions, "")


class SessionClock:
    """Records a session in the run's directory, after those before it.

    Args:
        run_dir: The run's directory.
        device: The device that the leading process computes on.
        processes: Processes that train together.
    """

    def __init__(self, run_dir: Path, device: str, processes: int) -> None:
        now = datetime.now(UTC)
        self._path = run_dir / SESSIONS_FILE
        self._earlier_sessions = read_sessions(run_dir).sessions
        self._start_seconds = time.monotonic()
        self._session = Session(
            began=now.isoformat(timespec="seconds"),
            seconds=0.0,
            machine=machine_name(device),
            processes=processes,
            versions=versions(),
        )

    def save(self) -> None:
        """Write the sessions, the last with the seconds until now.

        Raises:
            OSError: If they cannot be written; what was there before stays.
        """
        seconds = time.monotonic() - self._start_seconds
        own_session = replace(self._session, seconds=round(seconds, 3))
        sessions = [*self._earlier_sessions, own_session]
        entries = [asdict(session) for session in sessions]
        with atomic_file(self._path) as temporary:
            temporary.write_text(json.dumps(entries, indent=2))
