"""``release.toml``: everything that a release is made of and judged by."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from vaeconv.autoencoder.families import FAMILY_NAMES
from vaeconv.checkpoint.atomic import replace_small_file
from vaeconv.errors import OutputExistsError, UsageError, VaeconvError
from vaeconv.evaluate.meter import METRICS
from vaeconv.evaluate.protocol import PRESETS
from vaeconv.names import KINDS, check_ending
from vaeconv.option_checks import MOST_PIXELS, RUN_DTYPES, Device, Range, check_fields
from vaeconv.publish.meta import CardMeta
from vaeconv.schema import build, read_toml

# Of the CompVis file; with or without a dot.
_FORMATS = (*(ending.lstrip(".") for ending in KINDS), *KINDS)


def _key(default: Any, doc: str) -> Any:
    """Make a field with a default and a line for the commented file."""
    if default in ({}, ()):
        return field(default_factory=type(default), metadata={"doc": doc})
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTable:
    """What is released."""

    checkpoint: str = field(metadata={"doc": "The training checkpoint: anything convert opens."})
    ema: bool = _key(True, "Use EMA weights where a tensor has some.")
    scaling_factor: float | None = _key(
        None, "What latents are multiplied by; must be given, or family."
    )
    shift_factor: float | None = _key(None, "What is subtracted from latents before.")
    family: str | None = _key(None, "sd1, sdxl, sd3, flux1, …: settles scaling and shift.")
    config: str | None = _key(None, "A config file, for what shapes do not tell.")
    source_prefix: str | None = _key(None, "Which autoencoder, where there are several.")
    allow_zeros: bool = _key(
        False, "Let weights pass that are zero where no training leaves zeros."
    )

    def __post_init__(self) -> None:
        check_fields(self, scaling_factor=Range(0, is_open=True), family=FAMILY_NAMES)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTable:
    """What is written, and where."""

    folder: str = _key("release", "Where everything goes.")
    dtypes: tuple[str, ...] = _key(
        ("fp32", "fp16"), "Weights of the diffusers folder: fp32 plain, others as variants."
    )
    original: str = _key("", "Name of the CompVis file, without ending; empty for none.")
    original_formats: tuple[str, ...] = _key(
        ("safetensors", "ckpt"), "Its endings: safetensors, sft, ckpt, pt, pth, bin."
    )
    original_dtype: str = _key("fp32", "Its dtype.")
    modelspec: bool = _key(False, "Describe the model in the headers of its safetensors files.")
    sbom: bool = _key(False, "Write a bill of materials (CycloneDX) into each folder.")

    def __post_init__(self) -> None:
        check_fields(self, dtypes=RUN_DTYPES, original_formats=_FORMATS, original_dtype=RUN_DTYPES)
        if not self.dtypes or len(set(self.dtypes)) != len(self.dtypes):
            raise UsageError(f"dtypes are some of {', '.join(RUN_DTYPES)}, each once")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyTable:
    """The gate of parity."""

    device: str = _key("auto", "auto, cpu, cuda, cuda:N or mps.")
    dtype: str = _key("fp32", "Compare in this type as well, after fp32.")
    latents: str | None = _key(None, "A file of vaeconv latents.")
    drop_in_for: str | None = _key(None, "Prove that it can stand in for this model.")

    def __post_init__(self) -> None:
        check_fields(self, device=Device, dtype=RUN_DTYPES)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalTable:
    """The evaluation, and its gates."""

    images: str | None = _key(None, "A folder or a zip file of pictures; no evaluation without.")
    title: str = _key("", "Title of the table.")
    limit: int | None = _key(None, "Take the first so many pictures.")
    protocol: str = _key("card-256", "The protocol's preset.")
    size: int | None = _key(None, "Side of a picture in pixels.")
    metrics: tuple[str, ...] = _key(("rfid", "psnr", "ssim", "psim", "lpips"), "What to compute.")
    models: str | None = _key(None, "A TOML file with models to stand beside this one.")
    device: str = _key("auto", "auto, cpu, cuda, cuda:N or mps.")
    allow_missing_metrics: bool = _key(False, "Leave out metrics whose nets are nowhere.")
    min_psnr: float | None = _key(None, "Gate: smallest mean PSNR in dB.")
    baseline: str | None = _key(None, "Gate: an earlier eval.json to compare rFID with.")
    max_rfid_regression: float = _key(0.0, "Gate: how much larger than the baseline's rFID may be.")

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
    """The pictures of the card."""

    images: str | None = _key(None, "A folder or a zip file of pictures; none without.")
    limit: int = _key(6, "Take the first so many.")
    size: int | None = _key(None, "Side of a picture in pixels.")
    labels: bool = _key(False, "Write names and PSNR under the pictures.")

    def __post_init__(self) -> None:
        check_fields(self, limit=Range(1), size=Range(1, most=MOST_PIXELS))


@dataclass(frozen=True, slots=True, kw_only=True)
class PushTable:
    """Where it is published."""

    repo_id: str = _key("", "owner/name of the diffusers repository; no push without.")
    original_repo_id: str = _key("", "owner/name of the repository with the CompVis file.")
    revision: str = _key("main", "The branch.")
    private: bool | None = _key(None, "Whether repositories that are made are private.")
    tag: str | None = _key(None, "Tag of both commits; {tag} is that of the CI job, or of --tag.")
    message: str | None = _key(None, "Of both commits.")
    verify: bool = _key(True, "Download what was published, and compare.")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseConfig:
    """A release."""

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
        ("eval", "baseline"), ("compare", "images"),
    }
)  # fmt: skip


def read_release(path: Path, problems: list[VaeconvError] | None = None) -> ReleaseConfig:
    """Read a release file, and check its keys and their types.

    What they say is checked before a release begins; see
    :func:`~vaeconv.publish.release_check.check_config`.

    Args:
        path: The file.
        problems: Where what is wrong is added; tables without it are read. None to raise it.

    Raises:
        UsageError: It is no TOML; keys are unknown, of another type or missing: all are named.
    """
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
        documented = _attributes_of(kind)
        for key in fields(kind):
            lines.append(f"# {key.metadata.get('doc') or documented[key.name]}")
            lines.append(_line(table.name, key))
        lines.append("")
    return "\n".join(lines)


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
