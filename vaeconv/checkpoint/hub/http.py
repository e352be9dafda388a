"""Meaning of a server's answers: how long to wait, when to ask again, what to tell the user."""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from vaeconv.errors import HubError

_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})


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


def network_errors() -> tuple[type[Exception], ...]:
    """Return the exception classes of a failed connection.

    huggingface_hub 1.x speaks through httpx and 2.x through httpx2; whichever is loaded counts.
    """
    modules = (sys.modules.get(name) for name in ("httpx", "httpx2"))
    return (OSError, *(module.HTTPError for module in modules if module))


def is_transient(status: int) -> bool:
    """Tell whether the same request may succeed a little later."""
    return status in _TRANSIENT


def forbidden_offline(error: Exception) -> bool:
    """Tell whether it was not the network that failed, but the user who forbade to use it."""
    return type(error).__name__ == "OfflineModeIsEnabled"


def unreachable(error: Exception, where: str) -> UnreachableError:
    """Return the error for a connection that failed, or that offline mode forbade."""
    if forbidden_offline(error):
        return UnreachableError(
            "offline mode is on and it is not in the local cache",
            where=where,
            hint="unset HF_HUB_OFFLINE, or download it first with `hf download`",
        )
    reason = str(error) or type(error).__name__
    return UnreachableError(
        f"cannot be reached: {reason}",
        where=where,
        hint="check the network, the proxy settings and HF_ENDPOINT, then run again",
    )


def refused(status: int, headers: Mapping[str, str], where: str) -> HubError:
    """Return the error for an answer with an HTTP status that means no."""
    code = headers.get("X-Error-Code", "")
    reason = headers.get("X-Error-Message", "")
    if code == "EntryNotFound":
        return NoSuchFileError(
            f"no such file in the repository (HTTP {status})",
            where=where,
            hint="check the path and the revision",
        )
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    if code == "GatedRepo":
        what, hint = "the repository is gated", f"accept its terms on its page, then {log_in}"
    elif "Invalid credentials" in reason:
        what, hint = "the Hub does not accept the token", "log in again with `hf auth login`"
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
