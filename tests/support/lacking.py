"""What tests themselves ask for that only POSIX has: where it is not there, they are skipped."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_STAND_IN = _ROOT / "tests" / "support" / "processor"
_MODULES = frozenset({"fcntl", "grp", "pty", "pwd", "resource", "termios"})
_PARTLY = frozenset({"os", "signal", "time"})  # modules of which Windows has the greater part

IS_POSIX = hasattr(os, "O_DIRECTORY")  # what is open can be renamed and removed, and so be a folder
names_are_bytes = pytest.mark.skipif(not IS_POSIX, reason="names of files are text here, not bytes")
open_can_be_replaced = pytest.mark.skipif(
    not IS_POSIX, reason="what is open cannot be replaced here"
)
needs_no_root = pytest.mark.skipif(
    getattr(os, "geteuid", int)() == 0, reason="whoever runs this may write and read everything"
)


def skipping_what_is_lacking() -> Iterator[None]:
    """Skip the test that runs meanwhile where it asks for what is not there."""
    try:
        yield
    except (AttributeError, ModuleNotFoundError, OSError) as error:
        if what := _lacks(error):
            pytest.skip(f"needs {what}, which is not here")
        raise


def _lacks(error: AttributeError | ModuleNotFoundError | OSError) -> str | None:
    """Say what a test asked for; None where vaeconv did, or something else went wrong."""
    files = [Path(one.f_code.co_filename) for one, _ in traceback.walk_tb(error.__traceback__)]
    ours = [
        file.is_relative_to(_ROOT / "tests")
        for file in files
        if file.is_relative_to(_ROOT)
        and not file.is_relative_to(_STAND_IN)
        and ".venv" not in file.parts
    ]
    if not ours or not ours[-1]:
        return None
    if isinstance(error, AttributeError):
        module = getattr(error.obj, "__name__", "")
        return f"{module}.{error.name}" if module in _PARTLY else None
    if isinstance(error, ModuleNotFoundError):
        return error.name if error.name in _MODULES else None
    return "the right to make symbolic links" if "privilege" in str(error) else None
