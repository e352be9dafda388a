"""The Hub's client, bounded: timeouts, a cap on waiting, and errors as one line with a remedy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vaeconv._version import __version__
from vaeconv.errors import HubError

TIMEOUT = 60.0  # seconds without a byte
MAX_WAIT = 60  # seconds that a server may ask for before a retry
DEADLINE = 3600.0  # seconds for everything

_REMEDIES = {
    401: ("the token is not accepted", "log in with: hf auth login, or set HF_TOKEN"),
    403: ("the token may not write there", "use a token with write access to this namespace"),
    404: ("there is no such repository or revision", "check the name, and what the token may see"),
    409: ("it is there already, and something else", "choose another name"),
    412: ("somebody else pushed in the meantime", "look at what is new there, and push again"),
    413: ("a file is too large for the Hub", "leave it out with --exclude"),
    429: ("the Hub asks for fewer requests", "wait a while, and push again"),
}


class Deadline:
    """What all requests together may take.

    Args:
        seconds: How long.
    """

    def __init__(self, seconds: float = DEADLINE) -> None:
        self._end = time.monotonic() + seconds
        self._seconds = seconds

    def check(self) -> None:
        """Raise where the time is over.

        Raises:
            HubError: It is.
        """
        if time.monotonic() > self._end:
            raise HubError(
                f"not done within {self._seconds:.0f} seconds",
                hint="push again: what was uploaded is not sent twice",
            )


@contextmanager
def bounded_client(deadline: Deadline) -> Iterator[Any]:
    """Give an ``HfApi`` whose requests end: the client's own waits for ever.

    The client obeys ``Retry-After`` without a limit; here a server can ask for a minute at most.

    Raises:
        HubError: The time is over.
    """
    from huggingface_hub import HfApi, set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def limit_wait(response: Any) -> None:
        deadline.check()
        asked = response.headers.get("retry-after", "")
        if asked.isdecimal() and int(asked) > MAX_WAIT:
            response.headers["retry-after"] = str(MAX_WAIT)

    def check_time(request: Any) -> None:
        deadline.check()

    def factory() -> Any:
        client = default_client_factory()
        client.timeout = TIMEOUT
        hooks = client.event_hooks
        hooks["request"] = [*hooks.get("request", []), check_time]
        hooks["response"] = [*hooks.get("response", []), limit_wait]
        client.event_hooks = hooks
        return client

    set_client_factory(factory)
    try:
        yield HfApi(library_name="vaeconv", library_version=__version__)
    finally:
        set_client_factory(default_client_factory)


def is_lost(error: BaseException) -> bool:
    """Tell whether an error leaves open if the server did what it was asked."""
    status = status_of(error)
    return status is None or status >= 500 or status in (408, 412)


def status_of(error: BaseException) -> int | None:
    """The status of the answer; None where there was none."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def explain(error: BaseException, where: str) -> HubError:
    """Turn what the client raises into one line with a remedy; tokens never get into it."""
    status = status_of(error)
    if status in _REMEDIES:
        what, hint = _REMEDIES[status]
        said = getattr(error, "server_message", None)
        return HubError(f"{what} ({status}{f': {said}' if said else ''})", where=where, hint=hint)
    if status is not None:
        return HubError(
            f"the Hub failed ({status})", where=where, hint="push again: nothing is done twice"
        )
    name = type(error).__name__
    if isinstance(error, ValueError) and "metadata" in str(error):
        first = " ".join(str(error).split())
        return HubError(
            f"the Hub refuses the card's front matter: {first}", where=where,
            hint="mend README.md, or see vaeconv card --check",
        )  # fmt: skip
    return HubError(
        f"no answer from the Hub ({name})",
        where=where,
        hint="check the network, and push again: nothing is done twice",
    )
