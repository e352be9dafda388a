"""A file on the Hub, read by byte ranges over HTTP into a sparse temporary file."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any
from urllib.parse import urlsplit

from vaeconv.checkpoint.hub.client import retried
from vaeconv.checkpoint.hub.failures import Retry, UnreachableError
from vaeconv.checkpoint.hub.sparse_file import SparseFile
from vaeconv.checkpoint.source import ByteSource, Part
from vaeconv.errors import HubError, MalformedCheckpointError

_JOIN_GAP = 128 << 10
_REQUEST_SIZE = 16 << 20
_READ_AHEAD = 64 << 10
_IN_FLIGHT = 8
_TRICKLE = 16 << 10  # less than this in a stall interval is a dead connection, not a slow one
_LINK_EXPIRED = frozenset({400, 401, 403, 404, 410})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_SHA256 = re.compile(r"[0-9a-f]{64}")  # the ETag of a file in LFS; others have 40 digits, of git

logger = logging.getLogger(__name__)


class RangeSource(ByteSource):
    """A remote file of which only the wanted byte ranges are fetched.

    What was fetched is kept in an unlinked temporary file as large as the remote one, with holes
    where nothing was asked for. Safe to read from several threads at once.

    Args:
        url: Its address at a fixed commit, on the Hub's endpoint.
        name: What to call it in messages.
        size: Its length in bytes.
        etag: What identifies its content, normalised.
        headers: Sent with each request; ``authorization`` only to the host of ``url``.
        on_progress: Called with the number of bytes of each piece that arrived, one call at a
            time, from any thread.
        retry: How patient to be.
    """

    is_local = False

    def __init__(
        self,
        url: str,
        *,
        name: str,
        size: int,
        etag: str,
        headers: Mapping[str, str] | None = None,
        on_progress: Callable[[int], None] | None = None,
        retry: Retry | None = None,
    ) -> None:
        super().__init__(name, size)
        self._url = url
        self._link = url  # where the Hub redirects to, once known
        self._headers = {**(headers or {}), "Accept-Encoding": "identity"}
        self._retry = retry or Retry()
        self._etags: dict[str, str | None] = {_origin(url): etag}
        self._fetching = threading.Lock()
        self._receiving_whole = threading.Lock()
        self._digests: dict[Part, str] = {None: etag} if _SHA256.fullmatch(etag) else {}
        self._file = SparseFile(size, on_progress)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer, fetching first what is not here yet."""
        end = offset + len(buffer)
        if offset < 0 or end > self.size:
            raise MalformedCheckpointError(
                f"ends at byte {self.size}, {end - self.size} bytes too early", where=self.name
            )
        if self._file.gaps(offset, end):
            # Headers and directories are read in small steps; one round trip serves many.
            ahead = min(self.size, max(end, offset + _READ_AHEAD))
            with self._fetching:
                # Whoever waited for another batch may find its bytes in place by now, and has
                # no use for the read-ahead then.
                if self._file.gaps(offset, end):
                    self._fetch([(max(0, min(offset, ahead - _READ_AHEAD)), ahead)])
        self._file.read_into(offset, buffer)

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch the ranges, several requests at a time, and return when they are here."""
        with self._fetching:
            self._fetch(ranges)

    def known_sha256(self, part: Part = None) -> str | None:
        """Return the hash that the Hub knows a file in LFS by, or one that was noted."""
        return self._digests.get(part)

    def keep_sha256(self, sha256: str, part: Part = None) -> None:
        self._digests[part] = sha256

    def _release(self) -> None:
        with self._fetching:
            self._file.close()

    def _plan(self, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Join neighbouring ranges, leave out what is here, cut the rest into requests."""
        joined: list[tuple[int, int]] = []
        for start, end in sorted((max(0, a), min(b, self.size)) for a, b in ranges):
            if start >= end:
                continue
            if joined and start - joined[-1][1] <= _JOIN_GAP:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            else:
                joined.append((start, end))
        return [
            (start, min(start + _REQUEST_SIZE, stop))
            for low, high in joined
            for first, stop in self._file.gaps(low, high)
            for start in range(first, stop, _REQUEST_SIZE)
        ]

    def _fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch what is not here of the ranges; one batch at a time, so that none comes twice."""
        from huggingface_hub import get_session

        pieces = self._plan(ranges)
        if not pieces:
            return
        get_session()  # now: asked by several threads at once, 1.0 makes and leaks several
        stop = threading.Event()
        pool = ThreadPoolExecutor(min(_IN_FLIGHT, len(pieces)))
        futures = [pool.submit(self._fetch_piece, *piece, stop) for piece in pieces]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            # After an error or Ctrl-C nobody waits for the others: a server may be silent long.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _fetch_piece(self, start: int, end: int, stop: threading.Event) -> None:
        """Fetch what is missing between two offsets; give up early on ``stop``.

        Raises:
            HubError: The server refuses, or fails again and again.
            MalformedCheckpointError: What it has is not the same file any more.
            OutputError: The disk is full.
        """

        def request_rest() -> None:
            while (gaps := self._file.gaps(start, end)) and not stop.is_set():
                self._request(gaps[0][0], end, stop)

        def left() -> int:
            return sum(high - low for low, high in self._file.gaps(start, end))

        retried(request_rest, self.name, self._retry, left=left, pause=stop.wait)

    def _request(self, start: int, end: int, stop: threading.Event) -> None:
        """Ask for a range, at the link that served last where there is one, and keep what comes."""
        from huggingface_hub import get_session

        limits = self._retry
        timeout = (limits.connect, limits.read, limits.read, limits.connect)
        for url in dict.fromkeys((self._link, self._url)):
            headers = {**self._headers, "Range": f"bytes={start}-{end - 1}"}
            if _origin(url) != _origin(self._url):  # the client sees to it where it is redirected
                headers = {k: v for k, v in headers.items() if k.lower() != "authorization"}
            with get_session().stream(
                "GET", url, headers=headers, timeout=timeout, follow_redirects=True
            ) as response:
                # Signed links live for an hour or so; the Hub gives a new one.
                if url == self._url or response.status_code not in _LINK_EXPIRED:
                    self._take(response, start, end, stop)
                    return

    def _take(self, response: Any, start: int, end: int, stop: threading.Event) -> None:
        """Check an answer and keep its body."""
        headers = response.headers
        self._check_etags(response)
        if response.status_code == 416:
            self._check(headers.get("Content-Range") in (None, f"bytes */{self.size}"))
        response.raise_for_status()
        if headers.get("Content-Encoding", "identity") != "identity":
            raise self._unusable("the server sends it compressed")
        if response.status_code == 200:
            self._check(headers.get("Content-Length") in (None, str(self.size)))
            with self._receiving_whole:  # others in flight get the same: the first one serves all
                if self._file.gaps(0, self.size):
                    logger.warning(
                        "%s: the server does not send parts of files, so all of its %d MB are "
                        "fetched",
                        self.name,
                        self.size // 1_000_000,
                    )
                    self._receive(response, 0, self.size, stop)
            return
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if match:
            self._check(match[3] in ("*", str(self.size)))
        if not match or int(match[1]) != start or not start <= int(match[2]) < end:
            raise self._unusable("the server sent other bytes than were requested")
        if response.history:
            self._link = str(response.url)
        self._receive(response, start, int(match[2]) + 1, stop)

    def _check_etags(self, response: Any) -> None:
        """Hold each host to the ETag that it gave first; the Hub's own is known beforehand."""
        for redirect in response.history:
            linked = _opaque(redirect.headers.get("X-Linked-ETag"))
            self._check(linked in (None, self._etags.get(_origin(str(redirect.url)), linked)))
        if response.is_success:
            etag, linked = map(_opaque, map(response.headers.get, ("ETag", "X-Linked-ETag")))
            known = self._etags.setdefault(_origin(str(response.url)), etag)
            self._check(known in (None, etag, linked))

    def _receive(self, response: Any, position: int, end: int, stop: threading.Event) -> None:
        since, received = time.monotonic(), 0
        for piece in response.iter_raw():
            if stop.is_set():
                return
            data = memoryview(piece)[: end - position]
            self._file.write(position, data)
            position += len(data)
            received += len(data)
            now = time.monotonic()
            if now - since > self._retry.stall:
                if received < _TRICKLE:
                    break
                since, received = now, 0
        if position < end:
            raise UnreachableError(
                "the connection broke off or stalled", where=self.name, hint="run again"
            )

    def _check(self, is_same: bool) -> None:
        if not is_same:
            raise MalformedCheckpointError(
                "changed on the server while it was being read", where=self.name, hint="run again"
            )

    def _unusable(self, what: str) -> HubError:
        return HubError(what, where=self.name, hint="use --download")


def _opaque(etag: str | None) -> str | None:
    """Return an ETag without the mark of a weak one and quotes."""
    return (etag.removeprefix("W/").strip('"') or None) if etag else None


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()
