"""A loopback Hub that serves files, in whole or by ranges, and misbehaves on request.

It answers what huggingface_hub asks when it reads, and nothing else:

=====================================  ==========================================================
HEAD, GET /{id}/resolve/{rev}/{path}   the file, with ``ETag`` and ``X-Repo-Commit``; with
                                       ``cdn=True`` a 302 to the second server, as for LFS files
GET /api/models/{id}[/revision/{rev}]  ``id``, ``sha`` and ``siblings``
GET (CDN) /{link}/{blob}               the file; 403 once ``expire_links()`` was called
=====================================  ==========================================================

Failures carry ``X-Error-Code`` as the Hub's do. The second server is reached as ``localhost``
instead of ``127.0.0.1``, so for a client it is another host; its ETags differ from the Hub's.

Contents are bytes, or a path: then the file is served from disk piece by piece, so that one with
holes can be as large as a test likes.

What a test reads off is noted before the client can see it: a client that has its last byte may
go on before this side's thread runs again.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

Content = bytes | Path
_PIECE = 256 << 10


@dataclass(frozen=True)
class Request:
    """What a client asked, and what it was told."""

    host: str  # "hub" or "cdn"
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    status: int


@dataclass
class Rule:
    """How to misbehave, in answer to which requests.

    The first rule that matches a request and isn't used up decides.
    """

    on: str = ""  # part of the path
    host: str = ""  # "hub", "cdn" or both
    method: str = ""
    after: int = 0  # matching requests that are served properly first
    times: int = 1 << 30
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)  # added, or replacing
    cut: int | None = None  # close the connection after so many bytes of body
    delay: float = 0.0  # seconds before the answer
    pause: float = 0.0  # seconds between bytes of the body, sent one by one
    ignore_range: bool = False
    body: bytes | None = None  # instead of the file, same length or not
    seen: int = 0

    def applies(self, host: str, method: str, path: str) -> bool:
        wanted = self.on in path and self.host in ("", host) and self.method in ("", method)
        if not wanted:
            return False
        self.seen += 1
        return self.after < self.seen <= self.after + self.times


class RangeHub:
    """The servers; use it as a context manager.

    Args:
        repos: Files by path, by repository id: the first commit of each ``main``.
        cdn: Redirect downloads to the second server.
    """

    def __init__(self, repos: dict[str, dict[str, Content]], *, cdn: bool = False) -> None:
        self.cdn = cdn
        self.requests: list[Request] = []
        self.bytes_served = 0
        self.peak_in_flight = 0
        self.rules: list[Rule] = []
        self.tokens: dict[str, str] = {}  # private repositories
        self.gated: set[str] = set()
        self._in_flight = 0
        self._link = 0
        self._lock = threading.Lock()
        self._commits: dict[str, dict[str, dict[str, Content]]] = {}
        self._refs: dict[str, dict[str, str]] = {}
        self._blobs: dict[str, Content] = {}
        for repo_id, files in repos.items():
            self.commit(repo_id, files)
        self._servers = [self._serve("hub"), self._serve("cdn")]
        self.endpoint = f"http://127.0.0.1:{self._servers[0].server_port}"
        self.cdn_endpoint = f"http://localhost:{self._servers[1].server_port}"

    def __enter__(self) -> RangeHub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def commit(self, repo_id: str, files: dict[str, Content], ref: str = "main") -> str:
        """Move a ref to a new commit with these files, and return the commit's hash."""
        commits = self._commits.setdefault(repo_id, {})
        sha = hashlib.sha1(f"{repo_id} {len(commits)}".encode()).hexdigest()
        commits[sha] = dict(files)
        self._refs.setdefault(repo_id, {})[ref] = sha
        self._blobs.update((self.etag(content), content) for content in files.values())
        return sha

    def misbehave(self, **rule: Any) -> Rule:
        """Add a rule; see :class:`Rule`."""
        self.rules.append(Rule(**rule))
        return self.rules[-1]

    def expire_links(self) -> None:
        """Make the second server refuse all addresses that were given out so far."""
        self._link += 1

    def asked(self, method: str = "", host: str = "", on: str = "") -> list[Request]:
        """Return the requests that match."""
        return [
            r
            for r in self.requests
            if method in ("", r.method) and host in ("", r.host) and on in r.path
        ]

    @staticmethod
    def etag(content: Content) -> str:
        if isinstance(content, bytes):
            return hashlib.sha256(content).hexdigest()
        # Hashing gigabytes of holes would be the slowest part of a test.
        status = content.stat()
        return hashlib.sha256(f"{content} {status.st_size}".encode()).hexdigest()

    def _serve(self, host: str) -> ThreadingHTTPServer:
        hub = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                hub._answer(self, host)

            do_HEAD = do_GET

        return _Server(("127.0.0.1", 0), Handler)

    def _answer(self, handler: _Handler, host: str) -> None:
        path = unquote(urlsplit(handler.path).path)
        if path == "/api/agent-harnesses":  # the client's own business
            handler.reply(404, {}, b"", (0, 0))
            return
        with self._lock:
            rule = next(
                (r for r in self.rules if r.applies(host, handler.command, path)), Rule(times=0)
            )
            self._in_flight += 1
            self.peak_in_flight = max(self.peak_in_flight, self._in_flight)
        time.sleep(rule.delay)
        if rule.status is not None:
            status, headers, content = rule.status, {}, b""
        elif host == "cdn":
            status, headers, content = self._blob(path)
        else:
            status, headers, content = self._route(handler, path)
        if rule.body is not None:
            content = rule.body
        headers |= rule.headers
        if not rule.ignore_range:
            status, headers, part = handler.cut(status, headers, _size(content))
        else:
            part = (0, _size(content))
        names = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            self.requests.append(Request(host, handler.command, path, names, status))
            self._in_flight -= 1
        handler.reply(status, headers, content, part, rule, self._count)

    def _count(self, sent: int) -> None:
        with self._lock:
            self.bytes_served += sent

    def _blob(self, path: str) -> tuple[int, dict[str, str], Content]:
        _, link, etag = path.split("/")
        if link != f"link{self._link}":
            return 403, {}, b""
        weak = hashlib.md5(etag.encode()).hexdigest()
        return 200, {"ETag": f'"{weak}"', "Accept-Ranges": "bytes"}, self._blobs[etag]

    def _route(self, handler: _Handler, path: str) -> tuple[int, dict[str, str], Content]:
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/(.+)", path)
        match = api or file
        if not match:
            return 404, {}, b""
        repo_id = match[1]
        bearer = handler.headers.get("Authorization")
        token = self.tokens.get(repo_id)
        if repo_id not in self._commits or (token and bearer != f"Bearer {token}"):
            return (404 if bearer else 401), {"X-Error-Code": "RepoNotFound"}, b""
        if repo_id in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        rest = (api[2] if api else file[2]) or "main"  # type: ignore[index]
        found = self._resolve(repo_id, rest)
        if found is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        sha, inner = found
        files = self._commits[repo_id][sha]
        if api:
            siblings = [{"rfilename": name} for name in files]
            return 200, {}, json.dumps({"id": repo_id, "sha": sha, "siblings": siblings}).encode()
        headers = {"X-Repo-Commit": sha}
        if inner not in files:
            return 404, {**headers, "X-Error-Code": "EntryNotFound"}, b""
        etag = self.etag(files[inner])
        if self.cdn:
            size = _size(files[inner])
            headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(size)}
            headers["Location"] = f"{self.cdn_endpoint}/link{self._link}/{etag}"
            return 302, headers, b""
        return 200, headers | {"ETag": f'"{etag}"', "Accept-Ranges": "bytes"}, files[inner]

    def _resolve(self, repo_id: str, rest: str) -> tuple[str, str] | None:
        """Split ``revision/path``; a revision may hold slashes itself."""
        commits, refs = self._commits[repo_id], self._refs[repo_id]
        for name in (*refs, *commits):
            if rest == name or rest.startswith(f"{name}/"):
                return refs.get(name, name), rest[len(name) + 1 :]
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing where a client went away; that is part of many tests."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*_)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # headers and a small body leave together
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def cut(
        self, status: int, headers: dict[str, str], total: int
    ) -> tuple[int, dict[str, str], tuple[int, int]]:
        """Turn an answer into that for the range that was asked for."""
        wanted = self.headers.get("Range")
        matches = self.headers.get("If-Range") in (None, headers.get("ETag"))
        if status != 200 or not wanted or not matches or "ETag" not in headers:
            return status, headers, (0, total)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
        assert match, wanted
        start, end = int(match[1]), min(int(match[2] or total) + 1, total)
        if start >= total:
            return 416, {**headers, "Content-Range": f"bytes */{total}"}, (0, 0)
        return 206, {"Content-Range": f"bytes {start}-{end - 1}/{total}", **headers}, (start, end)

    def reply(
        self,
        status: int,
        headers: dict[str, str],
        content: Content,
        part: tuple[int, int],
        rule: Rule | None = None,
        count: Callable[[int], None] = lambda sent: None,
    ) -> None:
        """Send an answer with a part of the content."""
        start, end = part
        try:
            self.send_response(status)
            for name, value in {"Content-Length": str(end - start), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self._send_body(content, start, end, rule or Rule(), count)
            self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _send_body(
        self, content: Content, start: int, end: int, rule: Rule, count: Callable[[int], None]
    ) -> None:
        stop = end if rule.cut is None else min(end, start + rule.cut)
        step = 1 if rule.pause else _PIECE
        while start < stop:
            piece = _read(content, start, min(step, stop - start))
            count(len(piece))
            self.wfile.write(piece)
            if rule.pause:
                self.wfile.flush()
                time.sleep(rule.pause)
            start += len(piece)
        if stop < end:
            self.close_connection = True


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _read(content: Content, start: int, count: int) -> bytes:
    if isinstance(content, bytes):
        return content[start : start + count]
    with content.open("rb") as file:
        file.seek(start)
        return file.read(count)


def point_client_at(hub: Any, home: Path, monkeypatch: Any, *, offline: bool = False) -> None:
    """Make this process's huggingface_hub talk to a loopback Hub, with a cache of its own.

    The client reads its environment when it is imported, so its constants are replaced too.
    """
    from huggingface_hub import constants

    values = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "AGENT_HARNESSES_PATH": str(home / "harnesses.json"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": offline,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
