"""Output of a command's result: the one place that knows text, ``--json`` and ``--quiet``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Annotated, Any, NamedTuple

from vaeconv.cli.following import NOTHING, Words
from vaeconv.cli.progress import ByteProgress, StepProgress
from vaeconv.cli.screen import Line, Style, Styled, fitted
from vaeconv.common.json_text import dump_json
from vaeconv.common.notes import Level, Note
from vaeconv.common.option_docs import Doc
from vaeconv.errors import VaeconvError, one_line

SCHEMA_VERSION = 1
_OF_LEVEL = {Level.NOTE: Style.STRONG, Level.WARNING: Style.DOUBTFUL}


def print_json(
    command: str, document: Mapping[str, Any], error: VaeconvError | None = None
) -> None:
    """Write one JSON document straight to stdout, untouched by any console."""
    envelope: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "ok": error is None,
        **document,
    }
    if error is not None:
        envelope["error"] = describe_error(error)
    sys.stdout.write(dump_json(envelope) + "\n")
    sys.stdout.flush()


def describe_error(error: VaeconvError) -> dict[str, Any]:
    """Give an error's facts."""
    return {
        "type": type(error).__name__,
        "exit_code": error.exit_code,
        "message": error.text,
        "what": one_line(error.what),
        "where": error.where and one_line(error.where),
        "hint": error.hint,
        **({"details": list(error.details)} if error.details else {}),
    }


def print_error(text: str, details: Iterable[str] = ()) -> None:
    """Write one error line to stderr, where that can be written, and one for each detail."""
    first = Styled(f"error: {text}", Style.BAD, len("error:"))
    with suppress(OSError):
        _write_stderr([first, *(f"  - {detail}" for detail in details)])


def print_notes(notes: Iterable[Note | str]) -> None:
    """Write notes and warnings to stderr, a paragraph each."""
    _write_stderr(
        Styled(str(one), _OF_LEVEL[one.level], len(one.level.value) + 1)
        if isinstance(one, Note)
        else one
        for one in notes
    )


def _write_stderr(lines: Iterable[Line]) -> None:
    """Write lines; where there is no room for them, the work goes on."""
    try:
        sys.stderr.writelines(line + "\n" for line in fitted(lines, sys.stderr))
        sys.stderr.flush()
    except BrokenPipeError:
        raise
    except OSError:
        pass


class Sink(NamedTuple):
    """Output of one command, as text or as JSON, in the amount that its options ask for.

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
        """True if text for people is wanted, and progress."""
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
        text: Callable[[], Iterable[Line] | None],
        *,
        notes: Iterable[Note | str] = (),
        failure: VaeconvError | None = None,
        then: Words = NOTHING,
    ) -> None:
        """Print a result: lines on stdout, then notes on stderr; or the document.

        Args:
            command: Which it is of.
            document: Makes its facts for machines.
            text: Makes its lines for people, or prints them itself.
            notes: What the user should know beside it.
            failure: Raised when all is printed.
            then: The command that usually follows; told on a terminal.
        """
        if self.json:
            print_json(command, dict(document()), failure)
        elif not self.quiet:
            sys.stdout.writelines(line + "\n" for line in fitted(text() or (), sys.stdout))
            sys.stdout.flush()
            print_notes(notes)
            if then and not failure and sys.stderr.isatty():
                words = shlex.join(map(str, ("vaeconv", *then)))
                _write_stderr([Styled(f"next: {words}", Style.STRONG, 5, is_whole=True)])
        if failure:
            failure.is_reported = self.json
            raise failure
