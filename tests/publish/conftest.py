"""The Hub that the tests of publishing push to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.publish.pushes import Pushes, pushes_to, small_hub
from tests.support.loopback_hub import Hang, LoopbackHub


@pytest.fixture(scope="module")
def loopback() -> Iterator[LoopbackHub]:
    """Start a Hub, whose repositories all tests of a module share."""
    with small_hub() as hub:
        yield hub


@pytest.fixture
def pushes(loopback: LoopbackHub, tmp_path: Path) -> Iterator[Pushes]:
    """Let this process's client talk to the Hub, which has no rules and knows every request."""
    loopback.requests.clear()
    with pushes_to(loopback, tmp_path / "client") as found:
        yield found
    for rule in loopback.rules:
        for action in rule.actions:
            if isinstance(action, Hang):
                action.release.set()
    loopback.rules.clear()
    loopback.others.clear()
    assert loopback.unserved == []


@pytest.fixture
def hub(pushes: Pushes) -> LoopbackHub:
    """The Hub that this process's client talks to."""
    return pushes.hub
