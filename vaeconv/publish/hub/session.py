"""The Hub's client, bounded: timeouts, a cap on waiting, and errors as one line with a remedy."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from json import JSONDecodeError
from logging import ERROR
from typing import Any, TypeVar

from vaeconv._version import __version__
from vaeconv.checkpoint.hub.client import NAME, hidden_bars
from vaeconv.errors import HubError, VaeconvError

Answer = TypeVar("Answer")
Hook = Callable[[Any], None]

TIMEOUT = 60.0  # seconds without a byte
MAX_WAIT = 60  # seconds that a server may ask for before a retry
DEADLINE = 3600.0  # seconds for everything
WAITS = (1.0, 2.0, 4.0)  # seconds between tries
RESOURCE = "HF_OIDC_RESOURCE"  # of a CI job

_TIMEOUTS = ("connect", "read", "write", "pool")
_CLIENTS = ("httpx2", "httpx", "httpcore2", "httpcore")
_DIGITS = 9  # of a number of seconds; Python reads no text of thousands
_AGAIN = (408, 429, 500, 502, 503, 504)
_UNSETTLED = (408, 412, 429, 500, 502, 503, 504)
_REMEDIES = {
    401: ("the token is not accepted", "log in with: hf auth login, or set HF_TOKEN"),
    403: ("the token may not write there", "use a token with write access to this namespace"),
    404: ("there is no such repository or revision", "check the name, and what the token may see"),
    409: ("it exists already, as something else", "choose another name"),
    412: ("somebody else pushed in the meantime", "look at the new commits there, and push again"),
    413: ("a file is too large for the Hub", "leave it out with --exclude"),
    429: ("the Hub asks for fewer requests", "wait a while, and push again"),
}
_REFUSED = ("the Hub rejects the request", "correct what it names, and push again")


class Deadline:
    """Time limit of all requests together, in seconds."""

    def __init__(self, seconds: float = DEADLINE) -> None:
        self._end = time.monotonic() + seconds
        self._seconds = seconds

    def check(self) -> None:
        """Raise where the time is over.

        Raises:
            HubError: It is.
        """
        if time.monotonic() > self._end:
            raise self.over()

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return max(0.0, self._end - time.monotonic())

    def over(self) -> HubError:
        """Say that the time is over."""
        return HubError(
            f"not done within {self._seconds:.0f} seconds",
            hint="run again, with a larger --timeout if that was too short: what was uploaded is "
            "not sent twice",
        )


@contextmanager
def bounded_client(deadline: Deadline, *, shows: bool = False) -> Iterator[Any]:
    """Give an ``HfApi`` whose requests end: the client's own waits for ever.

    The client obeys ``Retry-After`` without a limit; here a server can ask for a minute at most.

    Args:
        deadline: Time limit of all requests together.
        shows: Whether the client may show uploads and downloads on a terminal.

    Raises:
        HubError: The time is over.
    """
    from huggingface_hub import HfApi, get_session, set_client_factory
    from huggingface_hub.utils import logging

    plain = get_session()

    def limit_wait(response: Any) -> None:
        deadline.check()
        asked = response.headers.get("retry-after", "").strip()
        if asked.isdecimal() and (len(asked) > _DIGITS or int(asked) > MAX_WAIT):
            response.headers["retry-after"] = str(MAX_WAIT)
        response.headers.pop("ratelimit", None)  # another way to ask for a long wait

    def check_time(request: Any) -> None:
        deadline.check()
        # Some calls of the client say that they have no timeout.
        request.extensions["timeout"] = dict.fromkeys(_TIMEOUTS, TIMEOUT)

    verbosity = logging.get_verbosity()
    # Each try that fails would be a line, with the upload's address.
    logging.set_verbosity(ERROR)
    set_client_factory(lambda: _client_like(plain, [check_time], [limit_wait]))
    try:
        with nullcontext() if shows and sys.stderr.isatty() else hidden_bars():
            yield HfApi(library_name=NAME, library_version=__version__)
    finally:
        logging.set_verbosity(verbosity)
        # The next thing that a thread that was left behind would do may be a commit.
        set_client_factory(lambda: _client_like(plain, [_refuse_left_behind]))


def _client_like(client: Any, requests: Sequence[Hook], responses: Sequence[Hook] = ()) -> Any:
    """Make a client as another one, with more hooks: huggingface_hub does not say how it makes its.

    Proxies and certificates come from the environment anew.
    """
    hooks = client.event_hooks
    return type(client)(
        auth=client.auth,
        headers=client.headers,
        cookies=client.cookies,
        timeout=client.timeout,
        follow_redirects=client.follow_redirects,
        event_hooks={
            "request": list(dict.fromkeys([*hooks["request"], *requests])),
            "response": list(dict.fromkeys([*hooks["response"], *responses])),
        },
        trust_env=client.trust_env,
    )


@contextmanager
def trusted_for(repo_id: str, repo_type: str) -> Iterator[None]:
    """Let a CI job's identity be exchanged for a token of this repository.

    Such a token is for one repository, the one that ``HF_OIDC_RESOURCE`` names, and a release goes
    to two. The client reads the variable anew for each request.
    """
    given = os.environ.get(RESOURCE, "")
    if "/" not in given:  # not asked for, or a user's identity, which is for reading
        yield
        return
    os.environ[RESOURCE] = repo_id if repo_type == "model" else f"{repo_type}s/{repo_id}"
    try:
        yield
    finally:
        os.environ[RESOURCE] = given


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Give an error and what is below it: the client wraps what went wrong with an upload."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def is_lost(error: BaseException) -> bool:
    """Tell whether an error leaves open if the server did what it was asked."""
    status = status_of(error)
    return status in _UNSETTLED or (status is None and not _is_refused_card(error))


def status_of(error: BaseException) -> int | None:
    """The status of the answer; None where there was none."""
    for cause in _causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _is_refused_card(error: BaseException) -> bool:
    return isinstance(error, ValueError) and "metadata in README" in str(error)


def ask(call: Callable[[], Answer], deadline: Deadline) -> Answer:
    """Ask something that may be asked again: where no answer comes, or the server failed.

    The client itself tries uploads again, and nothing else.

    Raises:
        Exception: What the last try raised.
    """
    for wait in WAITS:
        try:
            return call()
        except VaeconvError:
            raise
        except Exception as error:
            status = status_of(error)
            if status not in _AGAIN and (status is not None or not _is_no_answer(error)):
                raise
        deadline.check()
        time.sleep(wait)
    return call()


def _is_no_answer(error: BaseException) -> bool:
    """Whether the connection failed, or what came was no answer of a Hub."""
    return any(
        type(cause).__module__.partition(".")[0] in _CLIENTS
        or isinstance(cause, OSError | JSONDecodeError)
        for cause in _causes(error)
    )


class Worker(threading.Thread):
    """A thread that does something while another one waits for it.

    Attributes:
        is_left: Whether nobody waits any more.
    """

    is_left = False


def _refuse_left_behind(request: Any) -> None:
    if getattr(threading.current_thread(), "is_left", False):
        raise HubError("this request was abandoned")


def within(deadline: Deadline, work: Callable[[], Answer]) -> Answer:
    """Do something in a thread, and stop waiting for it when its time is over.

    Timeouts of the client count from byte to byte, and a server may send one every minute.

    Raises:
        HubError: The time is over.
    """
    box: list[Answer] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            box.append(work())
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            failure.append(error)

    worker = Worker(target=run, daemon=True)
    worker.start()
    worker.join(deadline.left + 1)
    if failure:
        raise failure[0]
    if not box:
        worker.is_left = True
        raise deadline.over()
    return box[0]


def explain(error: BaseException, where: str) -> HubError:
    """Turn what the client raises into one line with a remedy; tokens never get into it."""
    if _is_refused_card(error):
        first = " ".join(str(error).split())
        return HubError(
            f"the Hub refuses the card's front matter: {first}",
            where=where,
            hint="fix README.md, or see vaeconv card --check",
        )
    status = status_of(error)
    if status is not None and status < 500:
        what, hint = _REMEDIES.get(status, _REFUSED)
        said = getattr(error, "server_message", None)
        return HubError(f"{what} ({status}{f': {said}' if said else ''})", where=where, hint=hint)
    if status is not None:
        return HubError(
            f"the Hub failed ({status})", where=where, hint="push again: nothing is done twice"
        )
    name = type(error).__name__
    if name == "OIDCError":
        return HubError(
            f"the job has no identity to show to the Hub: {' '.join(str(error).split())}",
            where=where,
            hint="give the job the permission id-token: write, or unset HF_OIDC_RESOURCE",
        )
    return HubError(
        f"no answer from the Hub ({name})",
        where=where,
        hint="check the network, and push again: nothing is done twice",
    )
