"""A small stand-in of the hub on this machine: repositories, commits and downloads over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "a-token"
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(\w+)/([^/]+))?(?:/(.+))?")
_RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_MISSING = (404, {"X-Error-Code": "RepoNotFound"})
_GATED = (403, {"X-Error-Code": "GatedRepo"})


@dataclass
class Repository:
    """A repository: its files by path, and what it does when it is asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = True
    gated: bool = False
    n_commits: int = 0

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(self.n_commits).encode()).hexdigest()


@dataclass
class StandIn:
    """The hub's repositories by kind and name, and the downloads that break.

    Attributes:
        repositories: By ``("models" | "datasets", "owner/name")``.
        broken: Files of which only the first half is sent.
        downloaded: Files that were sent, in order.
        commits_left: Commits that are accepted; afterwards, the hub fails. ``None``: all.
        page: Files in one answer to a listing.
        failures: How many of the next requests of a method fail; LIST is a method here.
        cuts: How many of the next downloads are cut half-way.
        asked: How many requests for files and listings of each method there were.
    """

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    downloaded: list[str] = field(default_factory=list)
    commits_left: int | None = None
    page: int = 1000
    failures: Counter[str] = field(default_factory=Counter)
    cuts: int = 0
    asked: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, name: str, files: dict[str, bytes], **settings: Any) -> Repository:
        self.repositories[kind, name] = Repository(files, **settings)
        return self.repositories[kind, name]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandIn

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._get(with_body=False)

    def do_GET(self) -> None:
        self._get(with_body=True)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        if path == "/api/validate-yaml":
            return self._json({"warnings": [], "errors": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {}, b"")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        kind, name, action, *_ = _API.fullmatch(path).groups()
        repository = self.hub.repositories[kind, name]
        if action == "preupload":
            files = [_mode(repository, file["path"]) for file in json.loads(body)["files"]]
            return self._json({"files": files})
        assert action == "commit"
        return self._commit(repository, name, body)

    def _create(self, fields: dict[str, Any]) -> None:
        kind = f"{fields.get('type', 'model')}s"
        private = fields.get("private") or fields.get("visibility") == "private"
        name = f"{fields.get('organization', 'owner')}/{fields['name']}"
        self.hub.add(kind, name, {}, private=bool(private))
        self._json({"url": f"http://{self.headers['Host']}/{kind}/{name}"})

    def _commit(self, repository: Repository, name: str, body: bytes) -> None:
        if self.hub.commits_left == 0:
            return self._send(500, {}, b"")
        if self.hub.commits_left is not None:
            self.hub.commits_left -= 1
        for operation in map(json.loads, body.splitlines()):
            value = operation["value"]
            if operation["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "deletedFile":
                del repository.files[value["path"]]
        repository.n_commits += 1
        url = f"http://{self.headers['Host']}/{name}/commit/{repository.sha}"
        return self._json({"commitUrl": url, "commitOid": repository.sha})

    def _get(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        match = _RESOLVE.fullmatch(path)
        api_match = _API.fullmatch(path)
        if match is None and api_match is None:  # what the library asks besides
            return self._send(404, {}, b"")
        if match is not None:
            prefix, name, revision, file = match.groups()
            kind, action = prefix.rstrip("/") if prefix else "models", "resolve"
        else:
            kind, name, action, revision, folder = api_match.groups()
        repository = self.hub.repositories.get((kind, name))
        is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not is_known):
            return self._send(*_MISSING, b"")
        if repository.gated:
            return self._send(*_GATED, b"")
        if revision not in (None, "main", repository.sha):
            return self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
        if action == "resolve":
            return self._file(repository, file, with_body)
        if action == "tree":
            return self._tree(repository, folder)
        return self._json(_info(name, repository))

    def _fails(self, method: str) -> bool:
        """Count a request, and answer it if it is one of those that fail."""
        self.hub.asked[method] += 1
        if not self.hub.failures[method]:
            return False
        self.hub.failures[method] -= 1
        self._send(503, {}, b"")
        return True

    def _tree(self, repository: Repository, folder: str | None) -> None:
        if self._fails("LIST"):
            return None
        prefix = f"{folder}/" if folder else ""
        paths = [path for path in repository.files if path.startswith(prefix)]
        if folder and not paths:
            return self._send(404, {"X-Error-Code": "EntryNotFound"}, b"")
        url = urlsplit(self.path)
        start = int(parse_qs(url.query).get("start", ["0"])[0])
        stop = start + self.hub.page
        headers = {"Content-Type": "application/json"}
        if stop < len(paths):
            next_page = f"http://{self.headers['Host']}{url.path}?recursive=True&start={stop}"
            headers["Link"] = f'<{next_page}>; rel="next"'
        entries = [_entry(path, repository.files[path]) for path in paths[start:stop]]
        return self._send(200, headers, json.dumps(entries).encode())

    def _file(self, repository: Repository, file: str, with_body: bool) -> None:
        if self._fails(self.command):
            return None
        if file not in repository.files:
            return self._send(404, {"X-Error-Code": "EntryNotFound"}, b"")
        content = repository.files[file]
        headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": repository.sha}
        headers["Content-Length"] = str(len(content))
        if not with_body:
            return self._send(200, headers, b"")
        self.hub.downloaded.append(file)
        status = 200
        if "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content = content[start:]
            headers["Content-Length"] = str(len(content))
            status = 206
        if file in self.hub.broken or self.hub.cuts:
            self.hub.cuts -= file not in self.hub.broken
            self.close_connection = True
            content = content[: len(content) // 2]
        return self._send(status, headers, content)

    def _json(self, content: Any) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _mode(repository: Repository, path: str) -> dict[str, Any]:
    mode = {"path": path, "uploadMode": "regular", "shouldIgnore": False}
    if path in repository.files:
        mode["oid"] = _oid(repository.files[path])
    return mode


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}


def _info(name: str, repository: Repository) -> dict[str, Any]:
    siblings = [{"rfilename": path} for path in repository.files]
    return {"id": name, "sha": repository.sha, "private": repository.private, "siblings": siblings}


@contextmanager
def running_hub() -> Iterator[tuple[StandIn, str]]:
    """Run a stand-in; yield it and its address."""
    hub = StandIn()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def connected_hub(monkeypatch: Any, token: str | None = TOKEN) -> Iterator[StandIn]:
    """Run a stand-in that huggingface_hub takes for the hub."""
    template = "/{repo_id}/resolve/{revision}/{filename}"
    constants = "huggingface_hub.constants"
    with running_hub() as (hub, address):
        monkeypatch.setattr(f"{constants}.ENDPOINT", address)
        monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", address + template)
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", token or "")
        yield hub
