"""Options that several commands share: one declaration each."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

CHECKS, EXPERT, SCALING = "Checks", "Special inputs", "Scaling"


class DTypeChoice(str, Enum):
    """Element types that weights can be cast to."""

    KEEP = "keep"
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


Source = Annotated[
    str,
    typer.Argument(
        metavar="IN",
        help="A .ckpt, .pt, .bin or .safetensors file, a diffusers folder, a .zip with a "
        "checkpoint in it, or hf://owner/name with @revision and /path as needed.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say more; with errors, print the traceback.")
]
Salvage = Annotated[
    bool,
    typer.Option(
        "--salvage",
        help="Read a pickle past names that are not plain data. They stay inert placeholders.",
        rich_help_panel=EXPERT,
    ),
]
Download = Annotated[
    bool,
    typer.Option(
        "--download",
        help="Fetch a file on the Hub whole, into the cache, instead of only what is needed.",
        rich_help_panel=EXPERT,
    ),
]
SourcePrefix = Annotated[
    str | None,
    typer.Option(
        "--source-prefix",
        metavar="PREFIX",
        help="Which autoencoder to read, where IN holds several, such as first_stage_model.",
        show_default=False,
        rich_help_panel=EXPERT,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="A diffusers config.json or a training yaml, for what shapes do not tell.",
        show_default=False,
        rich_help_panel=SCALING,
    ),
]
Family = Annotated[
    str | None,
    typer.Option(
        "--family",
        metavar="NAME",
        help="sd1, sd2, sdxl, playground-v2.5, x4-upscaler, sd3 or flux1: "
        "settles scaling and shift.",
        show_default=False,
        rich_help_panel=SCALING,
    ),
]
ScalingFactor = Annotated[
    float | None,
    typer.Option(
        "--scaling-factor",
        metavar="X",
        show_default=False,
        rich_help_panel=SCALING,
        help="What latents are multiplied by for the diffusion model.",
    ),
]
ShiftFactor = Annotated[
    float | None,
    typer.Option(
        "--shift-factor",
        metavar="X",
        show_default=False,
        rich_help_panel=SCALING,
        help="What is subtracted from latents before that.",
    ),
]
Variant = Annotated[
    str | None,
    typer.Option(
        "--variant",
        metavar="NAME",
        show_default=False,
        help="Variant of a diffusers folder, such as fp16: OUT's, else IN's.",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", "--force", help="Replace OUT; other files in it stay.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan, and write nothing.")]
Manifest = Annotated[
    bool, typer.Option("--manifest", help="Write OUT.vaeconv.json beside a single file.")
]
Metadata = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata",
        metavar="KEY=TEXT",
        show_default=False,
        help="Put an entry into the safetensors header, such as modelspec.title=…, beside those "
        "that IN has, or in place of one; repeatable.",
    ),
]
NoMetadata = Annotated[
    bool,
    typer.Option(
        "--no-metadata", help="Leave out the metadata that IN has in its safetensors header."
    ),
]
Check = Annotated[
    bool,
    typer.Option(
        "--check/--no-check",
        rich_help_panel=CHECKS,
        help="Check CRCs, look for NaN, infinity and zeros of an unfinished download, "
        "hash OUT, wait for the disk. "
        "--no-check only copies; OUT still appears whole or not at all.",
    ),
]
AllowNonfinite = Annotated[
    bool,
    typer.Option("--allow-nonfinite", rich_help_panel=CHECKS, help="Let NaN and infinity pass."),
]
AllowZeros = Annotated[
    bool,
    typer.Option(
        "--allow-zeros",
        rich_help_panel=CHECKS,
        help="Let weights pass that are zero where no training leaves zeros, as after an "
        "unfinished download.",
    ),
]
Clamp = Annotated[
    bool,
    typer.Option(
        "--clamp",
        rich_help_panel=CHECKS,
        help="Write the largest value that fits where a cast overflows, instead of an error.",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(
        "--images",
        metavar="DIR_OR_ZIP",
        help="The pictures: a folder or a zip file.",
        show_default=False,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", metavar="N", min=1, help="Take the first N pictures.", show_default=False
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", metavar="NAME", help="Where torch computes: auto, cpu, cuda, cuda:N or mps."
    ),
]
HashSource = Annotated[
    bool,
    typer.Option("--hash-source", help="Hash IN whole (sha256).", rich_help_panel=CHECKS),
]


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str) -> int:
    """Read a size such as ``500MB``, ``2GiB`` or ``1000000``.

    Raises:
        BadParameter: It is none, or zero.
    """
    match = _SIZE.fullmatch(text.strip())
    size = 0
    if match:
        unit = 1024 if match[3] else 1000
        size = int(float(match[1]) * unit ** _POWERS[match[2].lower()])
    if size < 1:
        raise typer.BadParameter(f"{text!r} is not a size such as 500MB or 2GiB")
    return size


def parse_metadata(entries: list[str] | None) -> dict[str, str]:
    """Read ``KEY=TEXT`` entries.

    Raises:
        UsageError: One is none, or a key comes twice.
    """
    from vaeconv.errors import UsageError

    found: dict[str, str] = {}
    for entry in entries or ():
        key, sign, text = entry.partition("=")
        if not (key and sign) or key in found:
            raise UsageError(f"--metadata {entry}: give each KEY=TEXT once")
        found[key] = text
    return found


def with_dot(prefix: str | None) -> str | None:
    """Let ``first_stage_model`` stand for ``first_stage_model.``, as no key joins without a dot."""
    return prefix and prefix.rstrip(".") + "."
