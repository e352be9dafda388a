"""Where a command's result goes: the one place that knows text, ``--json`` and ``--quiet``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple

from vaeconv.cli.progress import ByteProgress, StepProgress
from vaeconv.cli.render import print_json, print_notes
from vaeconv.errors import VaeconvError, one_line
from vaeconv.option_docs import Doc


class Sink(NamedTuple):
    """How much a command says, and to whom.

    Attributes:
        json: To a program: one document on stdout.
        quiet: Errors only.
        verbose: More than usual.
    """

    json: Annotated[bool, Doc("Print one JSON document on stdout.")] = False
    quiet: Annotated[bool, Doc("Print errors only.", flags=("--quiet", "-q"))] = False
    verbose: Annotated[
        bool,
        Doc("Print details; with an error, also the traceback.", flags=("--verbose", "-v")),
    ] = False

    @property
    def is_shown(self) -> bool:
        """Whether text for people is wanted, and progress."""
        return not (self.json or self.quiet)

    def progress(self, what: str) -> ByteProgress:
        """Show how many bytes are done, where people look."""
        return ByteProgress(what, enabled=self.is_shown)

    def steps(self) -> StepProgress:
        """Show what is being done, where people look."""
        return StepProgress(enabled=self.is_shown)

    def show(
        self,
        command: str,
        document: Callable[[], Mapping[str, Any]],
        text: Callable[[], Iterable[str] | None],
        *,
        notes: Iterable[str] = (),
        failure: VaeconvError | None = None,
    ) -> None:
        """Print a result: notes on stderr, lines on stdout, or the document.

        Args:
            command: Which it is of.
            document: Makes its facts for machines.
            text: Makes its lines for people, or draws them.
            notes: What the user should know beside it.
            failure: Raised when all is printed.
        """
        if self.json:
            print_json(command, dict(document()), failure)
        elif not self.quiet:
            print_notes(notes)
            sys.stdout.writelines(one_line(line) + "\n" for line in text() or ())
            sys.stdout.flush()
        if failure:
            failure.is_reported = self.json
            raise failure
