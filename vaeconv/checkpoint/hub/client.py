"""Calls of huggingface_hub: checked variables, and retries that end."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from vaeconv._version import __version__
from vaeconv.checkpoint.hub.failures import (
    Retry,
    UnreachableError,
    explain,
    network_errors,
    not_a_hub,
)
from vaeconv.errors import UsageError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

NAME = "vaeconv"  # how requests introduce us
_PROGRESS = 64 << 10  # an attempt that brings less than this counts as a failure
_PROXIES = ("http", "https", "socks4", "socks5", "socks5h")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")

logger = logging.getLogger(__name__)


def retried(
    call: Callable[[], T],
    where: str,
    retry: Retry,
    *,
    tries: int | None = None,
    left: Callable[[], int] = lambda: 0,
    pause: Callable[[float], object] = time.sleep,
) -> T:
    """Call the client library, again where a failure may pass.

    Args:
        call: Does the work, or the rest of it.
        where: Name for messages.
        retry: How patient to be.
        tries: Attempts without progress, if not those of ``retry``.
        left: Says how many bytes are still to come.
        pause: Waits for so many seconds.

    Raises:
        HubError: The Hub refuses or cannot be reached; :class:`NoSuchFileError` and
            :class:`UnreachableError` where that is what it was.
        OutputError: The cache cannot be written.
    """
    from huggingface_hub.errors import EntryNotFoundError

    # RuntimeError is what hf_xet raises.
    expected: tuple[type[Exception], ...] = (EntryNotFoundError, RuntimeError, UnreachableError)
    expected += network_errors()
    failures = 0
    while True:
        before = left()
        try:
            return call()
        except expected as error:
            failure = explain(error, where)
            # A crawl of a few bytes per attempt must not go on for ever.
            failures = 1 if before - left() >= _PROGRESS else failures + 1
            if not failure.may_pass or failures >= (tries or retry.tries):
                raise failure.error from error
        wait = retry.delay(failures, failure.retry_after)
        logger.info("%s; trying again in %.1f s", failure.error, wait)
        pause(wait)


def ask(call: Callable[[], T], where: str, retry: Retry, *, tries: int | None = None) -> T:
    """Call the client library as :func:`retried`, and hold the server to being a Hub.

    Raises:
        HubError: It refuses, cannot be reached, or its answers are not those of the Hub.
        OutputError: The cache cannot be written.
    """
    try:
        return retried(call, where, retry, tries=tries)
    except (ValueError, TypeError, KeyError) as error:
        raise not_a_hub(where) from error


def fetch_whole(
    repo_id: str, path: str, revision: str, kind: str, where: str, retry: Retry, tries: int
) -> Path:
    """Let the client put a whole file into its cache, and return where it is.

    Raises:
        HubError: It cannot be fetched.
        OutputError: The cache cannot be written.
    """
    from huggingface_hub import hf_hub_download

    def fetch() -> str:
        return hf_hub_download(
            repo_id,
            path,
            repo_type=kind,
            revision=revision,
            library_name=NAME,
            library_version=__version__,
            etag_timeout=retry.connect,
        )

    with hidden_bars():
        return Path(ask(fetch, where, retry, tries=tries))


def hub_api() -> HfApi:
    """Return the client's interface to all but files."""
    from huggingface_hub import HfApi

    return HfApi(library_name=NAME, library_version=__version__)


def request_headers() -> dict[str, str]:
    """Return the headers that go with each request: who we are, and the user's token."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    return build_hf_headers(library_name=NAME, library_version=__version__)


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


def check_environment() -> None:
    """Check the variables that the client reads: numbers, addresses, certificates, the token.

    It reads them when it is imported or sends its first request, and fails in its own ways.

    Raises:
        UsageError: One cannot be what it says.
    """
    try:
        from huggingface_hub import constants, get_token
    except ValueError as error:
        raise UsageError(
            f"an environment variable of the Hub's client is wrong ({error})",
            hint="look at those that begin with HF_",
        ) from error
    _check_address("HF_ENDPOINT", constants.ENDPOINT, ("http", "https"))
    for name, address in getproxies().items():
        if name in ("http", "https", "all"):
            whole = address if "://" in address else f"http://{address}"
            _check_address(f"{name.upper()}_PROXY", whole, _PROXIES)
    for name in _CERTIFICATES:
        place = os.environ.get(name)
        if place and not Path(place).exists():
            raise UsageError(f"{name} names {place}, which does not exist", hint="unset it")
    if not (get_token() or "").isascii():
        raise UsageError(
            "the Hub token contains characters that no token has",
            hint="set HF_TOKEN again, or log in again",
        )


def _check_address(name: str, address: str, schemes: tuple[str, ...]) -> None:
    try:
        parts = urlsplit(address)
        is_url = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise UsageError(f"{name} is {address!r}, which is not a URL")
