"""What pruning can be told."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vaeconv.effects import Rule, reading_rules, writing_rules
from vaeconv.executor import CopyOptions
from vaeconv.names import OutputKind
from vaeconv.option_checks import CAST_DTYPES, Range, Text, Variant, check_fields
from vaeconv.parts import Part
from vaeconv.plan import KEEP, Row

_INFERENCE = frozenset(Part) - {Part.LOSS}


class Probed(Protocol):
    """What a probe found; :class:`vaeconv.parity.probe.ProbeReport` is one."""

    @property
    def is_finite(self) -> bool:
        """Whether activations fit fp16."""

    def describe(self) -> str:
        """Say it in one line."""

    def document(self) -> dict[str, Any]:
        """Describe it for machines."""


Probe = Callable[[Sequence[Row], Mapping[str, Any]], Probed]


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOptions:
    """How to prune.

    Attributes:
        dtype: ``fp16``, ``bf16``, ``fp32`` or ``keep``; what is no parameter, such as a noise
            schedule, keeps its own (:class:`vaeconv.parameters.Parameters`).
        fp16_except: Patterns of keys that keep their dtype.
        ema: Whether to fold the moving average over the raw weights where there is one.
        vae_only: Whether to keep nothing but the autoencoder, without its prefix.
        keep: Parts to keep although they are dropped by default.
        drop: Parts to drop although they are kept by default.
        vae: Another autoencoder to put in place of the one in a full checkpoint.
        prefix: What the autoencoder's keys begin with in the output; None to leave it.
        source_prefix: Which autoencoder is meant, where the source holds several.
        variant: Variant to write in a diffusers folder, or to read from one; such as ``fp16``.
        max_shard_size: Bytes of a shard in a folder; None for one file.
        salvage: Whether to read past unsafe names in a pickle.
        download: Whether to fetch a file on the Hub whole.
        overwrite: Whether an existing output may be replaced.
        hash_source: Whether to record the sha256 of the source file.
        manifest: Whether a single output file gets a manifest beside it; folders always have one.
        probe: Called before anything is written with the autoencoder's rows under their diffusers
            names and shapes, and with its config; says whether fp16 is enough to decode.
        require_fp16: Whether a probe that says no is an error.
        metadata: Entries of the safetensors header beside ``format``; they win over the source's.
        keep_metadata: Whether entries of the source's header are kept, as far as they stay true.
        copy: What to check on the way.
        on_fetch: Called with the bytes that arrived from the Hub, from any thread.
    """

    dtype: str = "fp16"
    fp16_except: tuple[str, ...] = ()
    ema: bool = False
    vae_only: bool = False
    keep: frozenset[Part] = frozenset()
    drop: frozenset[Part] = frozenset()
    vae: str | os.PathLike[str] | None = None
    prefix: str | None = None
    source_prefix: str | None = None
    variant: str | None = None
    max_shard_size: int | None = None
    salvage: bool = False
    download: bool = False
    overwrite: bool = False
    hash_source: bool = False
    manifest: bool = False
    probe: Probe | None = None
    require_fp16: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    keep_metadata: bool = True
    copy: CopyOptions = CopyOptions()
    on_fetch: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            dtype=CAST_DTYPES,
            max_shard_size=Range(1),
            variant=Variant,
            prefix=Text,
            source_prefix=Text,
            metadata=Text,
        )

    @property
    def kept(self) -> frozenset[Part]:
        """The parts that stay."""
        kept = frozenset({Part.VAE}) if self.vae_only else _INFERENCE
        return (kept | self.keep) - self.drop

    def rules(self, kind: OutputKind, target: Path, source: str | os.PathLike[str]) -> list[Rule]:
        """When each option has an effect, as far as names of inputs and output tell."""
        default = frozenset({Part.VAE}) if self.vae_only else _INFERENCE
        said = "it is kept all the same"
        parts = [Rule(f"--keep {p.value}", True, p not in default, said) for p in self.keep]
        said = "it is dropped all the same"
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
                 "--vae-only keeps an autoencoder alone; vaeconv convert writes the other one so"),
            Rule("--drop vae", Part.VAE in self.drop, not has_vae, "--vae puts another one there"),
            Rule("--require-fp16-decode", self.require_fp16, self.probe is not None,
                 "there is no probe"),
        ]  # fmt: skip
