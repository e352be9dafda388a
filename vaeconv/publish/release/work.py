"""Input and result of a release step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv.publish.hub.push import Pushed
from vaeconv.publish.release.project import Project


class Work(NamedTuple):
    """Input of a release step.

    Attributes:
        project: The release.
        is_forced: Whether it is to be done again, whatever is done.
        sign: A private key to sign with; None for no signature.
        on_progress: Called with what is being done, and how much of it is done of how much.
        retire: Removes what the step wrote before, but for the files that it is given.
    """

    project: Project
    is_forced: bool = False
    sign: Path | None = None
    on_progress: Callable[[str, int, int], None] | None = None
    retire: Callable[[Iterable[Path]], None] = lambda kept: None


class Outcome(NamedTuple):
    """Result of a release step.

    Attributes:
        outputs: The files that it wrote.
        facts: What there is to say of it.
        pushed: What was published.
    """

    outputs: Sequence[Path]
    facts: dict[str, Any]
    pushed: tuple[Pushed, ...] = ()
