"""Refill the outputs that README.md shows, by running its commands.

``make reference`` runs it, and a test tells where it was forgotten.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "README.md"
_ENTRY = Path(sys.executable).with_name("vaeconv")
_BLOCK = re.compile(r"```console\n\$ (vaeconv .*)\n(?:.*\n)*?```")


def refill(text: str) -> str:
    """Run every command of a page in one folder, in their order, and show what each prints."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "fixtures", Path(folder, "fixtures"))

        def run(block: re.Match[str]) -> str:
            command = block[1]
            done = subprocess.run(
                [_ENTRY, *shlex.split(command)[1:]],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=True,
                env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
            )
            return f"```console\n$ {command}\n{done.stdout.rstrip()}\n```"

        return _BLOCK.sub(run, text)


if __name__ == "__main__":
    TARGET.write_text(refill(TARGET.read_text(encoding="utf-8")), encoding="utf-8")
