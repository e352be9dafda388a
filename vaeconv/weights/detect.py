"""Look at an open checkpoint: which autoencoder is in it, its config, its scaling, its EMA.

Here the names of ``autoencoder/`` meet the files of ``checkpoint/``; only values of a few bytes
are read.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv.autoencoder.config import ProvidedConfig, Scaling, build_config
from vaeconv.autoencoder.ema import DECAY, NUM_UPDATES, PREFIX, EmaKeys, detect_ema
from vaeconv.autoencoder.families import BY_NAME
from vaeconv.autoencoder.match import (
    Autoencoder,
    DropReason,
    find_prefixes,
    match_autoencoder,
)
from vaeconv.autoencoder.provided_config import parse_config
from vaeconv.autoencoder.scaling import Decision, ScalingOptions, decide_scaling
from vaeconv.checkpoint.tensor import check_repeats
from vaeconv.checkpoint.text_file import read_text_file
from vaeconv.checkpoint.types import Checkpoint
from vaeconv.common.notes import Note
from vaeconv.errors import NonFiniteError, listed
from vaeconv.weights.candidates import choose_prefix, is_ema

_UNPACK = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h"}


class Detected(NamedTuple):
    """Autoencoder and other facts that were found in a checkpoint.

    Attributes:
        autoencoder: The autoencoder and the account of all keys.
        ema: Its EMA.
        provided: The config that came along or was given.
        notes: Notes and warnings for the user.
    """

    autoencoder: Autoencoder
    ema: EmaKeys
    provided: ProvidedConfig | None
    notes: tuple[Note, ...] = ()


def detect(
    checkpoint: Checkpoint,
    *,
    prefix: str | None = None,
    config: Path | None = None,
    drop: tuple[str, ...] = (),
) -> Detected:
    """Recognise the autoencoder in a checkpoint.

    Args:
        checkpoint: The open checkpoint.
        prefix: Which autoencoder, where there are several; None to find it.
        config: A config to use in place of the one that came along.
        drop: Patterns of keys to leave out.

    Raises:
        InputError: There is none, it cannot be expressed, or its keys do not add up.
        UsageError: No autoencoder has the prefix.
    """
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    found = find_prefixes(shapes)
    notes: list[Note] = []
    prefix = choose_prefix(checkpoint, found, prefix, notes)
    autoencoder = match_autoencoder(
        shapes,
        prefix,
        where=checkpoint.name,
        drop=drop,
        others=tuple(other for other in found if other != prefix),
        beside=checkpoint.beside,
    )
    check_repeats([checkpoint.tensors[key] for key in autoencoder.keys.values()])
    provided = read_config(checkpoint, config)
    if provided:
        provided.check(autoencoder.topology)
        notes += provided.notes(autoencoder.topology)
    ema = _detect_ema(checkpoint, autoencoder)
    check_repeats([checkpoint.tensors[key] for key in ema.shadows.values()])
    return Detected(autoencoder, ema, provided, tuple(notes))


def _detect_ema(checkpoint: Checkpoint, autoencoder: Autoencoder) -> EmaKeys:
    prefix, own = autoencoder.prefix, autoencoder.keys
    if is_ema(checkpoint, prefix):
        shadows = {pair.compvis: key for pair, key in own.items()}
        return EmaKeys(shadows, len(shadows), False, prefix, is_whole=True)
    parameters = {pair.compvis: key[len(prefix) :] for pair, key in own.items()}
    ema_keys = [name for name, r in autoencoder.dropped.items() if r is DropReason.EMA]
    return detect_ema(parameters, checkpoint.tensors, prefix, ema_keys)


def read_config(checkpoint: Checkpoint, path: Path | None) -> ProvidedConfig | None:
    """Read the config that was given, else the one that came with the weights.

    Raises:
        CheckpointNotFoundError: The given file cannot be read.
        MalformedCheckpointError: It is not a config.
    """
    if path is not None:
        return parse_config(read_text_file(path), str(path))
    if checkpoint.config is not None:
        return parse_config(checkpoint.config.text, checkpoint.config.name)
    return None


def decide(checkpoint: Checkpoint, detected: Detected, options: ScalingOptions) -> Decision:
    """Decide the scaling of an autoencoder that was recognised, as ``convert`` writes it.

    Raises:
        AmbiguousInputError: The shapes belong to families with different factors, none of which
            is safe to assume.
        ConfigMismatchError: The family that was named does not fit the shapes.
        NonFiniteError: A factor in the file is no number to scale with.
        UsageError: There is no such family, or a factor is no number to scale with.
    """
    autoencoder = detected.autoencoder
    return decide_scaling(
        autoencoder.topology,
        options,
        detected.provided,
        lambda: read_stored_scaling(checkpoint, autoencoder.prefix),
        autoencoder.dropped,
        where=checkpoint.name,
    )


def decide_config(
    checkpoint: Checkpoint, detected: Detected, options: ScalingOptions = ScalingOptions()
) -> tuple[Decision, dict[str, Any]]:
    """Decide the scaling, and build the config that ``convert`` writes.

    Raises:
        InputError: As :func:`decide`, or its widths do not fit the normalisation.
    """
    decision = decide(checkpoint, detected, options)
    return decision, build_config(
        detected.autoencoder.topology,
        decision.scaling,
        sample_size=decision.sample_size,
        provided=detected.provided,
    )


def read_stored_scaling(checkpoint: Checkpoint, prefix: str) -> Scaling | None:
    """Read a scaling factor that training stored among the tensors.

    LDM's ``scale_by_std`` registers ``scale_factor``; Playground stores ``edm_mean`` and
    ``edm_std`` per latent channel, beside a fixed factor.
    """
    factor = _read_numbers(checkpoint, ("scale_factor", prefix + "scale_factor"))
    if factor and len(factor[1]) == 1:
        _check_scaling(checkpoint, *factor, is_positive=True)
        return Scaling(factor[1][0], source=f"the tensor {factor[0]}")
    mean = _read_numbers(checkpoint, ("edm_mean", prefix + "edm_mean"))
    std = _read_numbers(checkpoint, ("edm_std", prefix + "edm_std"))
    if mean and std and len(mean[1]) == len(std[1]):
        _check_scaling(checkpoint, *mean)
        _check_scaling(checkpoint, *std, is_positive=True)
        return Scaling(
            BY_NAME["playground-v2.5"].scaling_factor,
            None,
            mean[1],
            std[1],
            f"the tensors {mean[0]} and {std[0]}",
        )
    return None


def _check_scaling(
    checkpoint: Checkpoint, name: str, values: tuple[float, ...], *, is_positive: bool = False
) -> None:
    if not all(math.isfinite(value) and (value > 0 or not is_positive) for value in values):
        raise NonFiniteError(
            f"the tensor {name} scales latents and holds {listed([f'{v:g}' for v in values])}",
            where=checkpoint.name,
            hint="pass the right one with --scaling-factor",
        )


def read_ema_facts(
    checkpoint: Checkpoint, detected: Detected | None
) -> tuple[int | None, float | None]:
    """Read how often the EMA was updated, and its decay."""
    prefix, own = (detected.autoencoder.prefix, detected.ema.prefix) if detected else ("", PREFIX)
    roots = [prefix + PREFIX, PREFIX]
    roots += [own[: at + 1] for at, char in reversed(list(enumerate(own))) if char == "."]
    updates, decay = (
        _read_numbers(checkpoint, (root + name for root in roots)) for name in (NUM_UPDATES, DECAY)
    )
    return (
        int(updates[1][0]) if updates and math.isfinite(updates[1][0]) else None,
        decay[1][0] if decay and math.isfinite(decay[1][0]) else None,
    )


def _read_numbers(
    checkpoint: Checkpoint, names: Iterable[str]
) -> tuple[str, tuple[float, ...]] | None:
    for name in names:
        tensor = checkpoint.tensors.get(name)
        if tensor is not None and tensor.dtype.code in _UNPACK and 0 < tensor.numel <= 64:
            code = _UNPACK[tensor.dtype.code]
            values = struct.unpack(f"<{tensor.numel}{code}", tensor.read())
            return name, tuple(_shortest(value, code) for value in values)
    return None


def _shortest(value: float, code: str) -> float:
    """Return the number of fewest digits that is this one in its own precision.

    A float32 of 0.18215 is 0.182150006… in float64, and only 0.18215 was meant.
    """
    if code == "f" and math.isfinite(value):
        for digits in range(1, 10):
            short = float(f"{value:.{digits}g}")
            with suppress(OverflowError):  # rounded up beyond the largest number
                if struct.unpack(code, struct.pack(code, short))[0] == value:
                    return short
    return float(value)
