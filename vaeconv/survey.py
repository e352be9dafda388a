"""Look at an open checkpoint: which autoencoder is in it, its config, its scaling, its EMA.

Here the names of ``autoencoder/`` meet the files of ``checkpoint/``; only values of a few bytes
are read.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vaeconv.autoencoder.accounting import (
    ROOTS,
    Autoencoder,
    find_autoencoder,
    find_prefixes,
    no_autoencoder,
)
from vaeconv.autoencoder.config import GivenConfig, Scaling
from vaeconv.autoencoder.ema import DECAY, NUM_UPDATES, EmaSurvey, survey_ema
from vaeconv.autoencoder.families import BY_NAME
from vaeconv.autoencoder.given_config import parse_config
from vaeconv.autoencoder.scaling import Decision, ScalingOptions, decide_scaling
from vaeconv.autoencoder.topology import Layout
from vaeconv.checkpoint.base import Checkpoint
from vaeconv.checkpoint.tensor import Tensor, check_repeats
from vaeconv.checkpoint.text_file import read_text_file
from vaeconv.errors import (
    AmbiguousInputError,
    NonFiniteError,
    UsageError,
    listed,
)

_COMPARE_PIECE = 1 << 20
_UNPACK = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h"}


class Survey(NamedTuple):
    """What was found.

    Attributes:
        autoencoder: The autoencoder and the account of all keys.
        ema: Its moving average.
        given: The config that came along or was given.
        notes: What the user should know.
    """

    autoencoder: Autoencoder
    ema: EmaSurvey
    given: GivenConfig | None
    notes: tuple[str, ...] = ()


def survey_checkpoint(
    checkpoint: Checkpoint,
    *,
    prefix: str | None = None,
    config: Path | None = None,
    drop: tuple[str, ...] = (),
) -> Survey:
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
    notes: list[str] = []
    if prefix is None:
        prefix = _only_prefix(checkpoint, found, notes)
    elif prefix not in found:
        known = ", ".join(repr(p) for p in found) or "none"
        raise UsageError(
            f"no autoencoder has the prefix {prefix!r}; found: {known}", where=checkpoint.name
        )
    autoencoder = find_autoencoder(
        shapes,
        prefix,
        where=checkpoint.name,
        drop=drop,
        others=tuple(other for other in found if other != prefix),
    )
    check_repeats([checkpoint.tensors[key] for key in autoencoder.keys.values()])
    given = read_config(checkpoint, config)
    if given:
        given.check(autoencoder.topology)
        notes += given.notes(autoencoder.topology)
    names = (pair.compvis for pair in autoencoder.keys)
    ema = survey_ema(
        names if autoencoder.layout is Layout.COMPVIS else (), checkpoint.tensors, prefix
    )
    check_repeats([checkpoint.tensors[key] for key in ema.shadows.values()])
    return Survey(autoencoder, ema, given, tuple(notes))


def _only_prefix(checkpoint: Checkpoint, found: list[str], notes: list[str]) -> str:
    if not found:
        raise no_autoencoder(
            {name: tensor.shape for name, tensor in checkpoint.tensors.items()}, checkpoint.name
        )
    first, *others = found
    for other in others:
        if not _is_copy(checkpoint.tensors, first, other):
            raise AmbiguousInputError(
                f"holds {len(found)} different autoencoders, under "
                + ", ".join(repr(prefix) for prefix in found),
                where=checkpoint.name,
                hint=f"choose one with --source-prefix, such as --source-prefix {first or other}",
            )
    if others:
        notes.append(f"note: the same autoencoder is there {len(found)} times; {first!r} is used")
    return first


def _is_copy(tensors: Mapping[str, Tensor], one: str, other: str) -> bool:
    pairs = [
        (tensor, tensors.get(other + name[len(one) :]))
        for name, tensor in tensors.items()
        if name.startswith(one) and name[len(one) :].startswith(ROOTS)
    ]
    return all(match is not None and same_values(tensor, match) for tensor, match in pairs)


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bytes; stops at the first difference."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    readers = one.open(), other.open()
    left = one.nbytes
    while left:
        size = min(left, _COMPARE_PIECE)
        pieces = bytearray(size), bytearray(size)
        for reader, piece in zip(readers, pieces, strict=True):
            reader.read_into(memoryview(piece))
        if pieces[0] != pieces[1]:
            return False
        left -= size
    return True


def read_config(checkpoint: Checkpoint, path: Path | None) -> GivenConfig | None:
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


def decide(checkpoint: Checkpoint, survey: Survey, options: ScalingOptions) -> Decision:
    """Decide the scaling of an autoencoder that was recognised, as ``convert`` writes it.

    Raises:
        AmbiguousInputError: The shapes belong to families with different factors, none of which
            is safe to assume.
        ConfigMismatchError: The family that was named does not fit the shapes.
        NonFiniteError: A factor in the file is no number to scale with.
        UsageError: There is no such family, or a factor is no number to scale with.
    """
    autoencoder = survey.autoencoder
    return decide_scaling(
        autoencoder.topology,
        options,
        survey.given,
        lambda: read_stored_scaling(checkpoint, autoencoder.prefix),
        autoencoder.dropped,
        where=checkpoint.name,
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
            hint="give the right one with --scaling-factor",
        )


def read_ema_facts(checkpoint: Checkpoint, prefix: str) -> tuple[int | None, float | None]:
    """Read how often the moving average was updated, and its decay."""
    updates = _read_numbers(checkpoint, (prefix + NUM_UPDATES, NUM_UPDATES))
    decay = _read_numbers(checkpoint, (prefix + DECAY, DECAY))
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
