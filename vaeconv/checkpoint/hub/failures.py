"""Failures of requests: in our own words, whether they may pass, and how long to wait."""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from vaeconv.errors import HubError, OutputError

_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_TOKEN_REFUSED = "the Hub does not accept the token", "log in again with `hf auth login`"
_NOT_THERE = (
    "no such repository or file, or it is private",
    f"check the name; for a private one, {_LOG_IN}",
)
# What is wrong and what to do, by the Hub's header X-Error-Code, and else by the HTTP status.
_BY_CODE = {
    "EntryNotFound": ("no such file in the repository", "check the path and the revision"),
    "GatedRepo": ("the repository is gated", f"accept its terms on its page, then {_LOG_IN}"),
    "RevisionNotFound": ("no such revision", "check the branch, tag or commit after the @"),
}
_BY_STATUS = {
    401: _NOT_THERE,
    403: ("access denied", f"{_LOG_IN}, with a token that may read this repository"),
    404: _NOT_THERE,
    416: ("the server does not have the bytes that were asked for", "run again"),
    429: ("too many requests", "wait a few minutes and run again"),
}
_FAILED = "the server failed", "run again later"


class NoSuchFileError(HubError):
    """The repository and the revision are there, the file is not."""


class UnreachableError(HubError):
    """Nothing was heard from the server, or it may not be asked."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Number of requests to a server, and pauses between them. Times are in seconds.

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


class Failure(NamedTuple):
    """Meaning of what the client raised.

    Attributes:
        error: The error for the user.
        may_pass: Whether the same request may succeed a little later.
        retry_after: How long to wait, as the server says it.
    """

    error: HubError | OutputError
    may_pass: bool
    retry_after: str | None = None


def not_a_hub(where: str) -> HubError:
    """Return the error for answers that the Hub would not give."""
    return HubError(
        "the server's answers are not those of the Hub",
        where=where,
        hint="check HF_ENDPOINT and the proxy settings",
    )


def network_errors() -> tuple[type[Exception], ...]:
    """Return the exception classes of a failed connection.

    huggingface_hub 1.x speaks through httpx and 2.x through httpx2; whichever is loaded counts.
    """
    modules = (sys.modules.get(name) for name in ("httpx", "httpx2"))
    return (OSError, *(module.HTTPError for module in modules if module))


def explain(error: Exception, where: str) -> Failure:
    """Say what an exception of the client means."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # it only says that the cache couldn't help either
    response = getattr(error, "response", None)
    if response is not None:
        status, headers = response.status_code, response.headers
        refusal = _refused(status, headers, where)
        return Failure(refusal, status in _TRANSIENT, headers.get("Retry-After"))
    failure = _translate(error, where)
    return Failure(failure, isinstance(failure, UnreachableError) and not constants.HF_HUB_OFFLINE)


def _translate(error: Exception, where: str) -> HubError | OutputError:
    from huggingface_hub.errors import FileMetadataError, OfflineModeIsEnabled

    if isinstance(error, UnreachableError):
        return error
    if isinstance(error, FileMetadataError):
        return not_a_hub(where)
    if isinstance(error, OfflineModeIsEnabled):
        return UnreachableError(
            "offline mode is on and it is not in the local cache",
            where=where,
            hint="unset HF_HUB_OFFLINE, or download it first with `hf download`",
        )
    if type(error).__name__ == "TooManyRedirects":
        return HubError("the server redirects in circles", where=where, hint="run again later")
    is_network = isinstance(error, ConnectionError | TimeoutError)
    if isinstance(error, OSError) and error.errno and not is_network:
        return OutputError(
            f"the cache cannot be written: {error.strerror}",
            where=where,
            hint="make room there, or set HF_HOME to another folder",
        )
    return UnreachableError(
        f"cannot be reached: {str(error) or type(error).__name__}",
        where=where,
        hint="check the network, the proxy settings and HF_ENDPOINT, then run again",
    )


def _refused(status: int, headers: Mapping[str, str], where: str) -> HubError:
    """Return the error for an answer with an HTTP status that means no."""
    code = headers.get("X-Error-Code", "")
    what, hint = _BY_CODE.get(code) or _BY_STATUS.get(status, _FAILED)
    if code not in _BY_CODE and "Invalid credentials" in headers.get("X-Error-Message", ""):
        what, hint = _TOKEN_REFUSED
    kind = NoSuchFileError if code == "EntryNotFound" else HubError
    return kind(f"{what} (HTTP {status})", where=where, hint=hint)
