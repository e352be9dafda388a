"""Lines on the files that commands which read images did not use."""

from __future__ import annotations

from collections.abc import Sequence

from vaeconv.common.notes import Note, note
from vaeconv.models.images import LeftOut, count_left_out


def left_out_notes(left_out: Sequence[LeftOut], *, verbose: bool) -> list[Note]:
    """Say how many files were not used, and with ``verbose`` which."""
    if not left_out:
        return []
    named = [note(f"{one.name}: {one.reason}") for one in left_out] if verbose else []
    hint = "" if verbose else " (--verbose names them)"
    return [note(f"{count_left_out(left_out)}{hint}"), *named]
