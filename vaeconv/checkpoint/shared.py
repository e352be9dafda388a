"""Sources that the steps of one run share: of one commit, fetched once, hashed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vaeconv.checkpoint.hub.range_source import RangeSource


@dataclass(slots=True)
class Shared:
    """Facts of sources, kept while :func:`shared_sources` lasts.

    Attributes:
        commits: The commit that each revision of a repository named when it was first asked for.
        listings: The paths of all files at a commit of a repository.
        remote: Files on the Hub by repository, commit and path; what was fetched of them is kept.
        digests: The sha256 of local files by device, inode, size and times.
    """

    commits: dict[tuple[str, str], str] = field(default_factory=dict)
    listings: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    remote: dict[tuple[str, str, str], RangeSource] = field(default_factory=dict)
    digests: dict[tuple[int, ...], str] = field(default_factory=dict)

    def close(self) -> None:
        """Drop what was fetched."""
        for source in self.remote.values():
            source.close()
        self.remote.clear()


_current: ContextVar[Shared | None] = ContextVar("shared_sources", default=None)


def current() -> Shared:
    """Return what is shared now, or something new if nothing is."""
    return _current.get() or Shared()


def is_sharing() -> bool:
    """Tell if sources that are opened now are kept for the next step."""
    return _current.get() is not None


@contextmanager
def shared_sources() -> Iterator[None]:
    """Share sources among all that opens them inside the block, in this thread.

    A branch on the Hub that moves meanwhile is seen at the commit that it named first, no byte of
    a file on the Hub is fetched twice, and no file is hashed twice. In a block in another one
    nothing changes.
    """
    if is_sharing():
        yield
        return
    shared = Shared()
    token = _current.set(shared)
    try:
        yield
    finally:
        _current.reset(token)
        shared.close()
