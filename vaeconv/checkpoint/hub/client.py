"""Call huggingface_hub: retry what may pass, and say what it raises in our own words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

from vaeconv._version import __version__
from vaeconv.checkpoint.hub.http import (
    Retry,
    UnreachableError,
    is_transient,
    network_errors,
    refused,
    unreachable,
)
from vaeconv.errors import HubError, OutputError

T = TypeVar("T")

NAME, VERSION = "vaeconv", __version__  # how requests introduce us


def ask(call: Callable[[], T], where: str, retry: Retry, *, tries: int) -> T:
    """Call the client library, at most ``tries`` times.

    Raises:
        HubError: The Hub refuses, cannot be reached, or is none; :class:`NoSuchFileError` and
            :class:`UnreachableError` where that is what it was.
        OutputError: The cache cannot be written.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError

    # RuntimeError is what hf_xet raises.
    expected: tuple[type[Exception], ...] = (EntryNotFoundError, RuntimeError)
    expected += network_errors()
    for failures in range(1, tries + 1):
        try:
            return call()
        except expected as error:
            failure = _translate(error, where)
            response = getattr(error, "response", None)
            if response is not None:
                passing = is_transient(response.status_code)
            else:
                passing = isinstance(failure, UnreachableError) and not constants.HF_HUB_OFFLINE
            if not passing or failures == tries:
                raise failure from error
            after = response.headers.get("Retry-After") if response is not None else None
        except (ValueError, TypeError, KeyError) as error:
            raise not_a_hub(where) from error
        time.sleep(retry.delay(failures, after))
    raise AssertionError("unreachable")


class _Bars:
    """How many blocks want the client's own progress bars hidden; they may be in many threads."""

    lock = Lock()
    number = 0
    were_shown = False


@contextmanager
def hidden_bars() -> Iterator[None]:
    """Hide the client's progress bars, which would write into ours, inside the block."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    with _Bars.lock:
        if not _Bars.number:
            is_forced = constants.HF_HUB_DISABLE_PROGRESS_BARS is False
            _Bars.were_shown = not are_progress_bars_disabled() and not is_forced
            if _Bars.were_shown:
                disable_progress_bars()
        _Bars.number += 1
    try:
        yield
    finally:
        with _Bars.lock:
            _Bars.number -= 1
            if not _Bars.number and _Bars.were_shown:
                enable_progress_bars()


def not_a_hub(where: str) -> HubError:
    """Return the error for answers that the Hub would not give."""
    return HubError(
        "the server's answers are not those of the Hub",
        where=where,
        hint="check HF_ENDPOINT and the proxy settings",
    )


def request_headers() -> dict[str, str]:
    """Return the headers that go with each request: who we are, and the user's token."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    return build_hf_headers(library_name=NAME, library_version=VERSION)


def _translate(error: Exception, where: str) -> HubError | OutputError:
    from huggingface_hub.errors import FileMetadataError, LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # it only says that the cache couldn't help either
    response = getattr(error, "response", None)
    if response is not None:
        return refused(response.status_code, response.headers, where)
    if isinstance(error, FileMetadataError):
        return not_a_hub(where)
    local = isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError)
    if local and not isinstance(error, network_errors()[1:]) and getattr(error, "errno", None):
        return OutputError(
            f"the cache cannot be written: {getattr(error, 'strerror', error)}",
            where=where,
            hint="make room there, or set HF_HOME to another folder",
        )
    return unreachable(error, where)
