"""Draws what ``vaeconv inspect`` prints: ``python docs/make_picture.py CHECKPOINT PICTURE``.

The picture comes from the command's own renderer, so it can't show what the command doesn't.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from vaeconv.cli.render.inspect import inspection_lines
from vaeconv.cli.screen import fitted
from vaeconv.weights.inspect import inspect
from vaeconv.weights.options import InspectOptions

WIDTH = 100
# rich links to a font on the web; a picture in a README should load nothing.
FONT_FACE = re.compile(r"@font-face\s*\{.*?\}\s*", re.DOTALL)


def draw(checkpoint: Path) -> str:
    """Returns the SVG of ``vaeconv inspect CHECKPOINT``."""
    console = Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    command = f"vaeconv inspect {checkpoint.as_posix()}"
    console.print(Text.assemble(("$ ", "dim"), (command, "bold")))
    report = inspect(checkpoint.as_posix(), InspectOptions())
    for line in fitted(inspection_lines(report, keys=False, verbose=False), console.file):
        console.print(Text(line))
    # A fixed id keeps the file the same from one drawing to the next.
    svg = console.export_svg(title="vaeconv inspect", unique_id="inspect")
    return FONT_FACE.sub("", svg)


def main(checkpoint: str, picture: str) -> None:
    """Writes the picture."""
    Path(picture).write_text(draw(Path(checkpoint)), encoding="utf-8")
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
