"""A file on the Hub, read by byte ranges into a sparse temporary file."""

from __future__ import annotations

import logging
import os
import random
import re
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from vaeconv.errors import HubError, MalformedCheckpointError, OutputError

_JOIN_GAP = 128 << 10
_REQUEST_SIZE = 16 << 20
_READ_AHEAD = 64 << 10
_IN_FLIGHT = 8
_REDIRECTS = 10
_TRICKLE = 16 << 10  # less than this in a stall interval is a dead connection, not a slow one
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Retry:
    """How patient to be with a server. Times are in seconds.

    Args:
        tries: Attempts without progress before giving up.
        first_delay: Wait after the first failure; it doubles with each further one.
        longest_delay: Cap on any wait, also on one that the server asks for.
        connect: Limit on making a connection.
        read: Limit on a silence.
        stall: Interval in which a response must bring more than a trickle.
    """

    tries: int = 5
    first_delay: float = 0.5
    longest_delay: float = 60.0
    connect: float = 10.0
    read: float = 30.0
    stall: float = 60.0

    def delay(self, failures: int, retry_after: str | None = None) -> float:
        """Return how long to wait after so many failures in a row."""
        wait = self.first_delay * 2.0 ** (failures - 1) * random.uniform(0.7, 1.3)
        if retry_after is not None:
            wait = _seconds(retry_after, wait)
        return min(wait, self.longest_delay)


def _seconds(retry_after: str, default: float) -> float:
    if re.fullmatch(r"\s*\d{1,9}\s*", retry_after):
        return float(retry_after)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return default


def network_errors() -> tuple[type[Exception], ...]:
    """Return the exception classes of a failed connection.

    huggingface_hub 1.x speaks through httpx and 2.x through httpx2; whichever is loaded counts.
    """
    modules = (sys.modules.get(name) for name in ("httpx", "httpx2"))
    return (OSError, *(module.HTTPError for module in modules if module))


def is_transient(status: int) -> bool:
    """Tell whether the same request may succeed a little later."""
    return status in _TRANSIENT


def unreachable(error: Exception, where: str) -> HubError:
    """Return the error for a connection that failed, or that offline mode forbade."""
    if type(error).__name__ == "OfflineModeIsEnabled":
        return HubError(
            "offline mode is on and it is not in the local cache",
            where=where,
            hint="unset HF_HUB_OFFLINE, or download it first with `hf download`",
        )
    reason = str(error) or type(error).__name__
    return HubError(
        f"cannot be reached: {reason}",
        where=where,
        hint="check the network, the proxy settings and HF_ENDPOINT, then run again",
    )


def refused(status: int, headers: Mapping[str, str], where: str) -> HubError:
    """Return the error for an answer with an HTTP status that means no."""
    code = headers.get("X-Error-Code", "")
    reason = headers.get("X-Error-Message", "")
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    if code == "GatedRepo":
        what, hint = "the repository is gated", f"accept its terms on its page, then {log_in}"
    elif "Invalid credentials" in reason:
        what, hint = "the Hub does not accept the token", "log in again with `hf auth login`"
    elif code == "EntryNotFound":
        what, hint = "no such file in the repository", "check the path and the revision"
    elif code == "RevisionNotFound":
        what, hint = "no such revision", "check the branch, tag or commit after the @"
    elif status in (401, 404):
        what = "no such repository or file, or it is private"
        hint = f"check the name; for a private one, {log_in}"
    elif status == 403:
        what, hint = "access denied", f"{log_in}, with a token that may read this repository"
    elif status == 416:
        what, hint = "the server does not have the bytes that were asked for", "run again"
    elif status == 429:
        what, hint = "too many requests", "wait a few minutes and run again"
    else:
        what, hint = "the server failed", "run again later"
    return HubError(f"{what} (HTTP {status})", where=where, hint=hint)


def normalised_etag(value: str | None) -> str | None:
    """Return the opaque part of an ETag header: no weakness mark, no quotes."""
    return (value.removeprefix("W/").strip('"') or None) if value else None


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


class _TryAgainError(Exception):
    """A request failed in a way that may pass."""

    def __init__(self, error: HubError, retry_after: str | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after = retry_after


class Intervals:
    """A set of integers, kept as sorted, disjoint, non-adjacent half-open intervals."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        """Add the integers from ``start`` to ``end``."""
        if start >= end:
            return
        low = bisect_left(self._ends, start)
        high = low
        while high < len(self._starts) and self._starts[high] <= end:
            high += 1
        if low < high:
            start, end = min(start, self._starts[low]), max(end, self._ends[high - 1])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the intervals between ``start`` and ``end`` that are not in the set."""
        found = []
        index = bisect_left(self._ends, start + 1)
        while start < end:
            held = index < len(self._starts)
            stop = min(end, self._starts[index]) if held else end
            if start < stop:
                found.append((start, stop))
            start = max(start, self._ends[index]) if held else end
            index += 1
        return found


class RangeSource:
    """A remote file of which only the wanted byte ranges are fetched.

    What was fetched is kept in an unlinked temporary file as large as the remote one, with holes
    where nothing was asked for. Safe to read from several threads at once.

    Args:
        url: Its address at a fixed commit, on the Hub's endpoint.
        name: What to call it in messages.
        size: Its length in bytes.
        etag: What identifies its content, normalised.
        headers: Sent with each request; ``authorization`` only to the host of ``url``.
        directory: Where the temporary file goes; the system's choice by default.
        on_progress: Called with the number of bytes of each piece that arrived.
        retry: How patient to be.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        size: int,
        etag: str,
        headers: Mapping[str, str] | None = None,
        directory: Path | None = None,
        on_progress: Callable[[int], None] | None = None,
        retry: Retry | None = None,
    ) -> None:
        self.bytes_fetched = 0
        self.requests = 0
        self._url = url
        self._name = name
        self._size = size
        self._headers = {**(headers or {}), "Accept-Encoding": "identity"}
        self._on_progress = on_progress
        self._retry = retry or Retry()
        self._location = url  # where the Hub redirects to, once known
        self._etags = {_origin(url): etag}
        self._validators: dict[str, str] = {}
        self._present = Intervals()
        self._state = threading.Lock()
        self._fetching = threading.Lock()
        self._whole = threading.Lock()
        self._file = tempfile.TemporaryFile(dir=directory, prefix="vaeconv-")
        self._file.truncate(size)

    @property
    def name(self) -> str:
        """Return the address, as ``ByteSource`` says."""
        return self._name

    @property
    def size(self) -> int:
        """Return the length of the whole file."""
        return self._size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer, fetching first what is not here yet."""
        end = offset + len(buffer)
        if offset < 0 or end > self._size:
            raise MalformedCheckpointError(
                f"ends at byte {self._size}, {end - self._size} bytes too early", where=self._name
            )
        if self._gaps(offset, end):
            # Headers and directories are read in small steps; one round trip serves many.
            ahead = min(self._size, max(end, offset + _READ_AHEAD))
            self._fetch([(max(0, min(offset, ahead - _READ_AHEAD)), ahead)], need=(offset, end))
        done = 0
        while done < len(buffer):
            done += os.preadv(self._file.fileno(), [buffer[done:]], offset + done)

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch the ranges, several requests at a time, and return when they are here."""
        self._fetch(ranges)

    def check_unchanged(self) -> None:
        """Do nothing: a change raises where it is seen.

        The address is of one commit, and each answer must carry the ETag and the length of the
        first.
        """

    def close(self) -> None:
        """Drop what was fetched."""
        with self._fetching:
            self._file.close()

    def _gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        with self._state:
            return self._present.gaps(start, end)

    def _plan(self, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Join neighbouring ranges, leave out what is here, cut the rest into requests."""
        joined: list[tuple[int, int]] = []
        for start, end in sorted((max(0, a), min(b, self._size)) for a, b in ranges):
            if start >= end:
                continue
            if joined and start - joined[-1][1] <= _JOIN_GAP:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            else:
                joined.append((start, end))
        return [
            (start, min(start + _REQUEST_SIZE, stop))
            for low, high in joined
            for first, stop in self._gaps(low, high)
            for start in range(first, stop, _REQUEST_SIZE)
        ]

    def _fetch(
        self, ranges: Sequence[tuple[int, int]], *, need: tuple[int, int] | None = None
    ) -> None:
        # One batch at a time: whoever waits here finds the shared part of its bytes in place,
        # and has no use for the read-ahead where that is all that it needs.
        with self._fetching:
            pieces = [] if need and not self._gaps(*need) else self._plan(ranges)
            stop = threading.Event()
            if len(pieces) < 2:
                for piece in pieces:
                    self._fetch_piece(*piece, stop)
                return
            from huggingface_hub import get_session

            get_session()  # now: asked by several threads at once, 1.0 makes and leaks several
            with ThreadPoolExecutor(min(_IN_FLIGHT, len(pieces))) as pool:
                futures = [pool.submit(self._fetch_piece, *piece, stop) for piece in pieces]
                try:
                    for future in as_completed(futures):
                        future.result()
                except BaseException:
                    stop.set()
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise

    def _fetch_piece(self, start: int, end: int, stop: threading.Event) -> None:
        failures = 0
        while (gaps := self._gaps(start, end)) and not stop.is_set():
            position = gaps[0][0]
            try:
                self._request(position, end, stop)
            except _TryAgainError as problem:
                left = self._gaps(start, end)
                # A crawl of a few bytes per attempt must not go on for ever.
                gained = not left or left[0][0] - position >= _READ_AHEAD
                failures = 1 if gained else failures + 1
                if failures >= self._retry.tries:
                    raise problem.error from problem
                wait = self._retry.delay(failures, problem.retry_after)
                logger.info("%s; trying again in %.1f s", problem, wait)
                stop.wait(wait)

    def _request(self, start: int, end: int, stop: threading.Event) -> None:
        """Ask for a range, follow redirects, and keep what comes."""
        from huggingface_hub import get_session

        limits = self._retry
        timeout = (limits.connect, limits.read, limits.read, limits.connect)
        url = self._location
        remembered = url != self._url
        for _ in range(_REDIRECTS):
            headers = self._headers_for(url, start, end)
            try:
                with get_session().stream(
                    "GET", url, headers=headers, timeout=timeout, follow_redirects=False
                ) as response:
                    with self._state:
                        self.requests += 1
                    status = response.status_code
                    if response.has_redirect_location:
                        self._check_redirect(url, response)
                        url = urljoin(url, response.headers["Location"])
                    elif remembered and status in (400, 401, 403, 404, 410):
                        # Signed links live for an hour or so; the Hub gives a new one.
                        url = self._location = self._url
                        remembered = False
                    else:
                        self._take(url, response, start, end, stop)
                        return
            except network_errors() as error:
                failure = unreachable(error, self._name)
                if type(error).__name__ == "OfflineModeIsEnabled":
                    raise failure from error
                raise _TryAgainError(failure) from error
        raise HubError("the server redirects in circles", where=self._name, hint="run again later")

    def _headers_for(self, url: str, start: int, end: int) -> dict[str, str]:
        origin = _origin(url)
        headers = {**self._headers, "Range": f"bytes={start}-{end - 1}"}
        if origin != _origin(self._url):
            # A download host gets a signed link; the token is the Hub's alone.
            headers = {k: v for k, v in headers.items() if k.lower() != "authorization"}
        if validator := self._validators.get(origin):
            headers["If-Range"] = validator
        return headers

    def _check_redirect(self, url: str, response: Any) -> None:
        linked = normalised_etag(response.headers.get("X-Linked-ETag"))
        if linked and linked != self._etags.get(_origin(url), linked):
            raise self._changed()

    def _take(self, url: str, response: Any, start: int, end: int, stop: threading.Event) -> None:
        status, headers = response.status_code, response.headers
        if is_transient(status):
            raise _TryAgainError(refused(status, headers, self._name), headers.get("Retry-After"))
        if status == 416 and headers.get("Content-Range", "") not in ("", f"bytes */{self._size}"):
            raise self._changed()
        if status not in (200, 206):
            raise refused(status, headers, self._name)
        if headers.get("Content-Encoding", "identity") != "identity":
            raise HubError(
                "the server sends it compressed", where=self._name, hint="use --download"
            )
        self._pin(_origin(url), headers)
        if status == 200:
            self._take_whole(response, stop)
            return
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if match and match[3] not in ("*", str(self._size)):
            raise self._changed()
        if not match or int(match[1]) != start or not start < int(match[2]) + 1 <= end:
            raise HubError(
                "the server sent other bytes than those asked for",
                where=self._name,
                hint="use --download",
            )
        self._location = url
        self._receive(response, start, int(match[2]) + 1, stop)

    def _pin(self, origin: str, headers: Mapping[str, str]) -> None:
        """Hold each host to the ETag that it gave first; the Hub's own is known beforehand."""
        etag = headers.get("ETag")
        seen = {normalised_etag(value) for value in (headers.get("X-Linked-ETag"), etag)}
        with self._state:
            known = self._etags.get(origin)
            if known is not None and known not in seen:
                raise self._changed()
            if known is None and etag:
                self._etags[origin] = normalised_etag(etag) or ""
            if etag and not etag.startswith("W/"):
                self._validators.setdefault(origin, etag)

    def _take_whole(self, response: Any, stop: threading.Event) -> None:
        """Keep the complete body that a server without ranges sends."""
        length = response.headers.get("Content-Length")
        if length is not None and length != str(self._size):
            raise self._changed()
        with self._whole:  # others in flight get the same body: the first one serves all
            if self._gaps(0, self._size):
                logger.warning(
                    "%s: the server does not send parts of files, so all of its %d MB are fetched",
                    self._name,
                    self._size // 1_000_000,
                )
                self._receive(response, 0, self._size, stop)

    def _receive(self, response: Any, position: int, end: int, stop: threading.Event) -> None:
        since, received = time.monotonic(), 0
        for piece in response.iter_raw():
            if stop.is_set():
                return
            data = memoryview(piece)[: end - position]
            self._keep(position, data)
            position += len(data)
            received += len(data)
            now = time.monotonic()
            if now - since > self._retry.stall:
                if received < _TRICKLE:
                    break
                since, received = now, 0
        if position < end:
            raise _TryAgainError(
                HubError("the connection broke off or stalled", where=self._name, hint="run again")
            )

    def _keep(self, position: int, data: memoryview) -> None:
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._file.fileno(), data[done:], position + done)
        except OSError as error:
            raise OutputError(
                f"the temporary file cannot be written: {error.strerror}",
                where=tempfile.gettempdir(),
                hint="make room there or set TMPDIR",
            ) from error
        with self._state:
            self._present.add(position, position + len(data))
            self.bytes_fetched += len(data)
            if self._on_progress and data:
                self._on_progress(len(data))

    def _changed(self) -> MalformedCheckpointError:
        return MalformedCheckpointError(
            "changed on the server while it was being read", where=self._name, hint="run again"
        )
