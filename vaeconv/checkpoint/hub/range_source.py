"""A file on the Hub, read by byte ranges into a sparse temporary file."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from vaeconv.checkpoint.hub.http import Retry
from vaeconv.checkpoint.hub.range_client import RangeClient
from vaeconv.checkpoint.hub.sparse_file import SparseFile
from vaeconv.checkpoint.source import Part
from vaeconv.errors import MalformedCheckpointError

_JOIN_GAP = 128 << 10
_REQUEST_SIZE = 16 << 20
_READ_AHEAD = 64 << 10
_IN_FLIGHT = 8
_SHA256 = re.compile(r"[0-9a-f]{64}")  # the ETag of a file in LFS; others have 40 digits, of git


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
        on_progress: Called with the number of bytes of each piece that arrived, one call at a
            time, from any thread.
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
        on_progress: Callable[[int], None] | None = None,
        retry: Retry | None = None,
    ) -> None:
        self._name = name
        self._size = size
        self._client = RangeClient(
            url, name=name, size=size, etag=etag, headers=headers or {}, retry=retry or Retry()
        )
        self._fetching = threading.Lock()
        self._users = 1
        self._digests: dict[Part, str] = {None: etag} if _SHA256.fullmatch(etag) else {}
        self._file = SparseFile(size, on_progress)

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
        if self._file.gaps(offset, end):
            # Headers and directories are read in small steps; one round trip serves many.
            ahead = min(self._size, max(end, offset + _READ_AHEAD))
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

    def map(self, offset: int, size: int) -> memoryview | None:
        """Give nothing: parts of the file may not be here yet."""

    def known_sha256(self, part: Part = None) -> str | None:
        """Return the hash that the Hub knows a file in LFS by, or one that was noted."""
        return self._digests.get(part)

    def keep_sha256(self, sha256: str, part: Part = None) -> None:
        """Remember the sha256 of the whole file."""
        self._digests[part] = sha256

    @property
    def is_local(self) -> bool:
        """Say that reading may cost network."""
        return False

    def check_unchanged(self) -> None:
        """Do nothing: a change raises where it is seen.

        The address is of one commit, and each answer must carry the ETag and the length of the
        first.
        """

    def retain(self) -> RangeSource:
        """Count one more user, who closes it as well."""
        self._users += 1
        return self

    def close(self) -> None:
        """Drop what was fetched, once the last user closes it."""
        self._users -= 1
        if self._users > 0:
            return
        with self._fetching:
            self._file.close()

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
            for first, stop in self._file.gaps(low, high)
            for start in range(first, stop, _REQUEST_SIZE)
        ]

    def _fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch what is not here of the ranges; one batch at a time, so that none comes twice."""
        pieces = self._plan(ranges)
        stop = threading.Event()
        if len(pieces) < 2:
            for piece in pieces:
                self._client.fetch(*piece, self._file, stop)
            return
        from huggingface_hub import get_session

        get_session()  # now: asked by several threads at once, 1.0 makes and leaks several
        pool = ThreadPoolExecutor(min(_IN_FLIGHT, len(pieces)))
        futures = [pool.submit(self._client.fetch, *piece, self._file, stop) for piece in pieces]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            # After an error or Ctrl-C nobody waits for the others: a server may be silent long.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
