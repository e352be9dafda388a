"""Checks of EMA weights before they are used."""

from __future__ import annotations

from collections.abc import Mapping

from vaeconv.autoencoder.ema import WARM_UPDATES
from vaeconv.checkpoint.readers.state_dict import NAMELESS_HINT
from vaeconv.checkpoint.tensor import Tensor
from vaeconv.checkpoint.types import Checkpoint
from vaeconv.common.notes import Note, warning
from vaeconv.common.wording import plural
from vaeconv.errors import AmbiguousInputError, EmaError, UnmappedKeysError
from vaeconv.weights.candidates import same_values
from vaeconv.weights.detect import Detected, read_ema_facts


def choose_ema(checkpoint: Checkpoint, detected: Detected) -> Mapping[str, str]:
    """Give the shadows of the autoencoder: raw CompVis name, and the key of its shadow.

    Raises:
        EmaError: There are none.
        AmbiguousInputError: There are several EMAs, and they differ.
    """
    if not detected.ema.shadows:
        raise missing_ema(checkpoint, detected)
    check_single(checkpoint, {detected.ema.prefix: detected.ema.shadows, **detected.ema.others})
    return detected.ema.shadows


def check_single(checkpoint: Checkpoint, emas: Mapping[str, Mapping[str, str]]) -> None:
    """Check that EMAs of the same parameters, each by its prefix, are one EMA.

    Raises:
        AmbiguousInputError: They differ.
    """
    (_, first), *others = emas.items()
    tensors = checkpoint.tensors
    for prefix, other in others:
        if first.keys() != other.keys() or not all(
            same_values(tensors[shadow], tensors[other[name]]) for name, shadow in first.items()
        ):
            raise AmbiguousInputError(
                f"holds {len(emas)} different EMAs, under " + ", ".join(map(repr, emas)),
                where=checkpoint.name,
                hint=f"in place of --ema choose one, such as --source-prefix {prefix}",
            )


def check_ema_weights(
    checkpoint: Checkpoint, detected: Detected | None, shadows: Mapping[str, str]
) -> list[Note]:
    """Look whether an EMA was ever updated, and whether it differs from the raw weights.

    Args:
        checkpoint: The open checkpoint.
        detected: What is known of its autoencoder.
        shadows: Key of each parameter that has a shadow, and the key of the shadow; not empty.

    Returns:
        Warnings.
    """
    warnings: list[Note] = []
    updates = read_ema_facts(checkpoint, detected)[0]
    if updates is not None and updates < WARM_UPDATES:
        meaning = {
            0: "was never updated",
            -1: "was made without a warm-up, so it may contain random initial weights",
        }
        said = meaning.get(updates, f"was updated only {plural(updates, 'time')}")
        warnings.append(warning(f"the EMA {said} (num_updates {updates})"))
    tensors = checkpoint.tensors
    pairs = [(key, shadow) for key, shadow in shadows.items() if key != shadow]
    if pairs and all(same_values(tensors[key], tensors[shadow]) for key, shadow in pairs):
        warnings.append(warning("the EMA weights are equal to the raw ones"))
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


def nameless_ema(checkpoint: Checkpoint) -> str:
    """Describe an EMA that cannot be used, as its tensors have no names; empty where none."""
    return "; ".join(
        f"its EMA {path} is a list of {plural(count, 'tensor')} without names"
        for path, count in checkpoint.nameless.items()
    )


def missing_ema(checkpoint: Checkpoint, detected: Detected | None) -> EmaError:
    """Say why there is no EMA to use."""
    reason = "there are no EMA weights in it"
    if nameless := nameless_ema(checkpoint):
        return EmaError(f"--ema: {nameless}", where=checkpoint.name, hint=NAMELESS_HINT)
    if detected and detected.ema.covers_unet:
        reason = "its EMA weights are the diffusion model's; the autoencoder has none"
    elif detected and detected.ema.keys:
        reason = f"its EMA is a remnant of {detected.ema.keys} keys without weights"
    return EmaError(
        f"--ema: {reason}", where=checkpoint.name, hint="run without --ema or --raw-and-ema"
    )
