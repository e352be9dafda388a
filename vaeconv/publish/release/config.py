"""``release.toml``: inputs, outputs and gates of a release."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from vaeconv.autoencoder.families import FAMILY_NAMES
from vaeconv.checkpoint.toml_file import build, read_toml
from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.common.option_checks import MOST_PIXELS, RUN_DTYPES, Device, Range, check_fields
from vaeconv.common.option_docs import IMAGES, Doc
from vaeconv.errors import OutputExistsError, UsageError, VaeconvError
from vaeconv.evaluation.metric_networks import INCEPTION_FILE, LPIPS_FILE, VGG_FILE
from vaeconv.evaluation.metrics import METRICS
from vaeconv.evaluation.protocol import PRESETS
from vaeconv.publish.card.meta import CardMeta
from vaeconv.weights.output_names import KINDS, check_ending

# Of the CompVis file; with or without a dot.
_FORMATS = (*(ending.lstrip(".") for ending in KINDS), *KINDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTable:
    """The checkpoint to release."""

    checkpoint: Annotated[str, Doc("Training checkpoint to release: anything that convert opens.")]
    ema: Annotated[bool, Doc("Release the EMA weights of tensors that have some.")] = True
    scaling_factor: Annotated[
        float | None,
        Doc("Factor that the diffusion model multiplies latents by; this or family must be given."),
    ] = None
    shift_factor: Annotated[
        float | None, Doc("Number that the diffusion model subtracts from latents before scaling.")
    ] = None
    family: Annotated[
        str | None,
        Doc(
            "Model family, which settles scaling and shift: sd1, sd2, sdxl, sd3, flux1 or another."
        ),
    ] = None
    config: Annotated[
        str | None,
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

    folder: Annotated[str, Doc("Folder that everything is written into.")] = "release"
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

    device: Annotated[str, Doc("Device that computes: auto, cpu, cuda, cuda:N or mps.")] = "auto"
    dtype: Annotated[
        str, Doc("Type to compare in as well, after fp32: fp32 (no other), fp16 or bf16.")
    ] = "fp32"
    latents: Annotated[
        str | None,
        Doc("Reference latents, as vaeconv latents writes them; by default a built-in set."),
    ] = None
    drop_in_for: Annotated[str | None, Doc("Model that this one must be able to stand in for.")] = (
        None
    )

    def __post_init__(self) -> None:
        check_fields(self, device=Device, dtype=RUN_DTYPES)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalTable:
    """The evaluation, and its gates."""

    images: Annotated[
        str | None,
        Doc(f"Images to evaluate with: {IMAGES}; no evaluation without them."),
    ] = None
    title: Annotated[str, Doc("Title of the table in the card.")] = ""
    limit: Annotated[int | None, Doc("Use only this many images, in the order of their names.")] = (
        None
    )
    protocol: Annotated[
        str, Doc("Preset of how images are prepared: card-256, card-256-squash or card-256-sample.")
    ] = "card-256"
    size: Annotated[
        int | None, Doc("Side of the square images, in pixels; by default that of the preset.")
    ] = None
    metrics: Annotated[
        tuple[str, ...], Doc("Metrics to compute: rfid, psnr, ssim, psim and lpips.")
    ] = ("rfid", "psnr", "ssim", "psim", "lpips")
    inception_weights: Annotated[str | None, INCEPTION_FILE] = None
    vgg_weights: Annotated[str | None, VGG_FILE] = None
    lpips_weights: Annotated[str | None, LPIPS_FILE] = None
    models: Annotated[str | None, Doc("TOML file of models to show beside this one.")] = None
    device: Annotated[str, Doc("Device that computes: auto, cpu, cuda, cuda:N or mps.")] = "auto"
    allow_missing_metrics: Annotated[
        bool, Doc("Leave out metrics whose network weights are not found.")
    ] = False
    min_psnr: Annotated[float | None, Doc("Gate: smallest mean PSNR, in dB.")] = None
    baseline: Annotated[str | None, Doc("Gate: earlier eval.json whose rFID is compared.")] = None
    max_rfid_regression: Annotated[
        float, Doc("Gate: how much larger than the baseline's the rFID may be.")
    ] = 0.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            limit=Range(1),
            protocol=tuple(PRESETS),
            size=Range(1, most=MOST_PIXELS),
            metrics=METRICS,
            device=Device,
            max_rfid_regression=Range(0),
        )
        if not self.metrics:
            raise UsageError("metrics are empty", hint=f"there are {', '.join(METRICS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareTable:
    """The side-by-side images of the card."""

    images: Annotated[
        str | None,
        Doc(f"Images to show side by side: {IMAGES}; none are shown without."),
    ] = None
    limit: Annotated[int, Doc("Show only this many images, in the order of their names.")] = 6
    size: Annotated[
        int | None, Doc("Side of the square images, in pixels; by default that of the preset.")
    ] = None
    labels: Annotated[bool, Doc("Write names and PSNR under the images.")] = False

    def __post_init__(self) -> None:
        check_fields(self, limit=Range(1), size=Range(1, most=MOST_PIXELS))


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


# Keys that are paths, or addresses on the Hub.
PATHS = frozenset(
    {
        ("source", "checkpoint"), ("source", "config"), ("output", "folder"),
        ("verify", "latents"), ("verify", "drop_in_for"), ("eval", "images"), ("eval", "models"),
        ("eval", "baseline"), ("eval", "inception_weights"), ("eval", "vgg_weights"),
        ("eval", "lpips_weights"), ("compare", "images"),
    }
)  # fmt: skip


def read_release(path: Path, problems: list[VaeconvError] | None = None) -> ReleaseConfig:
    """Read a release file, and check its keys and their types.

    What they say is checked before a release begins; see
    :func:`~vaeconv.publish.release.check.check_config`.

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


def commented_file() -> str:
    """Write a release file with every key, its meaning and its default."""
    lines = [
        "# A release for vaeconv release. Keys that are commented out have these defaults.",
        "",
    ]
    hints = get_type_hints(ReleaseConfig)
    for table in fields(ReleaseConfig):
        kind = hints[table.name]
        assert is_dataclass(kind)
        lines += [f"# {(kind.__doc__ or '').splitlines()[0]}", f"[{table.name}]"]
        documented = {**_attributes_of(kind), **_docs_of(kind)}
        for key in fields(kind):
            lines.append(f"# {documented[key.name]}")
            lines.append(_line(table.name, key))
        lines.append("")
    return "\n".join(lines)


def _docs_of(kind: Any) -> dict[str, str]:
    """Read the help of each field that has a ``Doc``."""
    return {
        name: doc.help
        for name, hint in get_type_hints(kind, include_extras=True).items()
        for doc in getattr(hint, "__metadata__", ())
    }


def _attributes_of(kind: Any) -> dict[str, str]:
    """Read what a docstring says of each attribute."""
    told: dict[str, str] = {}
    name = ""
    for line in (kind.__doc__ or "").splitlines():
        text = line.strip().replace("``", "")
        if line.startswith(" " * 12) and name:
            told[name] += f" {text}"
        elif line.startswith(" " * 8) and ": " in text:
            name, _, said = text.partition(": ")
            told[name] = said
    return told


_EXAMPLES = {
    ("source", "checkpoint"): 'checkpoint = "last.ckpt"',
    ("source", "scaling_factor"): "scaling_factor = 0.18215",
    ("card", "license"): 'license = "mit"',
}


def _line(table: str, key: Any) -> str:
    example = _EXAMPLES.get((table, key.name))
    if example:
        return example
    default = key.default_factory() if callable(key.default_factory) else key.default
    if isinstance(default, bool):
        text = str(default).lower()
    elif isinstance(default, tuple):
        text = "[" + ", ".join(f'"{one}"' for one in default) + "]"
    elif isinstance(default, str):
        text = f'"{default}"'
    elif isinstance(default, dict):
        text = "{}"
    else:
        text = "(not set)" if default is None else str(default)
    return f"# {key.name} = {text}"


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
