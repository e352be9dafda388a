"""Options of pruning."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

from vaeconv.common import option_docs as docs
from vaeconv.common.option_checks import CAST_DTYPES, Text, check_fields
from vaeconv.common.option_docs import Doc
from vaeconv.weights.execute import CopyOptions
from vaeconv.weights.idle_options import Rule, reading_rules, writing_rules
from vaeconv.weights.output_names import OutputKind
from vaeconv.weights.parts import Part
from vaeconv.weights.plan import KEEP, Row

_PARTS = "Parts"
_PART_NAMES = ", ".join(part.value for part in Part)
_INFERENCE = frozenset(Part) - {Part.LOSS}


class Probed(Protocol):
    """Result of a probe; :class:`vaeconv.models.probe.ProbeReport` is one."""

    @property
    def is_finite(self) -> bool:
        """True if activations fit fp16."""

    def describe(self) -> str:
        """Say it in one line."""

    def document(self) -> dict[str, Any]:
        """Describe it for machines."""


Probe = Callable[[Sequence[Row], Mapping[str, Any]], Probed]


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOptions:
    """Options of pruning; each says what it does.

    Attributes:
        probe: Called before anything is written with the autoencoder's rows under their diffusers
            names and shapes, and with its config; says whether fp16 is enough to decode.
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
    probe: Probe | None = None
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
    def kept(self) -> frozenset[Part]:
        """The parts that stay."""
        kept = frozenset({Part.VAE}) if self.vae_only else _INFERENCE
        return (kept | self.keep) - self.drop

    def rules(self, kind: OutputKind, target: Path, source: str | os.PathLike[str]) -> list[Rule]:
        """Make the rules of the options, as far as names of inputs and output tell."""
        default = frozenset({Part.VAE}) if self.vae_only else _INFERENCE
        said = "it is kept anyway"
        parts = [Rule(f"--keep {p.value}", True, p not in default, said) for p in self.keep]
        said = "it is dropped anyway"
        parts += [
            Rule(f"--drop {p.value}", True, p in default and p not in self.keep, said)
            for p in self.drop - self.keep
        ]
        both = sorted(p.value for p in self.keep & self.drop)
        has_vae = self.vae is not None
        return [
            *reading_rules([source, self.vae], download=self.download),
            *writing_rules(
                kind,
                target,
                dtype=self.dtype,
                copy=self.copy,
                manifest=self.manifest,
                hash_source=self.hash_source,
                metadata=self.metadata,
            ),
            Rule("--fp16-except", bool(self.fp16_except), self.dtype != KEEP, "nothing is cast"),
            Rule(
                "--max-shard-size",
                self.max_shard_size is not None,
                kind is OutputKind.FOLDER,
                "only a folder's weights are cut into several files",
            ),
            *sorted(parts),
            *[Rule(f"--keep {name}", True, False, f"--drop {name} says the opposite")
              for name in both],
            Rule("--vae", has_vae, not self.vae_only,
                 "--vae-only writes the autoencoder of IN; use vaeconv convert for another"),
            Rule("--drop vae", Part.VAE in self.drop, not has_vae, "--vae puts another one there"),
            Rule("--require-fp16-decode", self.require_fp16, self.probe is not None,
                 "there is no probe"),
        ]  # fmt: skip
