"""The command line: one module per command, and one place where errors become text."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from vaeconv._version import __version__
from vaeconv.cli.render import print_error, print_json
from vaeconv.errors import UsageError, VaeconvError

# The parser's own errors; Typer vendors its parser and exports only this leaf of the tree.
_ParserError: type[Exception] = typer.BadParameter.__mro__[2]


class _Stopped(BaseException):
    """The run was stopped from outside; raised, so that temporary files are removed."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


_INTERRUPTED = 130, "interrupted; nothing was left behind"
_TERMINATED = 143, "terminated; nothing was left behind"
COMMANDS = (
    "inspect", "convert", "prune", "verify", "latents", "eval", "compare", "card", "push",
    "release", "verify-signature",
)  # fmt: skip
_BROKEN_PIPE = (141,)  # who read the output has gone, and would not read a message either


class Commands(TyperGroup):
    """Runs a command and turns whatever it raises into one line and an exit code.

    A command's options are made when it is asked for: those of all commands take longer than
    most of them take to run.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Name the commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Make a command from the function of its name in the module of its name."""
        if cmd_name not in COMMANDS:
            return None
        single = typer.Typer(add_completion=False)
        name = cmd_name.replace("-", "_")
        single.command(cmd_name)(getattr(import_module(f"vaeconv.cli.{name}"), name))
        return typer.main.get_command(single)

    def invoke(self, ctx: Any) -> Any:
        """Run, and say of a stop what it is: Typer would end without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Stopped(*_INTERRUPTED) from error
        except BrokenPipeError as error:
            raise _Stopped(*_BROKEN_PIPE) from error

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> NoReturn:
        """Run and exit."""
        given = list(sys.argv[1:] if args is None else args)
        options["standalone_mode"] = False
        sys.exit(_guarded(lambda: super(Commands, self).main(given, *rest, **options), given))


def _guarded(run: Any, args: list[str]) -> int:
    is_json, is_verbose = "--json" in args, bool({"--verbose", "-v"} & set(args))
    command = next((arg for arg in args if not arg.startswith("-")), "")
    try:
        return run() or 0
    except VaeconvError as error:
        failure = error
    except _ParserError as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        if not message:  # no arguments: the help was printed
            return UsageError.exit_code
        failure = UsageError(message.rstrip(".").replace("\n", " "), hint=_where_to_look(command))
    except _Stopped as stop:
        if stop.message:
            print_error(stop.message)
        return stop.code
    except MemoryError:
        failure = VaeconvError("out of memory")
    except Exception as error:  # noqa: BLE001 - a bug: said in one line, traced on request
        failure = VaeconvError(
            f"internal error: {type(error).__name__}: {error}",
            hint="please report it with the output of --verbose",
        )
        failure.__cause__ = error
    if is_verbose:
        import traceback

        traceback.print_exception(failure)
    if is_json:
        if not failure.is_reported:
            print_json(command, {}, failure)
    else:
        print_error(str(failure), failure.details)
    return failure.exit_code


def _where_to_look(command: str) -> str:
    if command in COMMANDS:
        return f"see vaeconv {command} --help"
    from difflib import get_close_matches

    meant = get_close_matches(command, COMMANDS, 1)
    return f"did you mean {meant[0]}?" if meant else "see vaeconv --help"


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vaeconv {__version__}")
        raise typer.Exit


@app.callback()
def vaeconv(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Take a Stable Diffusion autoencoder from a training checkpoint to a published repository.

    Right to the bit, as fast as cp, safe on files from strangers.

    Exit codes: 0 done, 1 internal error, 2 wrong usage, 3 bad or unsafe input, 4 a check failed,
    5 output exists or cannot be written, 6 Hub or network, 7 something optional is missing,
    130 interrupted.
    """


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Stopped(*_TERMINATED)


def main() -> None:
    """Run the command line."""
    # One short run makes no garbage worth collecting, and the system frees memory faster than
    # the interpreter does on its way out: together a fifth of the start-up time.
    gc.disable()
    signal.signal(signal.SIGTERM, _terminate)
    code = 1
    try:
        app(prog_name="vaeconv")
    except SystemExit as exit_request:
        code = exit_request.code if isinstance(exit_request.code, int) else 1
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
