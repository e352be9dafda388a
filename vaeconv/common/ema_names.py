"""Names of state dicts whose weights are averages (EMA or SWA)."""

from __future__ import annotations

import re

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_AVERAGE = frozenset(
    {"ema", "emamodel", "modelema", "swa", "average", "averaged", "averaging", "shadow", "polyak"}
)
# ``online_model`` lies inside an ``ema`` of ema_pytorch, and is the raw model all the same.
_RAW = frozenset({"online", "current", "raw"})


def names_ema(path: str) -> bool:
    """Tell by the keys that lead to a state dict; the innermost that says anything decides.

    >>> names_ema("callbacks.EMA.state_dict"), names_ema("ema.online_model.")
    (True, False)
    """
    for component in reversed(path.split(".")):
        words = {word.lower() for word in _WORDS.findall(component)}
        if words & _RAW:
            return False
        if words & _AVERAGE:
            return True
    return False
