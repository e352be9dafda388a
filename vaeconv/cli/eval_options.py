"""Options of ``vaeconv eval``, by panel of its help."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

_MODELS, _PROTOCOL, _METRICS, _SPEED = "Models", "Protocol", "Metrics", "Speed"


class Format(str, Enum):
    """How a table is printed."""

    TABLE = "table"
    MARKDOWN = "markdown"
    LATEX = "latex"
    JSON = "json"


def _value(
    panel: str | None, name: str, metavar: str | None, text: str, *, min: int | None = None
) -> Any:
    """Declare an option whose default, if it has one, is said in its help."""
    return typer.Option(
        name, metavar=metavar, min=min, rich_help_panel=panel, show_default=False, help=text
    )


Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL...",
        help="Autoencoders: anything that convert opens.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    _value(
        None,
        "--out",
        "FILE",
        "Write the result as JSON; what a run has found so far lies beside it in "
        "FILE.parts, so that it can go on after a kill.",
    ),
]
OutputFormat = Annotated[Format, typer.Option("--format", help="How to print the table.")]
Add = Annotated[
    list[Path] | None,
    _value(
        None,
        "--add",
        "FILE",
        "An earlier result to print as well, in the same table where protocol and "
        "pictures are the same; repeatable.",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict/--no-strict", help="Fail where a picture cannot be read.")
]
LatentStats = Annotated[
    bool,
    typer.Option(
        "--latent-stats",
        help="Take mean and deviation of the latents, and the scaling factor that follows.",
    ),
]
Plots = Annotated[
    Path | None,
    _value(None, "--plots", "DIR", "Draw the distribution of each metric. Needs matplotlib."),
]
ReproduceCard = Annotated[
    bool,
    typer.Option(
        "--reproduce-card",
        help="Fetch the three published autoencoders and COCO 2017 val, and print our table "
        "beside the card's, for each knob in doubt.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be fetched and run; do neither.")
]

ModelsFile = Annotated[
    Path | None,
    _value(
        _MODELS,
        "--models",
        "FILE.toml",
        "Models with name, train_steps, comment, link, variant and ema.",
    ),
]
Names = Annotated[
    list[str] | None,
    _value(
        _MODELS, "--name", "NAME", "Name of the first MODEL, of the second, and so on; repeatable."
    ),
]
TrainSteps = Annotated[
    list[int] | None, _value(_MODELS, "--train-steps", "N", "Their training steps.")
]
Comments = Annotated[list[str] | None, _value(_MODELS, "--comment", "TEXT", "Their comments.")]
Links = Annotated[list[str] | None, _value(_MODELS, "--link", "URL", "Their links.")]
Ema = Annotated[
    bool,
    typer.Option(
        "--ema/--no-ema",
        rich_help_panel=_MODELS,
        help="Use the EMA weights of MODELs that have some.",
    ),
]

Preset = Annotated[
    str,
    typer.Option(
        "--protocol",
        metavar="NAME",
        rich_help_panel=_PROTOCOL,
        help="card-256, card-256-squash or card-256-sample; options below change it.",
    ),
]
Size = Annotated[int | None, _value(_PROTOCOL, "--size", "PIXELS", "Side.", min=1)]
Resize = Annotated[
    str | None,
    _value(_PROTOCOL, "--resize", "HOW", "shorter-side (then a centre crop), squash, or none."),
]
Filter = Annotated[
    str | None,
    _value(
        _PROTOCOL,
        "--filter",
        "NAME",
        "bicubic, lanczos, bilinear, box, hamming or nearest; antialiased.",
    ),
]
Posterior = Annotated[str | None, _value(_PROTOCOL, "--posterior", "HOW", "mode or sample.")]
Seed = Annotated[int | None, _value(_PROTOCOL, "--seed", None, "Of the samples.")]
Rounds = Annotated[
    bool | None,
    _value(
        _PROTOCOL,
        "--uint8/--no-uint8",
        None,
        "Round reconstructions to 256 steps before measuring.",
    ),
]
DType = Annotated[
    str | None,
    _value(_PROTOCOL, "--dtype", "TYPE", "What the autoencoders run in: fp32, fp16 or bf16."),
]

Metrics = Annotated[
    str,
    typer.Option(
        "--metrics",
        metavar="LIST",
        rich_help_panel=_METRICS,
        help="rfid, psnr, ssim, psim and lpips.",
    ),
]
AllowMissing = Annotated[
    bool,
    typer.Option(
        "--allow-missing-metrics",
        rich_help_panel=_METRICS,
        help="Leave out metrics whose weights are nowhere, instead of exit code 7.",
    ),
]
InceptionWeights = Annotated[
    Path | None,
    _value(_METRICS, "--inception-weights", "FILE", "torch-fidelity's Inception v3, for rFID."),
]
VGGWeights = Annotated[
    Path | None,
    _value(_METRICS, "--vgg-weights", "FILE", "torchvision's VGG16, for PSIM and LPIPS."),
]
LPIPSWeights = Annotated[
    Path | None,
    _value(_METRICS, "--lpips-weights", "FILE", "The learned weights of LPIPS v0.1 for VGG."),
]
Offline = Annotated[
    bool,
    typer.Option("--offline", rich_help_panel=_METRICS, help="Fetch no weights of nets."),
]

BatchSize = Annotated[
    str,
    typer.Option(
        "--batch-size",
        metavar="N",
        rich_help_panel=_SPEED,
        help="Pictures at a time; auto takes what fits.",
    ),
]
Workers = Annotated[
    int | None,
    _value(_SPEED, "--workers", "N", "Threads that read pictures; by default one per core.", min=1),
]
ChannelsLast = Annotated[
    bool,
    typer.Option("--channels-last", rich_help_panel=_SPEED, help="Lay activations out so."),
]
Compiles = Annotated[
    bool, typer.Option("--compile", rich_help_panel=_SPEED, help="Compile the models.")
]
WorldSize = Annotated[
    int | None,
    _value(_SPEED, "--expect-world-size", "N", "Refuse to run in more or fewer processes.", min=1),
]
Restart = Annotated[
    bool,
    typer.Option(
        "--restart",
        help="Discard what FILE.parts holds, of this run or another, and measure from the start.",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        "--force",
        help="Replace what is at --out and --plots. Without it only the result of this same run is "
        "replaced.",
    ),
]
