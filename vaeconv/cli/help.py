"""Help of commands, at any width: options by their part, names whole, examples last."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand

from vaeconv.cli.screen import has_colours, wrap

EXAMPLES = "Examples:\n\n"
_BOUND = re.compile(r"\bx>=(?=[\d.]+\]$)")
_WIDEST = 24  # columns of names; what stands behind a longer one begins in the next line


class Command(TyperCommand):
    """A command whose help is plain text: in a table of a fixed form, names would be cut."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Name the arguments, in brackets those that can be left out."""
        arguments = (one for one in self.params if one.param_type_name == "argument")
        names = ((one.metavar or str(one.name).upper(), one.required) for one in arguments)
        return [
            "[OPTIONS]",
            *(name if required or name[0] == "[" else f"[{name}]" for name, required in names),
        ]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write what the command does."""
        text = inspect.cleandoc(self.help or "").partition(EXAMPLES)[0]
        for paragraph in filter(None, text.split("\n\n")):
            formatter.write("\n")
            for line in wrap(f"  {' '.join(paragraph.split())}", formatter.width, hang=0):
                formatter.write(f"{line}\n")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, those of each part together."""
        parts: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            is_argument = parameter.param_type_name == "argument"
            panel = getattr(parameter, "rich_help_panel", None)
            part = "Arguments" if is_argument else panel or "Options"
            record = parameter.get_help_record(ctx)
            if record:
                parts.setdefault(part, []).append(record)
        for part, records in parts.items():
            write_part(formatter, part, records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, each in one line, so that it can be copied."""
        examples = inspect.cleandoc(self.help or "").partition(EXAMPLES)[2]
        if examples:
            formatter.write(_heading("Examples"))
            for example in examples.split("\n\n"):
                formatter.write(f"  {' '.join(example.split())}\n")


def write_part(formatter: Any, heading: str, records: Iterable[tuple[str, str]]) -> None:
    """Write names and what they mean, in two columns."""
    told = [
        (name.removeprefix(" / "), _BOUND.sub("at least ", " ".join(text.split())))
        for name, text in records
    ]
    column = max(len(name) for name, _ in told if len(name) <= _WIDEST or len(told) == 1)
    formatter.write(_heading(heading))
    for name, text in told:
        first, *more = wrap(text, formatter.width - column - 4, hang=0)
        if len(name) > column:
            formatter.write(f"  {name}\n")
            name = ""
        formatter.write(f"  {name:{column}}  {first}\n")
        formatter.write("".join(f"  {'':{column}}  {line}\n" for line in more))


def _heading(text: str) -> str:
    """Set a heading off where the terminal has colours."""
    return f"\n\033[1m{text}:\033[0m\n" if has_colours(sys.stdout) else f"\n{text}:\n"
