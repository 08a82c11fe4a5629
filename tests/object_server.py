"""A small object store on this machine: one bucket, over HTTP, that fails at will.

It speaks as much of the protocols of S3, Google Cloud Storage and Azure as the library needs.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"
KEY = "a-key"
LAST_MODIFIED = "Sun, 01 Nov 2026 00:00:00 GMT"


@dataclass
class ObjectServer:
    """The objects of the bucket, what was asked for, and what goes wrong.

    Attributes:
        objects: Contents by key.
        latency: Seconds before each answer.
        page: Keys in one answer to a LIST.
        failures: How many of the next requests of a method are answered with ``status``.
        status: The status of those.
        cut_puts: How many of the next PUTs are cut half-way: the connection is closed.
        cut_gets: Of how many of the next GETs only the first half is sent.
        keys: The access keys that are accepted.
        log: (method, key) of each request; LIST is a method here.
        on_request: Called with method and key of each request before it is carried out.
        environment: The environment in which S3, Google Cloud Storage and Azure are this server.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    latency: float = 0.0
    page: int = 1000
    failures: Counter[str] = field(default_factory=Counter)
    status: int = 503
    cut_puts: int = 0
    cut_gets: int = 0
    keys: set[str] = field(default_factory=lambda: {KEY})
    log: list[tuple[str, str]] = field(default_factory=list)
    on_request: Callable[[str, str], None] | None = None
    lock: Any = field(default_factory=threading.Lock)
    environment: dict[str, str] = field(default_factory=dict)

    def store(self, prefix: str, folder: Path, pattern: str) -> None:
        """Make objects of the files in a folder that match a pattern."""
        for path in folder.glob(pattern):
            self.objects[f"{prefix}{path.relative_to(folder).as_posix()}"] = path.read_bytes()

    def counts(self, part: str = "") -> Counter[str]:
        """The number of requests of each method for keys that contain a text."""
        return Counter(method for method, key in list(self.log) if part in key)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # The head and the body of an answer are two writes, which else wait for each other.
    disable_nagle_algorithm = True
    server_state: ObjectServer

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # of a client that was killed
            super().handle()

    @property
    def _is_azure(self) -> bool:
        return "x-ms-version" in self.headers

    def _begin(self, method: str) -> str | None:
        """Count a request and wait; return the key, or ``None`` if it is refused."""
        state = self.server_state
        address = urlsplit(self.path)
        _, bucket, *rest = unquote(address.path).split("/", 2)
        key = rest[0] if rest else ""
        is_list = method == "GET" and not key
        if is_list:
            method = "LIST"
            key = parse_qs(address.query).get("prefix", [""])[0]
        with state.lock:
            state.log.append((method, key))
        time.sleep(state.latency)
        if state.on_request is not None:
            state.on_request(method, key)
        with state.lock:
            is_failing = state.failures[method] > 0
            state.failures[method] -= is_failing
        # S3 has the key within a signature; the others get a token.
        authorization = self.headers.get("Authorization", "")
        credential = re.search(r"(?:Credential=|Bearer )([^/]+)", authorization)
        problem = None
        if is_failing:
            problem = (state.status, "SlowDown")
        elif credential is None or credential[1] not in state.keys:
            problem = (403, "InvalidAccessKeyId")
        elif bucket != BUCKET:
            problem = (404, "ContainerNotFound" if self._is_azure else "NoSuchBucket")
        if problem is None:
            return "" if is_list else key
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._error(*problem)
        return None

    def do_GET(self) -> None:
        key = self._begin("GET")
        if key is None:
            return
        if not key:
            return self._list()
        content = self.server_state.objects.get(key)
        if content is None:
            return self._error(404, "NoSuchKey")
        headers = {"ETag": _etag(content), "Last-Modified": LAST_MODIFIED}
        status = 200
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is not None:
            first, last = int(part[1]), int(part[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content = content[first : last + 1]
            status = 206
        headers["Content-Length"] = str(len(content))
        if self.server_state.cut_gets:
            self.server_state.cut_gets -= 1
            self.close_connection = True
            content = content[: len(content) // 2]
        self._send(status, headers, content)

    def do_HEAD(self) -> None:
        key = self._begin("HEAD")
        if key is None:
            return
        content = self.server_state.objects.get(key)
        if content is None:
            return self._send(404, {}, b"")
        headers = {"ETag": _etag(content), "Content-Length": str(len(content))}
        self._send(200, headers, b"")

    def do_PUT(self) -> None:
        key = self._begin("PUT")
        if key is None:
            return
        state = self.server_state
        length = int(self.headers["Content-Length"])
        if state.cut_puts:
            state.cut_puts -= 1
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        content = self.rfile.read(length)
        if len(content) < length:  # the sender was killed
            self.close_connection = True
            return
        with state.lock:
            is_create = self.headers.get("If-None-Match") == "*"
            is_create |= self.headers.get("x-goog-if-generation-match") == "0"
            is_refused = is_create and key in state.objects
            if not is_refused:
                state.objects[key] = content
        if is_refused and self._is_azure:
            return self._error(409, "BlobAlreadyExists")
        if is_refused:
            return self._error(412, "PreconditionFailed")
        headers = {"ETag": _etag(content), "Last-Modified": LAST_MODIFIED}
        self._send(201 if self._is_azure else 200, headers, b"")

    def do_POST(self) -> None:
        """Refuse what begins a multi-part upload, and a deletion of several objects."""
        if self._begin("POST") is not None:
            self._error(501, "NotImplemented")

    def do_DELETE(self) -> None:
        key = self._begin("DELETE")
        if key is not None:
            self.server_state.objects.pop(key, None)
            self._send(204, {}, b"")

    def _list(self) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        prefix = query.get("prefix", "")
        after = query.get("marker" if self._is_azure else "continuation-token", "")
        with self.server_state.lock:
            sizes = {key: len(content) for key, content in self.server_state.objects.items()}
        keys = sorted(key for key in sizes if key.startswith(prefix) and key > after)
        page = {key: sizes[key] for key in keys[: self.server_state.page]}
        next_page = list(page)[-1] if len(page) < len(keys) else ""
        if self._is_azure:
            text = _azure_listing(page, next_page)
        else:
            text = _listing(page, next_page, query.get("encoding-type") == "url")
        self._send(200, {"Content-Type": "application/xml"}, text.encode())

    def _error(self, status: int, code: str) -> None:
        # Azure's emulator writes several lines.
        text = f"<Error>\n<Code>{code}</Code>\n<Message>of the stand-in</Message></Error>"
        if not self._is_azure:
            text = text.replace("\n", "")
        self._send(status, {}, b"" if self.command == "HEAD" else text.encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _listing(page: dict[str, int], next_page: str, is_quoted: bool) -> str:
    """Return an answer of S3 or Google Cloud Storage to a LIST."""
    text = '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>'
    text += f"<IsTruncated>{str(bool(next_page)).lower()}</IsTruncated>"
    if next_page:
        text += f"<NextContinuationToken>{escape(next_page)}</NextContinuationToken>"
    for key, n_bytes in page.items():
        name = quote(key) if is_quoted else escape(key)
        text += f"<Contents><Key>{name}</Key><Size>{n_bytes}</Size><ETag>e</ETag>"
        text += "<LastModified>2026-11-01T00:00:00.000Z</LastModified></Contents>"
    return text + "</ListBucketResult>"


def _azure_listing(page: dict[str, int], next_page: str) -> str:
    text = '<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>'
    for key, n_bytes in page.items():
        text += f"<Blob><Name>{escape(key)}</Name><Properties><Etag>e</Etag>"
        text += f"<Last-Modified>{LAST_MODIFIED}</Last-Modified>"
        text += "<Content-Type>application/octet-stream</Content-Type>"
        text += f"<Content-Length>{n_bytes}</Content-Length></Properties></Blob>"
    return f"{text}</Blobs><NextMarker>{escape(next_page)}</NextMarker></EnumerationResults>"


@contextmanager
def running_server() -> Iterator[tuple[ObjectServer, dict[str, str]]]:
    """Run a server; yield its state, and the environment in which object stores are this server."""
    state = ObjectServer()
    handler = type("Handler", (_Handler,), {"server_state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": "a-secret",
        "AWS_REGION": "us-east-1",
        "GOOGLE_BASE_URL": endpoint,
        "GOOGLE_BEARER_TOKEN": KEY,
        "AZURE_STORAGE_ENDPOINT": endpoint,
        "AZURE_STORAGE_ACCOUNT_NAME": "an-account",
        "AZURE_STORAGE_TOKEN": KEY,
    }
    state.environment = environment
    try:
        yield state, environment
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
