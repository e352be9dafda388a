"""A card's table on the training, from the checkpoint of a run of ``vaeconv finetune``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_WORD = re.compile(r"[\w-]+")
_PIXELS = {"l1": "L1", "mse": "MSE"}


def training_facts(run: Mapping[str, Any], *, ema: bool) -> dict[str, str]:
    """Write a run's facts for people.

    Args:
        run: As :attr:`~vaeconv.checkpoint.types.Checkpoint.run_facts` has them.
        ema: Whether the EMA weights are released.

    Returns:
        Names and values, in the order of the table; empty where there was no such run, or where
        some of it is missing.

    Example:
        >>> training_facts({}, ema=True)
        {}
    """
    try:
        return _table(run, ema=ema)
    except (KeyError, ValueError, OverflowError):  # a file may say what it likes
        return {}


def _table(run: Mapping[str, Any], *, ema: bool) -> dict[str, str]:
    if not all(_WORD.fullmatch(str(run[name])) for name in ("recipe", "pixel", "crop")):
        return {}
    weight = run.get("adversarial")
    loss = f"{_PIXELS.get(run['pixel'], run['pixel'])} + {run['lpips']:g} LPIPS"
    adversarial = f", adversarial loss of weight {weight:g}" if weight else ""
    start = " (EMA weights)" if run.get("ema") else ""
    decay = f"EMA, decay {run['ema_decay']:g}" if ema else "of the last step"
    return {
        "Base": f"{_quoted(run['base_name'])}{start}",
        "Trained": "decoder and post_quant_conv",
        "Recipe": f"{run['recipe']}: {loss}{adversarial}",
        "Steps": f"{run['global_step']:,}",
        "Batch": f"{run['images_per_step']:,} images of {run['size']:d} pixels, {run['crop']} crop",
        "Images": f"{run['number_of_images']:,} of {_quoted(run['data_name'])}",
        "Learning rate": f"{run['lr']:g}",
        "Weights": decay,
    }


def _quoted(name: object) -> str:
    """Keep a name from a file from becoming markup."""
    return f"`{str(name).replace('`', chr(39))}`"
