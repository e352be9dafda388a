"""What to say of a moving average before it is used: whether it is one at all."""

from __future__ import annotations

from collections.abc import Mapping

from vaeconv.autoencoder.ema import WARM_UPDATES
from vaeconv.checkpoint.base import Checkpoint
from vaeconv.checkpoint.tensor import Tensor
from vaeconv.errors import EmaError, UnmappedKeysError
from vaeconv.survey import Survey, read_ema_facts, same_values


def check_average(checkpoint: Checkpoint, shadows: Mapping[str, str], prefix: str) -> list[str]:
    """Look whether an average was ever updated, and whether it differs from the raw weights.

    Args:
        checkpoint: The open checkpoint.
        shadows: Key of each averaged parameter, and that of its shadow; not empty.
        prefix: The autoencoder's prefix; a nested average lies under it.

    Returns:
        Warnings.
    """
    warnings: list[str] = []
    updates, _ = read_ema_facts(checkpoint, prefix)
    if updates is not None and updates < WARM_UPDATES:
        meaning = {0: "was never updated", -1: "had its warm-up off, so its random start may show"}
        said = meaning.get(updates, f"was updated only {updates} times")
        warnings.append(f"warning: the EMA {said} (num_updates {updates})")
    tensors = checkpoint.tensors
    if all(same_values(tensors[key], tensors[shadow]) for key, shadow in shadows.items()):
        warnings.append("warning: the EMA weights are equal to the raw ones")
    return warnings


def shadow_of(raw: Tensor, shadow: Tensor, where: str) -> Tensor:
    """Take a shadow in place of a raw tensor.

    Raises:
        UnmappedKeysError: It has another shape; 1x1 convolutions may lack their last dimensions.
    """
    if _squeezed(raw.shape) != _squeezed(shadow.shape):
        raise UnmappedKeysError(
            misshaped=[f"{shadow.name} {list(shadow.shape)}, not {list(raw.shape)}"], where=where
        )
    return shadow


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if len(shape) > 2 and set(shape[2:]) == {1} else shape


def no_average(survey: Survey, where: str) -> EmaError:
    """Say why there is no moving average to use."""
    reason = "there are no EMA weights in it"
    if survey.ema.covers_unet:
        reason = "its EMA weights are the diffusion model's; the autoencoder has none"
    elif survey.ema.keys:
        reason = f"its model_ema section is a remnant of {survey.ema.keys} keys without weights"
    return EmaError(f"--ema: {reason}", where=where, hint="run without --ema")
