"""The ``model_ema.*`` entries that LitEma leaves in a training checkpoint (ldm/modules/ema.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

PREFIX = "model_ema."


def ema_name(name: str) -> str:
    """Returns the name of a parameter's shadow: all dots go, and nothing takes their place."""
    return PREFIX + name.replace(".", "")


def make_ema(
    parameters: Mapping[str, Tensor],
    shadow: Callable[[str, Tensor], Tensor],
    *,
    trained: Sequence[str] = ("",),
    num_updates: int = 50_000,
    decay: float = 0.9999,
) -> dict[str, Tensor]:
    """Builds the entries for the parameters that were trained, counters first.

    Args:
        parameters: Name -> raw weight; LitEma sees parameters only, so leave buffers out.
        shadow: Makes the average of the parameter with this name and raw weight.
        trained: Prefixes of the names that have a shadow; the rest was frozen.
        num_updates: Steps that went in; -1 says that warm-up was off.
        decay: The share of the old average that a step keeps.

    Raises:
        ValueError: Two parameters would share a shadow's name.
    """
    entries = {
        f"{PREFIX}decay": torch.tensor(decay, dtype=torch.float32),
        f"{PREFIX}num_updates": torch.tensor(num_updates, dtype=torch.int32),
    }
    for name, raw in parameters.items():
        if not name.startswith(tuple(trained)):
            continue
        if ema_name(name) in entries:
            raise ValueError(f"{name}: another parameter is called {ema_name(name)} too")
        entries[ema_name(name)] = shadow(name, raw)
    return entries
