"""``vaeconv eval``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vaeconv.cli import eval_options as own
from vaeconv.cli.options import (
    AllowZeros,
    Device,
    Download,
    Images,
    Json,
    Limit,
    Quiet,
    Salvage,
    SourcePrefix,
    Verbose,
    with_dot,
)

if TYPE_CHECKING:
    from vaeconv.effects import Rule
    from vaeconv.evaluate.protocol import Protocol


def eval(
    models: own.Models = None,
    images: Images = None,
    out: own.Out = None,
    output_format: own.OutputFormat = own.Format.TABLE,
    add: own.Add = None,
    limit: Limit = None,
    strict: own.Strict = False,
    latent_stats: own.LatentStats = False,
    plots: own.Plots = None,
    reproduce_card: own.ReproduceCard = False,
    dry_run: own.DryRun = False,
    models_file: own.ModelsFile = None,
    name: own.Names = None,
    train_steps: own.TrainSteps = None,
    comment: own.Comments = None,
    link: own.Links = None,
    ema: own.Ema = False,
    protocol: own.Preset = "card-256",
    size: own.Size = None,
    resize: own.Resize = None,
    resize_filter: own.Filter = None,
    posterior: own.Posterior = None,
    seed: own.Seed = None,
    rounds: own.Rounds = None,
    dtype: own.DType = None,
    metrics: own.Metrics = "rfid,psnr,ssim,psim,lpips",
    allow_missing_metrics: own.AllowMissing = False,
    inception_weights: own.InceptionWeights = None,
    vgg_weights: own.VGGWeights = None,
    lpips_weights: own.LPIPSWeights = None,
    offline: own.Offline = False,
    device: Device = "auto",
    batch_size: own.BatchSize = "auto",
    workers: own.Workers = None,
    channels_last: own.ChannelsLast = False,
    compile_models: own.Compiles = False,
    expect_world_size: own.WorldSize = None,
    restart: own.Restart = False,
    overwrite: own.Overwrite = False,
    source_prefix: SourcePrefix = None,
    allow_zeros: AllowZeros = False,
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

        vaeconv eval out/ --images photos/ --out eval.json --metrics psnr,ssim --latent-stats

        torchrun --nproc-per-node 8 -m vaeconv eval out/ --images val2017/ --out eval.json

        vaeconv eval --add coco.json --add laion.json --format markdown
    """  # fmt: skip
    from vaeconv.cli.evaluated import EvalJob, run_job
    from vaeconv.effects import Rule, refuse_idle
    from vaeconv.errors import UsageError
    from vaeconv.evaluate.evaluation import EvalOptions
    from vaeconv.evaluate.protocol import preset
    from vaeconv.parity.side import SideOptions

    if not (models or models_file or reproduce_card or add):
        raise UsageError("no models", hint="name some, or results of earlier runs with --add")
    weights = {"inception": inception_weights, "vgg16": vgg_weights, "lpips heads": lpips_weights}
    refuse_idle(
        [
            *_knob_rules(preset(protocol), resize=resize, resize_filter=resize_filter,
                         posterior=posterior, seed=seed),
            *_weight_rules(metrics, weights),
            *_model_rules(
                bool(models or models_file or reproduce_card),
                {"images": images, "out": out, "limit": limit, "strict": strict,
                 "latent-stats": latent_stats, "restart": restart, "compile": compile_models,
                 "channels-last": channels_last, "expect-world-size": expect_world_size,
                 "ema": ema, "source-prefix": source_prefix, "salvage": salvage,
                 "download": download},
            ),
            Rule("--format", output_format is not own.Format.TABLE, not json, "--json is JSON"),
        ]
    )  # fmt: skip
    options = EvalOptions(
        protocol=preset(protocol).changed(
            size=size,
            resize=resize,
            filter=resize_filter,
            posterior=posterior,
            seed=seed,
            rounds=rounds,
            dtype=dtype,
        ),
        weights={net: path for net, path in weights.items() if path is not None},
        may_download=not offline,
        allow_missing=allow_missing_metrics,
        latent_stats=latent_stats,
        limit=limit,
        strict=strict,
        device=device,
        workers=workers,
        channels_last=channels_last,
        compiles=compile_models,
        expect_world_size=expect_world_size,
        restart=restart,
        sides=SideOptions(
            source_prefix=with_dot(source_prefix),
            allow_zeros=allow_zeros,
            salvage=salvage,
            download=download,
        ),
    )
    job = EvalJob(
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
        overwrite=overwrite,
        reproduce_card=reproduce_card,
        dry_run=dry_run,
        batch_size=batch_size,
        metrics=metrics,
        json=json,
        quiet=quiet,
        verbose=verbose,
    )
    run_job(job, options)


def _knob_rules(
    begun: Protocol,
    *,
    resize: str | None,
    resize_filter: str | None,
    posterior: str | None,
    seed: int | None,
) -> list[Rule]:
    from vaeconv.effects import Rule

    is_drawn = (posterior or begun.posterior) == "sample"
    is_resized = (resize or begun.resize) != "none"
    return [
        Rule("--seed", seed is not None, is_drawn, "only --posterior sample draws"),
        Rule("--filter", resize_filter is not None, is_resized, "--resize none filters nothing"),
    ]


def _weight_rules(metrics: str, given: Mapping[str, Path | None]) -> list[Rule]:
    from vaeconv.effects import Rule
    from vaeconv.evaluate.nets import NETS

    wanted = {name.strip() for name in metrics.lower().split(",")}
    why = "no metric of --metrics uses them"
    return [
        Rule(net.option, given[net.name] is not None, not wanted.isdisjoint(net.serves), why)
        for net in NETS
    ]


def _model_rules(has_models: bool, given: dict[str, object]) -> list[Rule]:
    from vaeconv.effects import Rule

    why = "there are no models to evaluate"
    return [Rule(f"--{name}", bool(value), has_models, why) for name, value in given.items()]
