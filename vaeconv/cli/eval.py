"""``vaeconv eval``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vaeconv.cli.options import Device, Download, Json, Quiet, Salvage, SourcePrefix, Verbose

PROTOCOL, METRICS, SPEED, MODELS = "Protocol", "Metrics", "Speed", "Models"


class Format(str, Enum):
    """How a table is printed."""

    TABLE = "table"
    MARKDOWN = "markdown"
    LATEX = "latex"
    JSON = "json"


def eval(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...",
            help="Autoencoders: anything that convert opens.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR_OR_ZIP", help="The pictures: a folder or a zip file.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the result as JSON; what a run has found so far lies beside it in "
            "FILE.parts, so that it can go on after a kill.",
            show_default=False,
        ),
    ] = None,
    output_format: Annotated[
        Format, typer.Option("--format", help="How to print the table.")
    ] = Format.TABLE,
    add: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="An earlier result to print as well, in the same table where protocol and "
            "pictures are the same; repeatable.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Take the first N pictures.", show_default=False),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict/--no-strict", help="Fail where a picture cannot be read.")
    ] = False,
    latent_stats: Annotated[
        bool,
        typer.Option(
            "--latent-stats",
            help="Take mean and deviation of the latents, and the scaling factor that follows.",
        ),
    ] = False,
    plots: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Draw the distribution of each metric. Needs matplotlib.",
            show_default=False,
        ),
    ] = None,
    reproduce_card: Annotated[
        bool,
        typer.Option(
            "--reproduce-card",
            help="Fetch the three published autoencoders and COCO 2017 val, and print our table "
            "beside the card's, for each knob in doubt.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be fetched and run; do neither.")
    ] = False,
    models_file: Annotated[
        Path | None,
        typer.Option(
            "--models",
            metavar="FILE.toml",
            rich_help_panel=MODELS,
            show_default=False,
            help="Models with name, train_steps, comment, link, variant and ema.",
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=MODELS,
            show_default=False,
            help="Name of the first MODEL, of the second, and so on; repeatable.",
        ),
    ] = None,
    train_steps: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", rich_help_panel=MODELS, show_default=False, help="Their training steps."
        ),
    ] = None,
    comment: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", rich_help_panel=MODELS, show_default=False, help="Their comments."
        ),
    ] = None,
    link: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL", rich_help_panel=MODELS, show_default=False, help="Their links."
        ),
    ] = None,
    ema: Annotated[
        bool,
        typer.Option(
            "--ema/--no-ema",
            rich_help_panel=MODELS,
            help="Use the EMA weights of MODELs that have some.",
        ),
    ] = False,
    protocol: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=PROTOCOL,
            help="card-256, card-256-squash or card-256-sample; options below change it.",
        ),
    ] = "card-256",
    size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS", min=1, rich_help_panel=PROTOCOL, show_default=False, help="Side."
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            rich_help_panel=PROTOCOL,
            show_default=False,
            help="shorter-side (then a centre crop), squash, or none.",
        ),
    ] = None,
    resize_filter: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="NAME",
            rich_help_panel=PROTOCOL,
            show_default=False,
            help="bicubic, lanczos, bilinear, box, hamming or nearest; antialiased.",
        ),
    ] = None,
    posterior: Annotated[
        str | None,
        typer.Option(
            metavar="HOW", rich_help_panel=PROTOCOL, show_default=False, help="mode or sample."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(rich_help_panel=PROTOCOL, show_default=False, help="Of the samples."),
    ] = None,
    rounds: Annotated[
        bool | None,
        typer.Option(
            "--uint8/--no-uint8",
            rich_help_panel=PROTOCOL,
            show_default=False,
            help="Round reconstructions to 256 steps before measuring.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            rich_help_panel=PROTOCOL,
            show_default=False,
            help="What the autoencoders run in: fp32, fp16 or bf16.",
        ),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            metavar="LIST", rich_help_panel=METRICS, help="rfid, psnr, ssim, psim and lpips."
        ),
    ] = "rfid,psnr,ssim,psim,lpips",
    allow_missing_metrics: Annotated[
        bool,
        typer.Option(
            "--allow-missing-metrics",
            rich_help_panel=METRICS,
            help="Leave out metrics whose weights are nowhere, instead of exit code 7.",
        ),
    ] = False,
    inception_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=METRICS,
            show_default=False,
            help="torch-fidelity's Inception v3, for rFID.",
        ),
    ] = None,
    vgg_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=METRICS,
            show_default=False,
            help="torchvision's VGG16, for PSIM and LPIPS.",
        ),
    ] = None,
    lpips_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=METRICS,
            show_default=False,
            help="The learned weights of LPIPS v0.1 for VGG.",
        ),
    ] = None,
    offline: Annotated[
        bool,
        typer.Option("--offline", rich_help_panel=METRICS, help="Fetch no weights of nets."),
    ] = False,
    device: Device = "auto",
    batch_size: Annotated[
        str,
        typer.Option(
            metavar="N", rich_help_panel=SPEED, help="Pictures at a time; auto takes what fits."
        ),
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=SPEED,
            show_default=False,
            help="Threads that read pictures; by default one per core.",
        ),
    ] = None,
    channels_last: Annotated[
        bool,
        typer.Option("--channels-last", rich_help_panel=SPEED, help="Lay activations out so."),
    ] = False,
    compile_models: Annotated[
        bool, typer.Option("--compile", rich_help_panel=SPEED, help="Compile the models.")
    ] = False,
    expect_world_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=SPEED,
            show_default=False,
            help="Refuse to run in more or fewer processes.",
        ),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", rich_help_panel=SPEED, help="Forget what another run found."),
    ] = False,
    source_prefix: SourcePrefix = None,
    salvage: Salvage = False,
    download: Download = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Reconstruct pictures and measure: rFID, PSNR, SSIM, PSIM and LPIPS of each model.

    Every picture is read once for all models. A run that was killed goes on where it was. For
    many GPUs: torchrun --nproc-per-node N -m vaeconv eval, or accelerate launch -m vaeconv eval.

    Examples:

        vaeconv eval last.ckpt out/ --images val2017/ --out eval.json

        vaeconv eval --models models.toml --images val2017.zip --out eval.json --format markdown

        vaeconv eval out/ --images photos/ --metrics psnr,ssim --latent-stats

        torchrun --nproc-per-node 8 -m vaeconv eval out/ --images val2017/ --out eval.json

        vaeconv eval --add coco.json --add laion.json --format markdown
    """  # fmt: skip
    from vaeconv.cli.evaluated import EvalJob, Knobs, run_job

    run_job(
        EvalJob(
            models=list(models or ()),
            models_file=models_file,
            names=list(name or ()),
            train_steps=list(train_steps or ()),
            comments=list(comment or ()),
            links=list(link or ()),
            ema=ema,
            images=images,
            out=out,
            format=output_format.value,
            add=list(add or ()),
            plots=plots,
            reproduce_card=reproduce_card,
            dry_run=dry_run,
            batch_size=batch_size,
            metrics=metrics,
            weights={
                "inception": inception_weights,
                "vgg16": vgg_weights,
                "lpips heads": lpips_weights,
            },
            source_prefix=source_prefix,
            salvage=salvage,
            download=download,
            json=json,
            quiet=quiet,
        ),
        Knobs(
            preset=protocol,
            size=size,
            resize=resize,
            filter=resize_filter,
            posterior=posterior,
            seed=seed,
            rounds=rounds,
            dtype=dtype,
        ),
        limit=limit,
        strict=strict,
        latent_stats=latent_stats,
        allow_missing=allow_missing_metrics,
        may_download=not offline,
        device=device,
        workers=workers,
        channels_last=channels_last,
        compiles=compile_models,
        expect_world_size=expect_world_size,
        restart=restart,
    )
