"""Options of a verification."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vaeconv.autoencoder.scaling import ScalingOptions
from vaeconv.common import option_docs as docs
from vaeconv.common.option_checks import RUN_DTYPES, check_fields
from vaeconv.common.option_docs import Doc
from vaeconv.models.open_model import ModelOptions, OfOneModel
from vaeconv.parity.compare_outputs import Decoded, Limits
from vaeconv.weights.idle_options import Rule, reading_rules

_REFERENCES = "References"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """Options of a verification; each says what it does.

    Attributes:
        a: Options of reading the first model.
        b: Options of reading the second model.
        base: Options of reading the model that the first one is to replace.
        on_image: Called with each decoded pair of the first comparison.
        on_progress: Called with what is being done, and how much of it is done of how much.

    Example:
        >>> VerifyOptions(dtype="fp16", limits=Limits(min_psnr=50.0)).dtype
        'fp16'
    """

    a: OfOneModel = ModelOptions()
    b: OfOneModel = ModelOptions()
    base: OfOneModel = ModelOptions()
    weights_only: Annotated[bool, Doc("Compare weights only. Imports no torch.")] = False
    encode: Annotated[
        bool, Doc("Compare the posterior moments of images as well as decoded latents.")
    ] = True
    ema: Annotated[
        bool,
        Doc("Compare the EMA weights of a model that has some.", flags=("--ema/--no-ema",)),
    ] = False
    device: docs.Device = "auto"
    dtype: Annotated[
        str,
        Doc(
            "Type to compare in as well, after fp32: fp32 (no other), fp16 or bf16.",
            "TYPE",
            choices=RUN_DTYPES,
        ),
    ] = "fp32"
    limits: Limits = Limits()
    scaling: ScalingOptions = ScalingOptions()
    config: docs.Config = None
    latents: Annotated[
        Path | None,
        Doc(
            "Reference latents, as vaeconv latents writes them; by default a built-in set.",
            "FILE",
            _REFERENCES,
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        Doc("References that run at a time; by default as many as fit.", "N", _REFERENCES, least=1),
    ] = None
    tile: Annotated[
        int,
        Doc(
            "Side of the tiles, in latent pixels, that larger latents are decoded in; 0 for none.",
            "N",
            _REFERENCES,
            least=0,
        ),
    ] = 0
    hash_files: Annotated[
        bool,
        Doc(
            "Put the sha256 of every file into the report.",
            panel=docs.REPORTS,
            flags=("--hash/--no-hash",),
        ),
    ] = True
    on_image: Callable[[Decoded], None] | None = None
    on_progress: Callable[[str, int, int], None] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def report(self, step: str, done: int, total: int) -> None:
        """Tell how much of a step is done."""
        if self.on_progress:
            self.on_progress(step, done, total)

    def rules(self, paths: Sequence[str | os.PathLike[str] | None]) -> list[Rule]:
        """Make the rules on options that have no effect; most need models that run.

        Args:
            paths: Of A, B and BASE; None for one that is not there.
        """
        default, runs, why = VerifyOptions(), not self.weights_only, "--weights-only runs nothing"
        a, b = self.a.variant, self.b.variant
        needs_run = {
            "--no-encode": not self.encode,
            "--device": self.device != default.device,
            "--dtype": self.dtype != default.dtype,
            "--atol": self.limits.atol is not None,
            "--min-psnr": self.limits.min_psnr is not None,
            "--latents": self.latents is not None,
            "--batch-size": self.batch_size is not None,
            "--tile": self.tile != default.tile,
        }
        return [
            *reading_rules(
                paths, download=any(one.download for one in (self.a, self.b, self.base))
            ),
            *reading_rules(paths[:1], download=False, variant=a, option="--variant-a"),
            *reading_rules(paths[1:2], download=False, variant=b, option="--variant-b"),
            *(Rule(option, is_given, runs, why) for option, is_given in needs_run.items()),
        ]
