"""Suggestions for the name of a file that does not exist."""

from __future__ import annotations

import os
from pathlib import Path

_MOST = 10_000  # names of a folder that are looked at


def suggest_path(path: Path) -> str | None:
    """Give a hint with the name in the same folder that is most like a missing one; else None.

    Example:
        >>> suggest_path(Path("fixtures/tiny-kl.ckp"))
        'did you mean fixtures/tiny-kl.ckpt?'
    """
    from difflib import get_close_matches
    from itertools import islice

    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, _MOST)]
    except (OSError, ValueError):
        return None
    near = get_close_matches(path.name, sorted(names), 1, 0.8)
    return f"did you mean {path.with_name(near[0])}?" if near else None
