"""``release.toml``: inputs, outputs and gates of a release."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from difflib import get_close_matches
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from vaeconv.autoencoder.families import FAMILY_NAMES
from vaeconv.checkpoint.toml_file import build, read_toml
from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.common.option_checks import MOST_PIXELS, RUN_DTYPES, Range, check_fields
from vaeconv.common.option_docs import IMAGES, Device, Doc, ShiftFactor
from vaeconv.errors import OutputExistsError, UsageError, VaeconvError
from vaeconv.evaluation.metric_networks import (
    INCEPTION_FILE,
    LPIPS_FILE,
    NETWORKS,
    VGG_FILE,
    Network,
)
from vaeconv.evaluation.metrics import METRICS
from vaeconv.evaluation.protocol import PRESETS
from vaeconv.publish.card.meta import CardMeta
from vaeconv.weights.output_names import KINDS, check_ending

# Of the CompVis file; with or without a dot.
_FORMATS = (*(ending.lstrip(".") for ending in KINDS), *KINDS)
_SIZES = Range(1, most=MOST_PIXELS)
_PATH = "a path, or an address on the Hub"
_Place = Annotated[str | None, _PATH]
_Size = Annotated[
    int | None, Doc("Side of the square images, in pixels; by default that of the preset.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTable:
    """The checkpoint to release."""

    checkpoint: Annotated[
        str, _PATH, Doc("Training checkpoint to release: anything that convert opens.")
    ]
    ema: Annotated[bool, Doc("Release the EMA weights of tensors that have some.")] = True
    scaling_factor: Annotated[
        float | None,
        Doc("Factor that the diffusion model multiplies latents by; this or family must be given."),
    ] = None
    shift_factor: ShiftFactor = None
    family: Annotated[
        str | None,
        Doc(
            "Model family, which settles scaling and shift: sd1, sd2, sdxl, sd3, flux1 or another."
        ),
    ] = None
    config: Annotated[
        _Place,
        Doc("Config for what shapes do not tell: a diffusers config.json or a training yaml."),
    ] = None
    source_prefix: Annotated[
        str | None, Doc("Prefix of the autoencoder to release, where the checkpoint holds several.")
    ] = None
    allow_zeros: Annotated[
        bool, Doc("Accept weights that are zero where no training leaves zeros.")
    ] = False

    def __post_init__(self) -> None:
        check_fields(self, scaling_factor=Range(0, is_open=True), family=FAMILY_NAMES)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTable:
    """Files to write, and their folder."""

    folder: Annotated[str, _PATH, Doc("Folder that everything is written into.")] = "release"
    dtypes: Annotated[
        tuple[str, ...],
        Doc("Types of the weights in the diffusers folder: fp32 is the plain variant."),
    ] = ("fp32", "fp16")
    original: Annotated[
        str, Doc("Name of the CompVis file, without an ending; empty for no such file.")
    ] = ""
    original_formats: Annotated[
        tuple[str, ...], Doc("Endings of the CompVis file: safetensors, sft, ckpt, pt, pth, bin.")
    ] = ("safetensors", "ckpt")
    original_dtype: Annotated[
        str, Doc("Type of the weights in the CompVis file: fp32, fp16 or bf16.")
    ] = "fp32"
    modelspec: Annotated[
        bool, Doc("Describe the model in the headers of the safetensors files (ModelSpec).")
    ] = False
    sbom: Annotated[bool, Doc("Write a bill of materials (CycloneDX) into each folder.")] = False

    def __post_init__(self) -> None:
        check_fields(self, dtypes=RUN_DTYPES, original_formats=_FORMATS, original_dtype=RUN_DTYPES)
        if not self.dtypes or len(set(self.dtypes)) != len(self.dtypes):
            raise UsageError(f"dtypes are some of {', '.join(RUN_DTYPES)}, each once")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyTable:
    """The verification, which is a gate."""

    device: Device = "auto"
    dtype: Annotated[
        str, Doc("Type to compare in as well, after fp32: fp32 (no other), fp16 or bf16.")
    ] = "fp32"
    latents: Annotated[
        _Place, Doc("Reference latents, as vaeconv latents writes them; by default a built-in set.")
    ] = None
    drop_in_for: Annotated[_Place, Doc("Model that this one must be able to stand in for.")] = None

    def __post_init__(self) -> None:
        check_fields(self, dtype=RUN_DTYPES)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalTable:
    """The evaluation, and its gates."""

    images: Annotated[
        _Place, Doc(f"Images to evaluate with: {IMAGES}; no evaluation without them.")
    ] = None
    title: Annotated[str, Doc("Title of the table in the card.")] = ""
    limit: Annotated[int | None, Doc("Use only this many images, in the order of their names.")] = (
        None
    )
    protocol: Annotated[
        str, Doc("Preset of how images are prepared: card-256, card-256-squash or card-256-sample.")
    ] = "card-256"
    size: _Size = None
    metrics: Annotated[
        tuple[str, ...], Doc("Metrics to compute: rfid, psnr, ssim, psim and lpips.")
    ] = METRICS
    inception_weights: Annotated[_Place, INCEPTION_FILE] = None
    vgg_weights: Annotated[_Place, VGG_FILE] = None
    lpips_weights: Annotated[_Place, LPIPS_FILE] = None
    models: Annotated[_Place, Doc("TOML file of models to show beside this one.")] = None
    device: Device = "auto"
    allow_missing_metrics: Annotated[
        bool, Doc("Leave out metrics whose network weights are not found.")
    ] = False
    min_psnr: Annotated[float | None, Doc("Gate: smallest mean PSNR, in dB.")] = None
    baseline: Annotated[_Place, Doc("Gate: earlier eval.json whose rFID is compared.")] = None
    max_rfid_regression: Annotated[
        float, Doc("Gate: how much larger than the baseline's the rFID may be.")
    ] = 0.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            limit=Range(1),
            protocol=tuple(PRESETS),
            size=_SIZES,
            metrics=METRICS,
            max_rfid_regression=Range(0),
        )
        if not self.metrics:
            raise UsageError("metrics are empty", hint=f"there are {', '.join(METRICS)}")

    def networks(self) -> Iterator[tuple[str, Network, str | None]]:
        """List metric networks: the key of each, and the file that it names."""
        for network in NETWORKS:
            key = network.option.removeprefix("--").replace("-", "_")
            yield key, network, getattr(self, key)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareTable:
    """The side-by-side images of the card."""

    images: Annotated[
        _Place, Doc(f"Images to show side by side: {IMAGES}; none are shown without.")
    ] = None
    limit: Annotated[int, Doc("Show only this many images, in the order of their names.")] = 6
    size: _Size = None
    labels: Annotated[bool, Doc("Write names and PSNR under the images.")] = False

    def __post_init__(self) -> None:
        check_fields(self, limit=Range(1), size=_SIZES)


@dataclass(frozen=True, slots=True, kw_only=True)
class PushTable:
    """Repositories to publish to."""

    repo_id: Annotated[
        str, Doc("Repository of the diffusers folder, owner/name; no push without it.")
    ] = ""
    original_repo_id: Annotated[str, Doc("Repository of the CompVis file, owner/name.")] = ""
    revision: Annotated[str, Doc("Branch to publish to.")] = "main"
    private: Annotated[
        bool | None, Doc("Create repositories as private if they do not exist yet.")
    ] = None
    tag: Annotated[
        str | None, Doc("Tag of both commits; {tag} stands for that of --tag or of the CI job.")
    ] = None
    message: Annotated[
        str | None, Doc("Message of both commits; by default one that names the files.")
    ] = None
    verify: Annotated[bool, Doc("Download what was published, and compare it.")] = True

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseConfig:
    """A release file: a table of options for each step.

    Example:
        >>> ReleaseConfig(source=SourceTable(checkpoint="last.ckpt")).output.folder
        'release'
    """

    source: SourceTable
    output: OutputTable = OutputTable()
    verify: VerifyTable = VerifyTable()
    eval: EvalTable = EvalTable()
    compare: CompareTable = CompareTable()
    card: CardMeta = CardMeta()
    push: PushTable = PushTable()

    def __post_init__(self) -> None:
        check_fields(self)


_KINDS: dict[str, Any] = get_type_hints(ReleaseConfig)
# What is said of each key of a table, by both names.
_SAID: dict[tuple[str, str], tuple[Any, ...]] = {
    (table, key): getattr(hint, "__metadata__", ())
    for table, kind in _KINDS.items()
    for key, hint in get_type_hints(kind, include_extras=True).items()
}
PATHS = frozenset(key for key, said in _SAID.items() if _PATH in said)


def read_release(path: Path, problems: list[VaeconvError] | None = None) -> ReleaseConfig:
    """Read a release file, and check its keys and their types.

    Args:
        path: The file.
        problems: Where what is wrong is added; tables without it are read. None to raise it.

    Raises:
        UsageError: It is no TOML; keys are unknown, of another type or missing: all are named.
    """
    if not os.path.exists(path):  # noqa: PTH110 - any name
        raise UsageError(
            "No such file or directory",
            where=str(path),
            hint=f"vaeconv release --init {path} writes one",
        )
    table = read_toml(path)
    if "source" not in table and not get_close_matches("source", table, 1):
        raise UsageError("[source] must be given", where=str(path), hint="see release --init")
    return build(ReleaseConfig, table, str(path), problems)


_EXAMPLES = {
    ("source", "checkpoint"): 'checkpoint = "last.ckpt"',
    ("source", "scaling_factor"): "scaling_factor = 0.18215",
    ("card", "license"): 'license = "mit"',
}
_ATTRIBUTE = re.compile(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)


def commented_file() -> str:
    """Write a release file with every key, its meaning and its default."""
    lines = ["# A release for vaeconv release. Keys that are commented out have these defaults.\n"]
    for table, kind in _KINDS.items():
        said = getdoc(kind) or ""
        lines += [f"# {said.splitlines()[0]}", f"[{table}]"]
        attributes = dict(_ATTRIBUTE.findall(said))
        for key in fields(kind):
            docs = [one.help for one in _SAID[table, key.name] if isinstance(one, Doc)]
            meaning = docs[0] if docs else attributes[key.name].replace("``", "")
            default = key.default_factory() if callable(key.default_factory) else key.default
            line = _EXAMPLES.get((table, key.name))
            if line is None:
                shown = "(not set)" if default is None else json.dumps(default)
                line = f"# {key.name} = {shown}"
            lines += [f"# {' '.join(meaning.split())}", line]
        lines.append("")
    return "\n".join(lines)


def write_release_file(path: Path) -> None:
    """Write a release file with every key, its meaning and its default.

    Raises:
        OutputExistsError: There is one already.
        UsageError: Its name does not end in ``.toml``.
    """
    check_ending(path, (".toml",), "a release file")
    if path.exists():
        raise OutputExistsError("exists", where=str(path), hint="remove it, or name another")
    replace_small_file(path, commented_file().encode(), durable=False)
