"""Faults: rules that say which requests meet which actions.

An action steps in at one or more of three moments: when the head of a request was read, when its
body was, and when the answer is known, that is, when the work was done. Several actions of one
rule do so one after the other.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

FOREVER = 1 << 30


@dataclass
class Request:
    """What a client asked, and what it was told."""

    host: str  # "hub" or "storage"
    method: str
    path: str  # with the query, as it was sent
    headers: dict[str, str]  # names in lower case
    body: bytes = b""  # as far as it was read
    status: int = 0  # 0 if nothing was answered

    @property
    def size(self) -> int:
        return len(self.body)

    @property
    def token(self) -> str | None:
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme == "Bearer" else None


@dataclass
class Answer:
    """What the Hub has to say to a request."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Wire(Protocol):
    """The connection, as an action sees it."""

    stopped: threading.Event
    request: Request
    length: int  # of the request's body

    def read_body(self, count: int) -> None:
        """Read so much more of the request's body."""

    def encode(self, answer: Answer) -> bytes:
        """Return all bytes of an answer, as they'd be sent."""

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""

    def drop(self, *, reset: bool) -> Any:
        """End the connection, by an exception: with a reset, or as if all were well."""

    def has_gone(self) -> bool:
        """Whether the client closed its side."""


class Action:
    """Does nothing at any moment."""

    def on_head(self, wire: Wire) -> None:
        """Step in before the request's body is read."""

    def on_body(self, wire: Wire) -> Answer | None:
        """Step in before the work, or answer in its place."""
        return None

    def on_answer(self, wire: Wire, answer: Answer) -> None:
        """Step in before the answer is sent."""


@dataclass
class Rule:
    """What happens to which requests.

    The first rule that matches a request and isn't used up decides; those after it don't see it.
    """

    actions: tuple[Action, ...]
    method: str = ""
    path: str = ""  # a regular expression, for a part of the path with its query
    host: str = ""  # "hub", "storage" or both
    times: int = 1
    after: int = 0  # so many matching requests are served properly first
    seen: int = 0  # matching requests so far

    def matches(self, request: Request) -> bool:
        if self.method not in ("", request.method) or self.host not in ("", request.host):
            return False
        return re.search(self.path, request.path) is not None

    def applies(self, request: Request) -> bool:
        """Whether this rule decides about a request, which it counts."""
        if not self.matches(request):
            return False
        self.seen += 1
        return self.after < self.seen <= self.after + self.times


@dataclass(frozen=True)
class Status(Action):
    """Answers so instead of doing the work."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": "by order of the test"}'

    def on_body(self, wire: Wire) -> Answer:
        return Answer(self.status, dict(self.headers), self.body)


@dataclass(frozen=True)
class Drop(Action):
    """Ends the connection without an answer.

    Args:
        when: Before the body, in its middle, after it, or with the work done.
        bytes: How much of the body is read for ``middle``; half of it if not given.
        reset: Else the connection is closed in order.
    """

    when: Literal["before", "middle", "after", "done"]
    bytes: int | None = None
    reset: bool = True

    def on_head(self, wire: Wire) -> None:
        if self.when == "middle":
            wire.read_body(wire.length // 2 if self.bytes is None else self.bytes)
        if self.when in ("before", "middle"):
            wire.drop(reset=self.reset)

    def on_body(self, wire: Wire) -> None:
        if self.when == "after":
            wire.drop(reset=self.reset)

    def on_answer(self, wire: Wire, answer: Answer) -> None:
        if self.when == "done":
            wire.drop(reset=self.reset)


@dataclass(frozen=True)
class Cut(Action):
    """Does the work, and ends the connection after so many bytes of the answer's body."""

    bytes: int
    reset: bool = False

    def on_answer(self, wire: Wire, answer: Answer) -> None:
        wire.request.status = answer.status
        data = wire.encode(answer)
        wire.send(data[: len(data) - len(answer.body) + self.bytes])
        wire.drop(reset=self.reset)


@dataclass(frozen=True)
class Garbage(Action):
    """Sends something that isn't HTTP instead of doing the work."""

    data: bytes = b"\x15\x03\x01\x00\x02\x02\x46" * 40

    def on_body(self, wire: Wire) -> None:
        wire.send(self.data)
        wire.drop(reset=False)


@dataclass(frozen=True)
class Hang(Action):
    """Never answers, until the Hub stops, the client goes away or ``release`` is set."""

    when: Literal["after", "done"] = "after"  # of the body, with or without the work
    release: threading.Event = field(default_factory=threading.Event)

    def on_body(self, wire: Wire) -> None:
        if self.when == "after":
            self._wait(wire)

    def on_answer(self, wire: Wire, answer: Answer) -> None:
        if self.when == "done":
            self._wait(wire)

    def _wait(self, wire: Wire) -> None:
        while not (self.release.wait(0.02) or wire.has_gone()):  # as it has once the Hub stops
            pass
        wire.drop(reset=False)


@dataclass(frozen=True)
class Trickle(Action):
    """Does the work, and sends the answer byte by byte, from the status line on."""

    seconds: float = 1.0

    def on_answer(self, wire: Wire, answer: Answer) -> None:
        wire.request.status = answer.status
        for byte in wire.encode(answer):
            wire.send(bytes([byte]))
            if wire.stopped.wait(self.seconds):
                break
        wire.drop(reset=False)


@dataclass(frozen=True)
class Call(Action):
    """Calls functions of the test, before or after the work, which is done as always."""

    before: Callable[[], object] = lambda: None
    after: Callable[[], object] = lambda: None

    def on_body(self, wire: Wire) -> None:
        self.before()

    def on_answer(self, wire: Wire, answer: Answer) -> None:
        self.after()
