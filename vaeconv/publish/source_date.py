"""The one date that may stand in what is published: the one that the builder gives."""

from __future__ import annotations

import os
import re
from datetime import datetime, timezone

from vaeconv.errors import UsageError

_VARIABLE = "SOURCE_DATE_EPOCH"


def source_date() -> datetime | None:
    """Read ``SOURCE_DATE_EPOCH`` (https://reproducible-builds.org/specs/source-date-epoch/).

    Returns:
        The time in UTC; None where it is not set. The clock is never asked: the same inputs give
        the same bytes.

    Raises:
        UsageError: It is not a number of seconds.
    """
    text = os.environ.get(_VARIABLE, "")
    if not text:
        return None
    try:
        if not re.fullmatch(r"[0-9]+", text):  # int() takes more, such as 1_000
            raise ValueError
        return datetime.fromtimestamp(int(text), timezone.utc)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"{_VARIABLE} is not a number of seconds since 1970: {text!r}") from error
