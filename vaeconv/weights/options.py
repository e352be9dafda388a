"""Options of what is done to weights; each is declared here once, and says what it does."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated

from vaeconv.autoencoder.families import FAMILY_NAMES
from vaeconv.autoencoder.scaling import FamilyName, ScalingOptions
from vaeconv.common import option_docs as docs
from vaeconv.common.option_checks import CAST_DTYPES, Text, check_fields
from vaeconv.common.option_docs import Doc
from vaeconv.weights.plan import KEEP


class Part(str, Enum):
    """Parts of a full checkpoint that can be kept or dropped, as people name them."""

    UNET = "unet"
    VAE = "vae"
    TEXT_ENCODER = "text-encoder"
    SCHEDULE = "schedule"
    LOSS = "loss"
    OTHER = "other"


_PARTS = "Parts"
_PART_NAMES = ", ".join(part.value for part in Part)


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """Options of copying weights; each says what it does.

    Attributes:
        on_progress: Called from any thread, one call at a time, with the bytes just written, and
            those of the whole file.

    Example:
        >>> sizes = []
        >>> copy = CopyOptions(clamp=True, on_progress=lambda size, total: sizes.append(size))
        >>> result = prune("fixtures/tiny-kl.ckpt", "p.safetensors", PruneOptions(copy=copy))
        >>> sum(sizes) == result.written[0].size
        True
    """

    check: docs.Check = True
    allow_nonfinite: docs.AllowNonfinite = False
    allow_zeros: docs.AllowZeros = False
    clamp: docs.Clamp = False
    on_progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """Options of a conversion; each says what it does.

    Attributes:
        scaling: Scaling and shift, where the user knows them.
        copy: Checks while tensors are copied.
        on_fetch: Called with the bytes that arrived from the Hub, from any thread.

    Example:
        >>> options = ConvertOptions(ema=True, dtype="fp16", scaling=ScalingOptions(family="sd1"))
        >>> options.dtype
        'fp16'
    """

    dtype: Annotated[str, docs.choice("Type to cast the weights to", "TYPE", CAST_DTYPES)] = KEEP
    ema: Annotated[
        bool,
        Doc("Use the EMA weights of tensors that have some.", flags=("--ema/--no-ema",)),
    ] = False
    variant: docs.OutputVariant = None
    prefix: Annotated[
        str,
        Doc(
            "Prefix of the keys to write into a CompVis file, such as first_stage_model.; for a "
            "diffusers folder, whose keys have none, the same as --source-prefix.",
            "PREFIX",
            rule=Text,
            parse=docs.with_dot,
        ),
    ] = ""
    legacy_names: Annotated[bool, Doc("Write the attention names of diffusers before 0.17.")] = (
        False
    )
    overwrite: docs.Overwrite = False
    manifest: docs.Manifest = False
    metadata: docs.Metadata = field(default_factory=dict)
    keep_metadata: docs.KeepMetadata = True
    scaling: ScalingOptions = ScalingOptions()
    config: docs.Config = None
    copy: CopyOptions = CopyOptions()
    hash_source: docs.HashSource = False
    source_prefix: docs.SourcePrefix = None
    drop: Annotated[
        tuple[str, ...],
        Doc("Pattern of keys to leave out; repeatable.", "GLOB", docs.EXPERT),
    ] = ()
    salvage: docs.Salvage = False
    download: docs.Download = False
    on_fetch: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    """Options of an inspection; each says what it does.

    Attributes:
        on_fetch: Called with the bytes that arrived from the Hub, from any thread.

    Example:
        >>> InspectOptions(check=False).check
        False
    """

    variant: docs.Variant = None
    check: Annotated[
        bool,
        Doc(
            "Read the autoencoder's weights: CRC, NaN, infinity, zeros of an unfinished download. "
            "Local files only.",
            panel=docs.CHECKS,
        ),
    ] = True
    hash_source: docs.HashSource = False
    family: FamilyName = None
    config: docs.Config = None
    source_prefix: docs.SourcePrefix = None
    salvage: docs.Salvage = False
    download: docs.Download = False
    on_fetch: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        check_fields(self, family=FAMILY_NAMES)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOptions:
    """Options of pruning; each says what it does.

    Attributes:
        copy: Checks while tensors are copied.
        on_fetch: Called with the bytes that arrived from the Hub, from any thread.

    Example:
        >>> PruneOptions(ema=True, dtype="bf16").dtype
        'bf16'
    """

    ema: Annotated[
        bool,
        Doc(
            "Write EMA weights in place of the raw weights of tensors that have some.",
            flags=("--ema/--no-ema",),
        ),
    ] = False
    dtype: Annotated[
        str,
        Doc(
            "Type to cast parameters to: fp16, bf16, fp32 or keep. What is no parameter, such as "
            "noise schedules, scales of quantised weights, statistics and integers, keeps its own.",
            "TYPE",
            choices=CAST_DTYPES,
        ),
    ] = "fp16"
    fp16_except: Annotated[
        tuple[str, ...],
        Doc(
            "Pattern of keys that keep their type, such as 'decoder.conv_out.*'; repeatable.",
            "GLOB",
        ),
    ] = ()
    overwrite: docs.Overwrite = False
    manifest: docs.Manifest = False
    metadata: docs.Metadata = field(default_factory=dict)
    keep_metadata: docs.KeepMetadata = True
    variant: docs.OutputVariant = None
    max_shard_size: Annotated[
        int | None,
        Doc(
            "Split a folder's weights into files of at most this size, such as 500MB.",
            "SIZE",
            least=1,
            parse=docs.byte_size,
        ),
    ] = None
    vae_only: Annotated[
        bool, Doc("Keep the autoencoder alone, without its prefix.", panel=_PARTS)
    ] = False
    keep: Annotated[
        frozenset[Part],
        Doc(
            "Part to keep that is dropped by default (loss), or by --vae-only: "
            f"{_PART_NAMES}; repeatable.",
            "PART",
            _PARTS,
        ),
    ] = frozenset()
    drop: Annotated[
        frozenset[Part], Doc(f"Part to drop: {_PART_NAMES}; repeatable.", "PART", _PARTS)
    ] = frozenset()
    vae: Annotated[
        str | os.PathLike[str] | None,
        Doc(
            "Autoencoder, in either layout, to put in place of the one in a full checkpoint.",
            "FILE",
            _PARTS,
        ),
    ] = None
    prefix: Annotated[
        str | None,
        Doc(
            "Prefix of the autoencoder's keys in the output; by default the one they have, or "
            "where the checkpoint has no autoencoder the one of its kind, such as vae. for FLUX.",
            "PREFIX",
            _PARTS,
            rule=Text,
            parse=docs.with_dot,
        ),
    ] = None
    require_fp16: Annotated[
        bool,
        Doc(
            "Probe, and end with exit code 4 if fp16 decoding is not finite.",
            panel=docs.PROBE,
            flags=("--require-fp16-decode",),
        ),
    ] = False
    copy: CopyOptions = CopyOptions()
    hash_source: docs.HashSource = False
    source_prefix: docs.SourcePrefix = None
    salvage: docs.Salvage = False
    download: docs.Download = False
    on_fetch: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def default_parts(self) -> frozenset[Part]:
        """The parts that stay where neither ``keep`` nor ``drop`` says anything of them."""
        return frozenset({Part.VAE}) if self.vae_only else frozenset(Part) - {Part.LOSS}

    @property
    def kept(self) -> frozenset[Part]:
        """The parts that stay."""
        return (self.default_parts | self.keep) - self.drop
