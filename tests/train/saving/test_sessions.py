"""sessions.json of a run: added to by each session, and never in the way of training."""

import json
from dataclasses import asdict

import pytest

from cusa.data.environment import cpu_count, versions
from cusa.train.saving.sessions import SESSIONS_FILE, SessionClock, read_sessions


def test_each_session_is_added(tmp_path):
    assert read_sessions(tmp_path) == ([], "")
    first = SessionClock(tmp_path, "cpu", 1)
    first.save()
    first.save()  # the same session again, at its next checkpoint
    SessionClock(tmp_path, "cpu", 2).save()
    sessions, note = read_sessions(tmp_path)
    assert note == ""
    assert [session.processes for session in sessions] == [1, 2]
    assert sessions[0].versions == versions()
    assert sessions[0].machine.endswith(f", {cpu_count()} core{'s' * (cpu_count() != 1)}")
    assert sessions[0].began.endswith("+00:00")
    assert all(session.seconds >= 0 for session in sessions)


@pytest.mark.parametrize(
    "change",
    [
        lambda session: session.pop("machine"),
        lambda session: session.update(seconds=-1),
        lambda session: session.update(seconds="1"),
        lambda session: session.update(processes=0),
        lambda session: session.update(versions=["torch"]),
    ],
)
def test_a_damaged_file_is_noted_and_replaced(tmp_path, change):
    clock = SessionClock(tmp_path, "cpu", 1)
    clock.save()
    session = asdict(read_sessions(tmp_path).sessions[0])
    change(session)
    (tmp_path / SESSIONS_FILE).write_text(json.dumps([session]))
    sessions, note = read_sessions(tmp_path)
    assert sessions == []
    assert str(tmp_path / SESSIONS_FILE) in note
    assert "\n" not in note
    SessionClock(tmp_path, "cpu", 1).save()
    assert len(read_sessions(tmp_path).sessions) == 1


@pytest.mark.parametrize("content", [b"", b"[", b"\xff\xfe", b"{}", b"null"])
def test_what_is_no_json_of_sessions_is_noted(tmp_path, content):
    (tmp_path / SESSIONS_FILE).write_bytes(content)
    sessions, note = read_sessions(tmp_path)
    assert sessions == []
    assert note
