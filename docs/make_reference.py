"""Write docs/cli.md, the reference of all commands, from what ``--help`` is made of.

``make reference`` runs it, and a test tells where it was forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from vaeconv.cli.group import COMMANDS, app

TARGET = Path(__file__).with_name("cli.md")
_EXAMPLES = "Examples:\n\n"
_HEAD = """# The commands

Every command with its arguments and options, as `vaeconv COMMAND --help` says it. `make reference`
writes this page.
"""


def make_reference() -> str:
    """Write the page."""
    group: Any = typer.main.get_command(app)
    parts = [_HEAD]
    for name in COMMANDS:
        parts += _command(name, group.get_command(None, name))
    return "\n".join(parts).rstrip() + "\n"


def examples_of(command: Any) -> list[str]:
    """Take the examples out of a command's help, each a line for a shell."""
    lines = command.help.partition(_EXAMPLES)[2].split("\n\n")
    return [" ".join(line.split()) for line in lines if line.strip()]


def _command(name: str, command: Any) -> Iterator[str]:
    yield f"## {name}\n"
    yield f"{command.help.partition(_EXAMPLES)[0].strip()}\n"
    yield "```bash\n" + "\n".join(examples_of(command))
    yield "```\n"
    panels: dict[str, list[Any]] = {}
    for parameter in command.params:
        is_argument = parameter.param_type_name == "argument"
        panel = "Arguments" if is_argument else parameter.rich_help_panel or "Options"
        panels.setdefault(panel, []).append(parameter)
    for panel, parameters in panels.items():
        yield f"| {panel} | | default |\n| --- | --- | --- |"
        yield from map(_row, parameters)
        yield ""


def _row(parameter: Any) -> str:
    default, shown = parameter.default, ""
    if parameter.required:
        shown = "must be given"
    elif getattr(parameter, "is_flag", False):  # a flag alone is off without it
        is_pair = parameter.opts and parameter.secondary_opts and default is not None
        shown = ("on" if default else "off") if is_pair else ""
    elif default not in (None, "", ()):
        shown = f"`{getattr(default, 'value', default)}`"
    return f"| `{_name(parameter)}` | {_cell(parameter.help)} | {shown} |"


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar)
    flags = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return f"{flags} {parameter.metavar}".replace("|", "\\|") if parameter.metavar else flags


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("\\[", "[").strip()


if __name__ == "__main__":
    TARGET.write_text(make_reference(), encoding="utf-8")
