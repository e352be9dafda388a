"""The commands, and the one place where errors become text."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from vaeconv._version import __version__
from vaeconv.cli.help import Command, write_part
from vaeconv.cli.streams import BROKEN_PIPE, STDOUT, ReaderGone
from vaeconv.errors import UsageError, VaeconvError

# What each command does, as its own help begins: the help of all is shown without their modules.
COMMANDS = {
    "inspect": "Say what is in a checkpoint: layout, family, config, EMA, and what else.",
    "convert": "Convert an autoencoder: CompVis checkpoint to diffusers folder, or back.",
    "prune": "Write a checkpoint again with only what inference needs, in fp16.",
    "verify": "Prove that two files hold the same autoencoder; end with exit code 4 where they do "
    "not.",
    "latents": "Encode images to a file of reference latents, for verify --latents.",
    "finetune": "Train an autoencoder's decoder on images; the encoder stays as it is, to the bit.",
    "eval": "Reconstruct images and measure: rFID, PSNR, SSIM, PSIM and LPIPS of each model.",
    "compare": "Put reconstructions side by side: candidates first, the original last.",
    "card": "Write the model card of a release from what the other commands reported.",
    "push": "Publish a folder on the Hub as one commit, after checking that it may be.",
    "release": "Make a release: convert, prune, verify, eval, compare, card, push.",
    "completion": "Print the script that completes commands, options and values in a shell.",
    "verify-signature": "Check that a folder is what its publisher signed; end with exit code 4 "
    "where it is not.",
}
# One file in, one file out: they end before there is garbage worth collecting.
_SHORT = ("inspect", "convert")
_LEAST_WIDTH = 20  # columns
_MAY_BE_EMPTY = ("--source-prefix",)  # no prefix is one, too


class Commands(TyperGroup):
    """Runs a command and turns whatever it raises into one line and an exit code.

    A command's options are made when it is asked for: those of all commands take longer than
    most of them take to run.
    """

    _is_resolving = False

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that is to run."""
        self._is_resolving = True
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """Name the commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Make a command from the function of its name in the module of its name.

        Only one that is to run is made whole: the help of all needs no more than a line of each.
        """
        if cmd_name not in COMMANDS:
            return None
        if ctx is not None and not self._is_resolving:
            return Command(cmd_name, help=COMMANDS[cmd_name])
        if cmd_name not in _SHORT:
            gc.enable()
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        name = cmd_name.replace("-", "_")
        function = getattr(import_module(f"vaeconv.cli.commands.{name}"), name)
        single.command(cmd_name, cls=Command)(function)
        return typer.main.get_command(single)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, each with all that is said of it."""
        write_part(formatter, "Commands", COMMANDS.items())

    def invoke(self, ctx: Any) -> Any:
        """Run, and say of a stop what it is: Typer would end without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _print_error("interrupted; nothing is left half-written")
            return 130
        except BrokenPipeError:
            return BROKEN_PIPE

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> NoReturn:
        """Run and exit; without arguments, show the help."""
        given = list(sys.argv[1:] if args is None else args)
        _forget_odd_width()
        options["standalone_mode"] = False

        def run() -> int:
            _check_no_empty(given)
            code = super(Commands, self).main(given or ["--help"], *rest, **options)
            return code or (0 if given else UsageError.exit_code)

        sys.exit(_guarded(run, given))


def _forget_odd_width() -> None:
    """Let a width that no terminal has be none: the help's own library would take it."""
    said = os.environ.get("COLUMNS", "")
    if said and not (said.isdecimal() and len(said) < 5 and int(said) >= _LEAST_WIDTH):
        del os.environ["COLUMNS"]


def _check_no_empty(args: Sequence[str]) -> None:
    """Refuse empty arguments: a path of no characters would be the current folder."""
    for before, arg in zip(("", *args), args, strict=False):
        option = arg[:-1] if arg.startswith("--") and arg.find("=") == len(arg) - 1 else ""
        if not arg and before.startswith("-"):
            option = before
        if (option or not arg) and option not in _MAY_BE_EMPTY:
            raise UsageError(
                f"an empty value for {option}" if option else "an empty name",
                hint="is a variable of the shell not set?",
            )


def _guarded(run: Callable[[], int], args: list[str]) -> int:
    """Run, and make an exit code of whatever is raised; it is said in one line or a document."""
    command = next((arg for arg in args if not arg.startswith("-")), "")
    try:
        return run()
    except ReaderGone:
        return BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - a bug: said in one line, traced on request
        failure = _translated(error, command, args)
    if {"--verbose", "-v"} & set(args):
        import traceback

        with suppress(OSError):
            traceback.print_exception(failure)
    try:
        if "--json" in args and failure.where != STDOUT:
            if not failure.is_reported:
                from vaeconv.cli.output import print_json

                print_json(command, {}, failure)
            return failure.exit_code
    except (ReaderGone, BrokenPipeError):
        return BROKEN_PIPE
    except VaeconvError:  # no room for it: then the line for people is better than nothing
        pass
    _print_error(failure.text, failure.details)
    return failure.exit_code


def _print_error(text: str, details: Sequence[str] = ()) -> None:
    from vaeconv.cli.output import print_error

    print_error(text, details)


def _translated(error: Exception, command: str, args: Sequence[str]) -> VaeconvError:
    """Turn an error that is not of our own into one."""
    if isinstance(error, VaeconvError):
        return error
    # The parser's own errors: Typer vendors its parser, and they are known by how they are shown.
    if hasattr(error, "format_message"):
        what = " ".join(error.format_message().rstrip(".").split())
        return UsageError(what, hint=_where_to_look(command, args))
    if isinstance(error, MemoryError):
        return VaeconvError("out of memory")
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return VaeconvError("out of memory", hint="try --batch-size 1 or --device cpu")
    if isinstance(error, FileNotFoundError) and not _has_folder():
        return UsageError("the current folder is gone", hint="change to one that is there")
    failure = VaeconvError(
        f"internal error: {type(error).__name__}: {error}",
        hint="please report it with the output of --verbose",
    )
    failure.__cause__ = error
    return failure


def _has_folder() -> bool:
    try:
        return bool(os.getcwd())  # noqa: PTH109 - Path's own would be made of it
    except OSError:
        return False


def _where_to_look(command: str, args: Sequence[str]) -> str:
    before = args[: args.index(command)] if command else []
    if command in COMMANDS and before:
        return f"options come after the command: vaeconv {command} {' '.join(before)} …"
    if command in COMMANDS:
        return f"see vaeconv {command} --help"
    from difflib import get_close_matches

    meant = get_close_matches(command, list(COMMANDS), 1)
    return f"did you mean {meant[0]}?" if meant else "see vaeconv --help"


app = typer.Typer(
    cls=Commands,
    add_completion=True,
    rich_markup_mode=None,
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
            "--version", "-V", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Take a Stable Diffusion autoencoder from a training checkpoint to a published repository.

    Right to the bit, quick, safe on files from strangers.

    Exit codes: 0 done, 1 internal error, 2 wrong usage, 3 bad or unsafe input, 4 a check failed,
    5 output exists or cannot be written, 6 Hub or network, 7 something optional is missing,
    130 interrupted, 141 nobody reads the output, 143 terminated.
    """
