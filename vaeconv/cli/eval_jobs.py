"""Options of eval and compare beside those of the library: models, images, outputs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vaeconv.common.option_docs import Doc, Images
from vaeconv.errors import UsageError
from vaeconv.weights.idle_options import Rule, refuse_idle

if TYPE_CHECKING:
    from vaeconv.cli.jobs import Reading
    from vaeconv.evaluation.eval_options import EvalOptions
    from vaeconv.evaluation.models import ModelSpec

_MODELS = "Models"


def _specs(job: CompareJob | EvalJob, *columns: str) -> list[ModelSpec]:
    """List the models that arguments and the file name, with what columns say of the former."""
    from vaeconv.evaluation.models import name_specs

    why = "no MODEL is named; a file of models says ema"
    refuse_idle(
        [
            Rule("--raw-and-ema", job.raw_and_ema, bool(job.models), why),
            Rule("--ema", job.ema, not job.raw_and_ema, "--raw-and-ema takes both"),
        ]
    )
    said = {name: getattr(job, name) for name in columns}
    return name_specs(job.models, said, job.models_file, ema=job.ema, both=job.raw_and_ema)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareJob:
    """Models and images of a comparison, and its output; each option says what it is."""

    models: Annotated[
        tuple[str, ...],
        Doc(
            "Autoencoders to compare, from left to right: anything that convert opens.",
            "MODEL...",
            is_argument=True,
        ),
    ] = ()
    images: Images = None
    out: Annotated[Path | None, Doc("Folder to write the side-by-side images into.", "DIR")] = None
    html: Annotated[
        Path | None,
        Doc(
            "HTML page to write: PSNR, its distribution, and a slider between the models for each "
            "image. It needs no network.",
            "FILE",
        ),
    ] = None
    name: Annotated[
        tuple[str, ...],
        Doc("Name of the first MODEL, of the second, and so on; repeatable.", "NAME"),
    ] = ()
    models_file: Annotated[
        Path | None, Doc("TOML file of models, as for eval.", "FILE.toml", flags=("--models",))
    ] = None
    ema: Annotated[
        bool, Doc("Use the EMA weights of MODELs that have some.", flags=("--ema/--no-ema",))
    ] = False
    raw_and_ema: Annotated[
        bool,
        Doc("Take the raw and the EMA weights of each MODEL, side by side."),
    ] = False
    protocol: Annotated[str, Doc("Preset of how images are prepared, as for eval.", "NAME")] = (
        "card-256"
    )
    size: Annotated[
        int | None,
        Doc("Side of the square images, in pixels; 256 in the presets.", "PIXELS", least=1),
    ] = None

    def specs(self) -> list[ModelSpec]:
        """List the models that arguments and the file name.

        Raises:
            UsageError: There are more names than models; two have one name.
        """
        return _specs(self, "name")


class Format(str, Enum):
    """Forms of a printed table."""

    TABLE = "table"
    MARKDOWN = "markdown"
    LATEX = "latex"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalJob:
    """Models and images of an evaluation, and its outputs; each option says what it is."""

    models: Annotated[
        tuple[str, ...],
        Doc("Autoencoders to evaluate: anything that convert opens.", "MODEL...", is_argument=True),
    ] = ()
    images: Images = None
    out: Annotated[
        Path | None,
        Doc(
            "JSON file to write the result to; what a run has found so far lies beside it in "
            "FILE.parts, so that it can go on after a kill; remove that when all is done.",
            "FILE",
        ),
    ] = None
    format: Annotated[
        Format, Doc("Form of the printed table: table, markdown, latex or json.", "FORM")
    ] = Format.TABLE
    add: Annotated[
        tuple[Path, ...],
        Doc(
            "Earlier result to print as well, in the same table if protocol and images are the "
            "same; repeatable.",
            "FILE",
        ),
    ] = ()
    plots: Annotated[
        Path | None,
        Doc("Folder to draw the distribution of each metric into. Needs matplotlib.", "DIR"),
    ] = None
    html: Annotated[
        Path | None,
        Doc(
            "HTML page to write: table, distributions, the worst and the best images. It needs no "
            "network.",
            "FILE",
        ),
    ] = None
    models_file: Annotated[
        Path | None,
        Doc(
            "TOML file of models with name, train_steps, comment, link, variant and ema.",
            "FILE.toml",
            _MODELS,
            flags=("--models",),
        ),
    ] = None
    name: Annotated[
        tuple[str, ...],
        Doc("Name of the first MODEL, of the second, and so on; repeatable.", "NAME", _MODELS),
    ] = ()
    train_steps: Annotated[
        tuple[int, ...],
        Doc("Training steps of the first MODEL, and so on; repeatable.", "N", _MODELS),
    ] = ()
    comment: Annotated[
        tuple[str, ...], Doc("Comment on the first MODEL, and so on; repeatable.", "TEXT", _MODELS)
    ] = ()
    link: Annotated[
        tuple[str, ...], Doc("Link of the first MODEL, and so on; repeatable.", "URL", _MODELS)
    ] = ()
    ema: Annotated[
        bool,
        Doc(
            "Use the EMA weights of MODELs that have some.",
            panel=_MODELS,
            flags=("--ema/--no-ema",),
        ),
    ] = False
    raw_and_ema: Annotated[
        bool,
        Doc(
            "Take the raw and the EMA weights of each MODEL, as two rows: NAME raw and NAME EMA.",
            panel=_MODELS,
        ),
    ] = False
    overwrite: Annotated[
        bool,
        Doc(
            "Replace existing files at --out, --plots and --html; without it only the result of "
            "this same run is replaced.",
            flags=("--overwrite", "--force"),
        ),
    ] = False

    def specs(self) -> list[ModelSpec]:
        """List the models that arguments and the file name.

        Raises:
            UsageError: There is more said of models than there are; two have one name.
        """
        return _specs(self, "name", "train_steps", "comment", "link")

    def check(self, options: EvalOptions, reading: Reading, *, json: bool) -> None:
        """Check that there is something to do, and that no option is without effect.

        Raises:
            UsageError: There is not, or one is.
        """
        has_models = bool(self.models or self.models_file)
        if not (has_models or self.add):
            raise UsageError("no models", hint="name some, or results of earlier runs with --add")
        given = {
            "images": self.images, "out": self.out, "ema": self.ema, "limit": options.limit,
            "strict": options.strict, "latent-stats": options.latent_stats,
            "restart": options.restart, "compile": options.compiles,
            "channels-last": options.channels_last,
            "expect-world-size": options.expect_world_size,
            "source-prefix": reading.source_prefix, "salvage": reading.salvage,
            "download": reading.download,
        }  # fmt: skip
        why = "there are no models to evaluate"
        refuse_idle(
            [
                *[Rule(f"--{name}", bool(one), has_models, why) for name, one in given.items()],
                Rule("--format", self.format is not Format.TABLE, not json, "--json is JSON"),
            ]
        )
