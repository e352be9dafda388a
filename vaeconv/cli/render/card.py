"""A card and its problems, as text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from vaeconv.cli.output import Sink
from vaeconv.errors import CheckFailedError, counted, printable


def card_lines(text: str, written: Sequence[Path], *, shown: bool, dry_run: bool) -> list[str]:
    """Print a card where that was asked for, and name the files that were written."""
    shown_text = printable(text, keep="\t\n")
    if shown:
        _print_markdown(shown_text.split("\n---\n", 1)[-1])
    elif dry_run:
        sys.stdout.write(shown_text)
    return [f"wrote {path}" for path in written]


def _print_markdown(text: str) -> None:
    from rich.console import Console
    from rich.markdown import Markdown, TableDataElement

    class Cell(TableDataElement):
        """A cell of which nothing is cut: a hash goes on in the next line."""

        def __init__(self, justify: Any) -> None:
            super().__init__(justify)
            self.content.overflow = "fold"

    class Card(Markdown):
        elements: ClassVar = {**Markdown.elements, "td_open": Cell, "th_open": Cell}

    Console().print(Card(text))


def card_document(
    folder: Path, text: str, written: Sequence[Path], problems: Sequence[str], *, dry_run: bool
) -> dict[str, Any]:
    """Describe a card for machines."""
    return {
        "path": str(folder / "README.md"),
        "written": [str(path) for path in written],
        "dry_run": dry_run,
        "text": text,
        "problems": list(problems),
    }


def show_check(folder: Path, problems: Sequence[str], sink: Sink) -> None:
    """Print what is wrong with a card; the end is an error where something is."""
    failure, lines = None, [f"{folder / 'README.md'} has no problems"]
    if problems:
        what, details = counted("the card has problems", problems)
        failure = CheckFailedError(
            what,
            where=str(folder / "README.md"),
            hint="fix it, or write it again with vaeconv card --meta FILE.toml",
            details=() if sink.is_shown else details,  # else the lines list them
        )
        lines = [f"  {problem}" for problem in problems]
    sink.show("card", lambda: {"problems": problems}, lambda: lines, failure=failure)
