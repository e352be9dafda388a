"""Marks for parameters of tests that are left to ``make test-all``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial
from typing import Any

import pytest

slow_row = partial(pytest.param, marks=pytest.mark.slow)


def some_slow(rows: Iterable[Any], slow: Collection[Any]) -> list[Any]:
    """Mark the slow ones of a test's generated parameters.

    Args:
        rows: All parameters; tuples where the test takes several at once.
        slow: Those of them to mark.

    Raises:
        ValueError: One to mark is not there (any more).
    """
    rows = list(rows)
    if unknown := [row for row in slow if row not in rows]:
        raise ValueError(f"marked as slow, but no parameter of the test: {unknown}")
    return [
        row if row not in slow else slow_row(*row) if isinstance(row, tuple) else slow_row(row)
        for row in rows
    ]
