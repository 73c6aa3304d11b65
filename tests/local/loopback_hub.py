"""A model hub on this machine, as far as fetching a file needs one: a repository's listing, and its files by range.

Large files are served as the real hub serves them: by a redirect to a storage on another host (here: another port).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repo:
    """What one repository has, and how it misbehaves."""

    files: dict[str, bytes]
    commit: str = COMMIT
    sha256: dict[str, str] = field(default_factory=dict)
    """In place of the real ones."""
    small: frozenset[str] = frozenset()
    """Files that are kept in git itself, and are known by git's SHA-1."""
    token: str | None = None
    """Without it: 401, as if there were no such repository."""
    gated: bool = False


@dataclass
class Hub:
    """The server, what it has, what it was asked."""

    repos: dict[str, Repo] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    """After how many bytes of a body the connection is cut, one download after another; then no more."""
    statuses: list[int] = field(default_factory=list)
    """What downloads are answered with instead, one after another; then no more."""
    ranges: bool = True
    """Whether it can go on from the middle of a file."""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(what, path, Range header), in order."""
    tokens_at_storage: list[str | None] = field(default_factory=list)
    sent: int = 0
    """Bytes of bodies of files."""
    gate: threading.Event = field(default_factory=threading.Event)
    """Downloads wait for it; set unless a test clears it."""
    url: str = ""
    storage: str = ""
    nonsense: bool = False
    """Answers with a web page, as a captive portal does."""

    def ranges_asked(self) -> list[str | None]:
        """The Range header of each download."""
        return [wanted for what, _, wanted in self.asked if what == "file"]


@contextmanager
def running() -> Iterator[Hub]:
    """A hub and its storage, on two ports."""
    hub = Hub()
    hub.gate.set()
    servers = [_server(hub, storage) for storage in (False, True)]
    hub.url, hub.storage = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    try:
        yield hub
    finally:
        hub.gate.set()
        for server in servers:
            server.shutdown()
            server.server_close()


def _server(hub: Hub, storage: bool) -> ThreadingHTTPServer:
    class Handler(_Handler):
        pass

    Handler.hub, Handler.storage = hub, storage
    server = _Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Somebody hung up, as some tests do."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    storage: bool

    def log_message(self, *_: Any) -> None:
        """Quietly."""

    def do_HEAD(self) -> None:
        """What huggingface_hub itself asks before it downloads; ours does not."""
        name, _, rest = unquote(urlsplit(self.path).path).lstrip("/").partition("/resolve/")
        file = rest.partition("/")[2]
        if (repo := self._repo(name)) is None:
            return
        data = repo.files[file]
        digest = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": repo.commit, "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        self._say(302, b"", {**headers, "Location": self.hub.storage + self.path})

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.hub.nonsense:
            self._say(200, b"<html>Log in to the hotel's network", {"Content-Type": "text/html"})
        elif path.startswith("/api/models/"):
            self._listing(path)
        else:
            self._file(path)

    def _repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        token = self.headers.get("Authorization")
        if repo is None or (repo.token and token != f"Bearer {repo.token}" and not self.storage):
            self._say(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return None
        if repo.gated:
            self._say(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
            return None
        return repo

    def _listing(self, path: str) -> None:
        name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
        self.hub.asked.append(("listing", name, None))
        if (repo := self._repo(name)) is None:
            return
        if revision not in ("", "main", repo.commit):
            self._say(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings: list[dict[str, Any]] = []
        for file, data in repo.files.items():
            entry: dict[str, Any] = {"rfilename": file, "size": len(data)}
            if file in repo.small:
                entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            else:
                digest = repo.sha256.get(file) or hashlib.sha256(data).hexdigest()
                entry |= {"blobId": "0" * 40, "lfs": {"size": len(data), "sha256": digest, "pointerSize": 134}}
            siblings.append(entry)
        told = {"id": name, "modelId": name, "sha": repo.commit, "siblings": siblings}
        self._say(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def _file(self, path: str) -> None:
        repo_name, _, rest = path.lstrip("/").partition("/resolve/")
        _, _, file = rest.partition("/")
        if not self.storage:
            if (repo := self._repo(repo_name)) is None:
                return
            if file not in repo.files:
                self._say(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            if file not in repo.small:
                self._say(302, b"", {"Location": self.hub.storage + self.path})
                return
        repo = self.hub.repos[repo_name]
        wanted = self.headers.get("Range")
        self.hub.asked.append(("file", file, wanted))
        self.hub.tokens_at_storage.append(self.headers.get("Authorization"))
        self.hub.gate.wait(20)
        if self.hub.statuses:
            self._say(self.hub.statuses.pop(0), b"", {})
            return
        data = repo.files[file]
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.hub.ranges else 0
        body = data[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(body)))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        cut = self.hub.cuts.pop(0) if self.hub.cuts else None
        said = body if cut is None else body[:cut]
        self.hub.sent += len(said)
        self.wfile.write(said)
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True

    def _say(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
