"""Fetch byte ranges of one remote file over HTTP, and hold the server to that one file."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from vaeconv.checkpoint.hub.http import (
    Retry,
    forbidden_offline,
    is_transient,
    network_errors,
    refused,
    unreachable,
)
from vaeconv.checkpoint.hub.sparse_file import SparseFile
from vaeconv.errors import HubError, MalformedCheckpointError

_REDIRECTS = 10
_PROGRESS = 64 << 10  # an attempt that brings less than this counts as a failure
_TRICKLE = 16 << 10  # less than this in a stall interval is a dead connection, not a slow one
_LINK_EXPIRED = frozenset({400, 401, 403, 404, 410})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

logger = logging.getLogger(__name__)


class _TryAgainError(Exception):
    """A request failed in a way that may pass."""

    def __init__(self, error: HubError, retry_after: str | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after = retry_after


class _Wanted(NamedTuple):
    """One request: the bytes it is to bring, their place, and who may call it off."""

    start: int
    end: int
    into: SparseFile
    stop: threading.Event


class RangeClient:
    """Asks for ranges of a file that must stay the same. Safe to use from several threads.

    Args:
        url: Its address at a fixed commit, on the Hub's endpoint.
        name: What to call it in messages.
        size: Its length in bytes.
        etag: What identifies its content, normalised.
        headers: Sent with each request; ``authorization`` only to the host of ``url``.
        retry: How patient to be.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        size: int,
        etag: str,
        headers: Mapping[str, str],
        retry: Retry,
    ) -> None:
        self._url = url
        self._name = name
        self._size = size
        self._headers = {**headers, "Accept-Encoding": "identity"}
        self._retry = retry
        self._location = url  # where the Hub redirects to, once known
        self._etags = {_origin(url): etag}
        self._validators: dict[str, str] = {}
        self._pinning = threading.Lock()
        self._whole = threading.Lock()

    def fetch(self, start: int, end: int, into: SparseFile, stop: threading.Event) -> None:
        """Fetch what the file lacks between ``start`` and ``end``; give up early on ``stop``.

        Raises:
            HubError: The server refuses, or fails again and again.
            MalformedCheckpointError: What it has is not the same file any more.
            OutputError: The disk is full.
        """
        failures = 0
        while (gaps := into.gaps(start, end)) and not stop.is_set():
            position = gaps[0][0]
            try:
                self._request(_Wanted(position, end, into, stop))
            except _TryAgainError as problem:
                left = into.gaps(start, end)
                # A crawl of a few bytes per attempt must not go on for ever.
                gained = not left or left[0][0] - position >= _PROGRESS
                failures = 1 if gained else failures + 1
                if failures >= self._retry.tries:
                    raise problem.error from problem
                wait = self._retry.delay(failures, problem.retry_after)
                logger.info("%s; trying again in %.1f s", problem, wait)
                stop.wait(wait)

    def _request(self, wanted: _Wanted) -> None:
        """Ask for a range, follow redirects, and keep what comes."""
        from huggingface_hub import get_session

        limits = self._retry
        timeout = (limits.connect, limits.read, limits.read, limits.connect)
        url = self._location
        remembered = url != self._url
        for _ in range(_REDIRECTS):
            headers = self._headers_for(url, wanted)
            try:
                with get_session().stream(
                    "GET", url, headers=headers, timeout=timeout, follow_redirects=False
                ) as response:
                    if response.has_redirect_location:
                        self._check_redirect(url, response)
                        url = urljoin(url, response.headers["Location"])
                    elif remembered and response.status_code in _LINK_EXPIRED:
                        # Signed links live for an hour or so; the Hub gives a new one.
                        url = self._location = self._url
                        remembered = False
                    else:
                        self._take(url, response, wanted)
                        return
            except network_errors() as error:
                failure = unreachable(error, self._name)
                if forbidden_offline(error):
                    raise failure from error
                raise _TryAgainError(failure) from error
        raise HubError("the server redirects in circles", where=self._name, hint="run again later")

    def _headers_for(self, url: str, wanted: _Wanted) -> dict[str, str]:
        origin = _origin(url)
        headers = {**self._headers, "Range": f"bytes={wanted.start}-{wanted.end - 1}"}
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

    def _take(self, url: str, response: Any, wanted: _Wanted) -> None:
        """Check an answer and keep its body."""
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
            self._take_whole(response, wanted)
            return
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if match and match[3] not in ("*", str(self._size)):
            raise self._changed()
        start, end = (int(match[1]), int(match[2]) + 1) if match else (0, 0)
        if start != wanted.start or not start < end <= wanted.end:
            raise HubError(
                "the server sent other bytes than were requested",
                where=self._name,
                hint="use --download",
            )
        self._location = url
        self._receive(response, start, end, wanted)

    def _pin(self, origin: str, headers: Mapping[str, str]) -> None:
        """Hold each host to the ETag that it gave first; the Hub's own is known beforehand."""
        etag = headers.get("ETag")
        seen = {normalised_etag(value) for value in (headers.get("X-Linked-ETag"), etag)}
        with self._pinning:
            known = self._etags.get(origin)
            if known is not None and known not in seen:
                raise self._changed()
            if known is None and etag:
                self._etags[origin] = normalised_etag(etag) or ""
            if etag and not etag.startswith("W/"):
                self._validators.setdefault(origin, etag)

    def _take_whole(self, response: Any, wanted: _Wanted) -> None:
        """Keep the complete body that a server without ranges sends."""
        length = response.headers.get("Content-Length")
        if length is not None and length != str(self._size):
            raise self._changed()
        with self._whole:  # others in flight get the same body: the first one serves all
            if wanted.into.gaps(0, self._size):
                logger.warning(
                    "%s: the server does not send parts of files, so all of its %d MB are fetched",
                    self._name,
                    self._size // 1_000_000,
                )
                self._receive(response, 0, self._size, wanted)

    def _receive(self, response: Any, position: int, end: int, wanted: _Wanted) -> None:
        since, received = time.monotonic(), 0
        for piece in response.iter_raw():
            if wanted.stop.is_set():
                return
            data = memoryview(piece)[: end - position]
            wanted.into.write(position, data)
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

    def _changed(self) -> MalformedCheckpointError:
        return MalformedCheckpointError(
            "changed on the server while it was being read", where=self._name, hint="run again"
        )


def normalised_etag(value: str | None) -> str | None:
    """Return the opaque part of an ETag header: no weakness mark, no quotes."""
    return (value.removeprefix("W/").strip('"') or None) if value else None


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()
