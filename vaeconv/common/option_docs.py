"""Descriptions of options, once: help texts, files and documents are made of them.

A field of an options class is ``Annotated[T, Doc(...)]``. ``vaeconv.cli.declare`` makes a command's
option of it; ``option_checks`` takes from it what values are allowed. What several commands have is
declared here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from vaeconv.common.option_checks import Device as DeviceName
from vaeconv.common.option_checks import Range, Rule, Text
from vaeconv.common.option_checks import Variant as VariantName
from vaeconv.errors import UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
CHECKS, EXPERT, SCALING = "Checks", "Special inputs", "Scaling"
REPORTS, PROBE = "Reports", "Probe"


class Doc(NamedTuple):
    """Description of an option.

    Attributes:
        help: What a value is, with its unit and what is done without one; stands alone.
        metavar: What stands for a value in the help.
        panel: The part of the help that it is shown in; None for the first.
        is_argument: Whether it is named by its place although it has a default.
        flags: How it is called on the command line; by default as the field, with ``--``.
        choices: The values that are allowed; none for any.
        suggested: Values that a shell completes where others are allowed, too.
        least: The smallest number that is allowed.
        rule: What else is allowed, of :mod:`vaeconv.common.option_checks`.
        parse: Makes a value of what was typed.
    """

    help: str
    metavar: str | None = None
    panel: str | None = None
    is_argument: bool = False
    flags: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    suggested: tuple[str, ...] = ()
    least: float | None = None
    rule: Rule | None = None
    parse: Callable[[Any], Any] | None = None


def choice(what: str, metavar: str, choices: tuple[str, ...], panel: str | None = None) -> Doc:
    """Describe an option that has one of a few values, which its help lists."""
    *others, last = choices
    return Doc(f"{what}: {', '.join(others)} or {last}.", metavar, panel, choices=choices)


def with_dot(prefix: str) -> str:
    """Let ``first_stage_model`` stand for ``first_stage_model.``, as no key joins without a dot."""
    return prefix and prefix.rstrip(".") + "."


def key_texts(entries: list[str]) -> Mapping[str, str]:
    """Read entries ``KEY=TEXT``.

    Raises:
        UsageError: One is something else, or a key comes twice.
    """
    found: dict[str, str] = {}
    for entry in entries:
        key, sign, text = entry.partition("=")
        if not (key and sign):
            raise UsageError(f"--metadata {entry} is not KEY=TEXT")
        if key in found:
            raise UsageError(f"--metadata gives {key} twice")
        found[key] = text
    return found


def byte_size(text: str) -> int:
    """Read a size such as ``500MB``, ``2GiB`` or ``1000000``.

    Raises:
        UsageError: It is something else, or zero.
    """
    match = _SIZE.fullmatch(text.strip())
    size = 0
    if match:
        unit = 1024 if match[3] else 1000
        size = int(float(match[1]) * unit ** _POWERS[match[2].lower()])
    if size < 1:
        raise UsageError(f"--max-shard-size {text!r} is not a size such as 500MB or 2GiB")
    return size


Source = Annotated[
    str,
    Doc(
        "Checkpoint to read: a .ckpt, .pt, .bin or .safetensors file, a diffusers folder, a .zip "
        "with a checkpoint in it, or hf://owner/name with @revision and /path as needed.",
        "IN",
    ),
]
Variant = Annotated[
    str | None,
    Doc("Variant of the diffusers folder to read, such as fp16.", "NAME", rule=VariantName),
]
OutputVariant = Annotated[
    str | None,
    Doc(
        "Variant, such as fp16: of the diffusers folder to write, or where a file is written, of "
        "the folder to read.",
        "NAME",
        rule=VariantName,
    ),
]
ScalingFactor = Annotated[
    float | None,
    Doc(
        "Factor that the diffusion model multiplies latents by, such as 0.18215.",
        "X",
        SCALING,
        rule=Range(0, is_open=True),
    ),
]
ShiftFactor = Annotated[
    float | None,
    Doc("Number that the diffusion model subtracts from latents before scaling.", "X", SCALING),
]
Config = Annotated[
    Path | None,
    Doc("Config for what shapes do not tell: a diffusers config.json or a training yaml.", "FILE",
        SCALING),
]  # fmt: skip
SourcePrefix = Annotated[
    str | None,
    Doc(
        "Prefix of the autoencoder to read, where the checkpoint holds several, such as "
        "first_stage_model.",
        "PREFIX",
        EXPERT,
        rule=Text,
        parse=with_dot,
    ),
]
Salvage = Annotated[
    bool,
    Doc(
        "Read the weights even if the pickle names unsafe objects; they are never executed.",
        panel=EXPERT,
    ),
]
Download = Annotated[
    bool,
    Doc(
        "Download a Hub file whole, into the client's cache, instead of the parts that are needed.",
        panel=EXPERT,
    ),
]
Check = Annotated[
    bool,
    Doc(
        "Check CRCs, look for NaN, infinity and zeros of an unfinished download, hash the output, "
        "and wait until the disk has it. --no-check only copies; the output still appears whole "
        "or not at all.",
        panel=CHECKS,
    ),
]
AllowNonfinite = Annotated[bool, Doc("Accept weights with NaN or infinity.", panel=CHECKS)]
AllowZeros = Annotated[
    bool,
    Doc(
        "Accept weights that are zero where no training leaves zeros, as after an unfinished "
        "download.",
        panel=CHECKS,
    ),
]
Clamp = Annotated[
    bool,
    Doc(
        "Write the largest value of the type where a cast overflows, instead of an error.",
        panel=CHECKS,
    ),
]
HashSource = Annotated[
    bool, Doc("Record the sha256 of the whole checkpoint that is read.", panel=CHECKS)
]
Overwrite = Annotated[
    bool,
    Doc(
        "Replace an existing output; other files in an output folder stay.",
        flags=("--overwrite", "--force"),
    ),
]
DryRun = Annotated[bool, Doc("Print what would be done, and write nothing.")]
Manifest = Annotated[bool, Doc("Write a manifest, OUT.vaeconv.json, beside a single output file.")]
Metadata = Annotated[
    Mapping[str, str],
    Doc(
        "Entry for the safetensors header, such as modelspec.title=…; added to the entries of the "
        "input, or replacing one. Repeatable.",
        "KEY=TEXT",
        rule=Text,
        parse=key_texts,
    ),
]
KeepMetadata = Annotated[
    bool,
    Doc("Leave out the entries of the input's safetensors header.", flags=(" /--no-metadata",)),
]
Device = Annotated[
    str,
    Doc(
        "Device that computes: auto, cpu, cuda, cuda:N or mps.",
        "NAME",
        suggested=("auto", "cpu", "cuda", "mps"),
        rule=DeviceName,
    ),
]
IMAGES = (
    "a folder, a zip file, an image, or hf://datasets/owner/name with @revision and /path as needed"
)
Images = Annotated[str | None, Doc(f"Images to use: {IMAGES}.", "IMAGES")]
Limit = Annotated[int | None, Doc("Use only the first N images.", "N", least=1)]
